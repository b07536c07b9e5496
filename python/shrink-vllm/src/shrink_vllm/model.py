"""A converted model in vLLM: the donor's class with latent attention in its blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from vllm import ModelRegistry
from vllm.config import VllmConfig

from . import modeling_shrink as shrink
from .attention import LatentAttention

#: `layers.3.self_attn.mla.w_down`: a layer, its attention, and what is in it.
ATTENTION = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.(?:self_attn|attention|attn)\.(.+)$")
#: Buffers of old files.
BUFFERS = re.compile(r"(?:^|\.)(?:masked_)?bias$|inv_freq$")


class ShrinkForCausalLM(nn.Module):
    """Made by vLLM; what is made is of the donor's class."""

    def __new__(cls, *, vllm_config: VllmConfig, prefix: str = "") -> Any:
        """The donor's model with latents in it."""
        config = vllm_config.model_config.hf_config
        return converted(donor_class(config))(vllm_config=vllm_config, prefix=prefix)

    # What vLLM asks of a class before it makes one: that it generates text.

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        raise AssertionError("never made")

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Of the donor's class."""
        raise NotImplementedError

    def forward(
        self, input_ids: Tensor, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Any = None
    ) -> Tensor:
        """Of the donor's class."""
        raise NotImplementedError

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Of the donor's class."""
        raise NotImplementedError


def donor_class(config: Any) -> Any:
    """vLLM's class of the donor."""
    names = (config.mla.get("donor") or {}).get("architectures") or []
    known = ModelRegistry.get_supported_archs()
    name = next((name for name in names if name in known), None)
    if name is None:
        raise ValueError(f"vLLM has no class for the model that was converted: {', '.join(names) or 'it is not named'}")
    donor = ModelRegistry._try_load_model_cls(name)
    if donor.__module__.startswith("vllm.model_executor.models.transformers"):
        raise ValueError(f"vLLM has no class of its own for {name}, and runs it through transformers: so does the folder itself")
    return donor


@cache
def converted(donor: Any) -> Any:
    """The donor's class with latent attention in its blocks."""

    class Converted(donor):  # type: ignore[misc]
        def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            config = vllm_config.model_config.hf_config
            # The folder's own module of each layer, with its matrices; the rest of that model is never filled.
            with torch.device("meta"):
                folder = shrink.model_class(config.__class__)(config)
            dtype, device = vllm_config.model_config.dtype, vllm_config.device_config.device
            if None in shrink.layers_of(config):
                raise ValueError("vLLM keeps latents in every layer or in none: convert without --keep-layers")
            rotary_to(shrink.base_of(folder), config, device)
            for name in [name for name, _ in self.named_modules()]:
                found = ATTENTION.search(f"{name}.x")
                if found is None or found[2] != "x":
                    continue
                context = vllm_config.compilation_config.static_forward_context
                for gone in [layer for layer in context if layer.startswith(f"{name}.")]:
                    del context[gone]
                inner = shrink.attention_of(folder, int(found[1])).to_empty(device=device).to(dtype)
                place, _, last = name.rpartition(".")
                setattr(self.get_submodule(place), last, LatentAttention(inner.eval(), vllm_config, name))
            self._latent = [module for module in self.modules() if isinstance(module, LatentAttention)]
            self._folder = (folder,)

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            """The donor's, and ours where it has attention."""
            of = {layer.inner.layer_idx: layer for layer in self._latent}
            filled: dict[int, set[str]] = {index: set() for index in of}
            parameters = {index: dict(layer.inner.named_parameters()) for index, layer in of.items()}

            def others() -> Iterable[tuple[str, Tensor]]:
                for name, tensor in weights:
                    found = ATTENTION.search(name)
                    if found is None:
                        yield name, tensor
                        continue
                    index = int(found[1])
                    parameter = parameters[index].get(found[2])
                    if parameter is None:
                        if not BUFFERS.search(name) and not found[2].startswith("mla.w_"):
                            raise ValueError(f"{name} has no place in the model")
                        continue
                    parameter.data.copy_(tensor)
                    filled[index].add(found[2])

            loaded = super().load_weights(others()) or set()
            for index, layer in of.items():
                missing = parameters[index].keys() - filled[index]
                if missing:
                    raise ValueError(f"layer {index} lacks {', '.join(sorted(missing))}")
                layer.cut()
                loaded |= {f"{layer.layer_name}.inner.{name}" for name in filled[index]}
            return loaded

    Converted.__name__ = Converted.__qualname__ = "ShrinkForCausalLM"
    return Converted


def rotary_to(base: Any, config: Any, device: Any) -> None:
    """Makes the rotary embeddings of the folder's model for real: they are made of the configuration alone."""
    for name in ("rotary_emb", "rotary_emb_local"):
        rotary = getattr(base, name, None)
        if rotary is not None:
            setattr(base, name, type(rotary)(rotary.config if hasattr(rotary, "config") else config).to(device))
