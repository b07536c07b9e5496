"""Latent attention over vLLM's paged cache.

A layer has one cache head of as many numbers as it caches a token. Layers of different widths share one block table, so that a
layer reads the rows of earlier ones by the same pages (cross terms). What is computed of rows is what the folder's own code
computes (`modeling_shrink.py`): this file brings it pages, a tile of them at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backend import AttentionBackend, AttentionMetadataBuilder, CommonAttentionMetadata, MultipleOf
from vllm.v1.kv_cache_interface import KVCacheSpec, MLAAttentionSpec

from . import modeling_shrink as shrink


@dataclass
class Pages:
    """Which sequences a pass has, and where their rows lie."""

    #: New tokens of each sequence, and all of its tokens.
    new: list[int]
    seen: list[int]
    #: Pages of each sequence: `[sequences, pages]`.
    table: Tensor
    #: Where the rows of new tokens go, one number a token: page times its size, and the place in it.
    slots: Tensor


class PagesBuilder(AttentionMetadataBuilder[Pages]):
    """From what vLLM says of a batch."""

    def __init__(self, kv_cache_spec: KVCacheSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False) -> Pages:
        """The same for every layer of the group."""
        del common_prefix_len, fast_build
        common = common_attn_metadata
        count = common.num_reqs
        starts = common.query_start_loc_cpu[: count + 1]
        return Pages(
            new=(starts[1:] - starts[:-1]).tolist(),
            seen=common.seq_lens[:count].tolist(),
            table=common.block_table_tensor[:count].long(),
            slots=common.slot_mapping[: int(starts[-1])].long(),
        )


class LatentBackend(AttentionBackend):
    """Rows of latents, one head a layer."""

    supported_dtypes: ClassVar = [torch.float32, torch.bfloat16, torch.float16]
    supported_kv_cache_dtypes: ClassVar = ["auto"]

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: KVCacheSpec | None = None) -> list[int | MultipleOf]:
        """Any."""
        del kv_cache_spec
        return [MultipleOf(1)]

    @staticmethod
    def get_name() -> str:
        """As vLLM lists it."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> Any:
        """The layer is its own."""
        return LatentAttention

    @staticmethod
    def get_builder_cls() -> Any:
        """What makes a batch's `Pages`."""
        return PagesBuilder


class RowsOfPages:
    """Rows of some sequences as if they lay beside each other, `[sequences, tokens, ..]`, gathered a span at a time."""

    def __init__(self, cache: Tensor, table: Tensor, tokens: int) -> None:
        self.cache, self.table = cache, table
        self.shape = (table.shape[0], tokens, cache.shape[-1])

    def __getitem__(self, index: tuple[slice, slice]) -> Tensor:
        _, span = index
        size = self.cache.shape[2]
        first, last = span.start // size, -(-span.stop // size)
        rows = self.cache[self.table[:, first:last], 0].flatten(1, 2)
        return rows[:, span.start - first * size : span.stop - first * size]


@dataclass(frozen=True)
class PagedQuery(shrink.Query):
    """Queries of sequences whose column is their position."""

    def behind(self, start: int, t_kv: int) -> Tensor:
        """How far each query stands behind column `start`."""
        del t_kv
        return self.positions - start


class LatentAttention(nn.Module, AttentionLayerBase):
    """A layer's attention: queries, latents and output of the folder's own module, rows in vLLM's cache."""

    def __init__(self, inner: Any, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.inner, self.layer_name = inner, prefix
        self.around = (vllm_config,)
        self.form = shrink.form_of(inner.config)
        self.cache_dtype = self.form.dtype or vllm_config.model_config.dtype
        context = vllm_config.compilation_config.static_forward_context
        context[prefix] = self
        self.kv_cache = torch.empty(0)

    def get_attn_backend(self) -> type[AttentionBackend]:
        """Ours, on every device."""
        return LatentBackend

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec:
        """One head as wide as a row."""
        size, latents = vllm_config.cache_config.block_size, self.inner.latents
        if isinstance(self.form, shrink.Quantised):
            words = self.form.packing(latents).words
            return MLAAttentionSpec(block_size=size, num_kv_heads=1, head_size=words, dtype=torch.int32)
        return MLAAttentionSpec(block_size=size, num_kv_heads=1, head_size=latents.width, dtype=self.cache_dtype)

    def cut(self) -> None:
        """Leaves the query heads of this rank, and what they read; latents stay whole."""
        ranks, rank, inner = get_tensor_model_parallel_world_size(), get_tensor_model_parallel_rank(), self.inner
        if ranks == 1:
            return
        heads, kv_heads, d_head = inner.n_heads, inner.n_kv_heads, inner.d_head
        if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
            raise ValueError(f"{heads} query heads over {kv_heads} of keys cannot be cut into {ranks} ranks")
        if hasattr(inner, "q_norm") and inner.q_norm.weight.shape[-1] != d_head:
            raise ValueError("queries whose norm goes over all heads cannot be cut into ranks")
        own, own_kv = heads // ranks, max(kv_heads // ranks, 1)
        q = slice(rank * own * d_head, (rank + 1) * own * d_head)
        first = rank * kv_heads // ranks
        kv = slice(first * d_head, (first + own_kv) * d_head)
        d_kv = kv_heads * d_head

        def keep(parameter: nn.Parameter | None, *slices: slice) -> None:
            if parameter is not None:
                parameter.data = torch.cat([parameter.data[part] for part in slices]).contiguous()

        matrices = dict(inner.mla.named_parameters())
        for name in ("w_up_k", "w_up_v", "w_cross_k", "w_cross_v", "w_up_shared", "b_k"):
            keep(matrices.get(name), kv)
        keep(matrices.get("w_up"), kv, slice(kv.start + d_kv, kv.stop + d_kv))
        keep(matrices.get("w_q"), q)
        for name, part in (("q_proj", q), ("v_proj", kv)):
            module = getattr(inner, name, None)
            keep(getattr(module, "weight", None), part)
            keep(getattr(module, "bias", None), part)
        if not hasattr(inner, "k_norm"):
            keep(getattr(getattr(inner, "k_proj", None), "bias", None), kv)
        keep(getattr(inner, "sinks", None), slice(rank * own, (rank + 1) * own))
        if inner.fused:
            raise ValueError("a model with one bias for queries, keys and values cannot be cut into ranks")
        out = inner.output()
        columns = isinstance(out, nn.Linear)
        out.weight.data = (out.weight.data[:, q] if columns else out.weight.data[q]).contiguous()
        if rank and out.bias is not None:
            out.bias.data.zero_()
        inner.n_heads, inner.n_kv_heads = own, own_kv

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """`[tokens, d_model]` to the same; the input is the last that is given without a name, or `hidden_states`."""
        h = kwargs["hidden_states"] if "hidden_states" in kwargs else args[-1]
        out = torch.ops.vllm.shrink_latent_attention(h, self.layer_name)
        return tensor_model_parallel_all_reduce(out) if get_tensor_model_parallel_world_size() > 1 else out

    def attend(self, h: Tensor) -> Tensor:
        """What a pass adds up."""
        context = get_forward_context()
        pages: Any = context.attn_metadata
        pages = pages.get(self.layer_name) if isinstance(pages, dict) else pages
        if pages is None or self.kv_cache.numel() == 0:
            return torch.zeros_like(h)
        inner, out = self.inner, torch.zeros_like(h)
        new = torch.tensor(pages.new, device=h.device)
        seen = torch.tensor(pages.seen, device=h.device)
        total = int(new.sum())
        within = torch.arange(total, device=h.device) - (new.cumsum(0) - new).repeat_interleave(new)
        positions = within + (seen - new).repeat_interleave(new)
        turning, shared = shrink.rotations_of(inner)
        x = h[:total]
        rows = self.form.keep(inner.compress(x[None], self.form, shared, positions[None])[0], inner.latents)
        size = self.kv_cache.shape[2]
        self.kv_cache[pages.slots // size, 0, pages.slots % size] = rows.to(self.kv_cache.dtype)
        queries = inner.queries(x[None])[0]
        one = [at for at, count in enumerate(pages.new) if count == 1]
        starts = (new.cumsum(0) - new).tolist()
        groups = [one] if one else []
        groups += [[at] for at, count in enumerate(pages.new) if count > 1]
        for group in groups:
            at = torch.cat([torch.arange(starts[row], starts[row] + pages.new[row]) for row in group]).to(h.device)
            heads = queries[:, at].unflatten(1, (len(group), -1)).transpose(0, 1)
            stand = positions[at].unflatten(0, (len(group), -1))
            out[at] = self.sequences(PagedQuery(heads, stand, turning, shared), pages, group).flatten(0, 1).to(h.dtype)
        return out

    def sequences(self, query: PagedQuery, pages: Pages, group: list[int]) -> Tensor:
        """Of sequences that have as many new tokens each: `[sequences, tokens, d_model]`."""
        inner, layers = self.inner, self.around[0].compilation_config.static_forward_context
        t_kv, table = max(pages.seen[row] for row in group), pages.table[group]
        name = {inner.layer_idx: self.layer_name}
        if inner.latents.reads:
            known = layers_named(layers)
            name |= {layer: known[layer] for layer in inner.latents.reads}
        rows: Any = {layer: RowsOfPages(layers[of].kv_cache, table, t_kv) for layer, of in name.items()}
        if query.heads.is_cuda and query.heads.shape[2] == 1:
            from . import kernel  # Triton is there where a GPU is

            if kernel.claims(inner, self.form):
                lengths = query.positions[:, 0] + 1
                out = kernel.decode(inner, self.form, query, self.kv_cache, table, lengths)
                return inner.output()(out)
        columns, window = torch.arange(t_kv, device=query.heads.device), inner._window()
        seen = columns <= query.positions[..., None]
        if window is not None:
            seen &= columns > query.positions[..., None] - window
        out, _ = inner._walk(query, rows, self.form, seen[:, None], {})
        return inner.output()(out.flatten(2).to(query.heads.dtype))


def layers_named(context: dict[str, Any]) -> dict[int, str]:
    """The names of the latent layers, by their numbers."""
    return {layer.inner.layer_idx: name for name, layer in context.items() if isinstance(layer, LatentAttention)}


def _latent_attention(h: Tensor, layer_name: str) -> Tensor:
    return get_forward_context().no_compile_layers[layer_name].attend(h)


def _latent_attention_fake(h: Tensor, layer_name: str) -> Tensor:
    del layer_name
    return torch.empty_like(h)


direct_register_custom_op(op_name="shrink_latent_attention", op_func=_latent_attention, fake_impl=_latent_attention_fake)
