"""Multi-Head Latent Attention in the place of a donor's attention: what is cached is `c = W_down h`, nothing else.

A model here is its donor's, of the donor's own classes; only the attention of converted layers is this file's. A layer caches one
row of numbers a token: its latents, behind a rotated key that all heads share where it has one (DeepSeek-V2 2024, section 2.1).
Keys and values are rebuilt from them, `K = W_uk c`, `V = W_uv c`, and may read the rows of earlier layers too (cross terms).

The rows lie in transformers' own cache in the place of the keys, `[batch, 1, tokens, width]`, and values are of width 0: beams,
cropping, windows and offloading are the cache's. Long contexts are decoded a tile of `TILE` tokens at a time, so that what is
rebuilt takes the memory of a tile.

shrink's own implementation and the mathematics are documented with shrink; the two give the same numbers.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_shrink import ShrinkConfig

#: Tokens whose keys are rebuilt at a time, and the context from which that is done.
TILE = 512
#: New tokens of a pass up to which it is decoding, not a prompt.
DECODING = 16
#: What transformers has called the cache of a pass.
CACHES = ("cache", "past_key_values", "past_key_value", "layer_past")
#: What a donor's attention has, by its family's name for it.
OUTPUTS = ("o_proj", "dense", "c_proj")
FUSED = ("c_attn", "qkv_proj", "query_key_value")


# ---------------------------------------------------------------------------------------------- what a layer caches


@dataclass(frozen=True)
class Part:
    """A latent of a layer: what is rebuilt from it (`k`, `v`, or `kv` for both) and how many numbers it has."""

    serves: str
    width: int

    @property
    def suffix(self) -> str:
        """Of the names of its matrices."""
        return "" if self.serves == "kv" else f"_{self.serves}"


@dataclass(frozen=True)
class Latents:
    """An entry of `mla.layers` in `config.json`."""

    parts: tuple[Part, ...]
    up_of: int
    reads: tuple[int, ...]
    crossed: bool
    balanced: bool
    pairs: tuple[int, ...]

    @property
    def d_rope(self) -> int:
        """Numbers of the shared key."""
        return 2 * len(self.pairs)

    @property
    def widths(self) -> list[int]:
        """Of what lies in a row, in order."""
        return [self.d_rope] * bool(self.pairs) + [part.width for part in self.parts]

    @property
    def width(self) -> int:
        """Numbers cached a token."""
        return sum(self.widths)

    def start(self, part: int) -> int:
        """The first column of a part in a row."""
        return self.d_rope + sum(part.width for part in self.parts[:part])


def layers_of(config: Any) -> tuple[Latents | None, ...]:
    """What each layer caches; `None` for one that keeps its donor's attention."""
    layers: list[Latents | None] = []
    for layer, entry in enumerate(config.mla["layers"]):
        if entry is None:
            layers.append(None)
            continue
        parts = (
            (Part("kv", entry["d_latent"]),)
            if "d_latent" in entry
            else (Part("k", entry["d_latent_k"]), Part("v", entry["d_latent_v"]))
        )
        first = entry.get("reads_from")
        reads = () if first is None else tuple(j for j in range(first, layer) if layers[j] is not None)
        layers.append(
            Latents(
                parts=parts,
                up_of=entry.get("up_of", layer),
                reads=reads,
                crossed=bool(reads) or (first is not None and len(parts) == 2),
                balanced=entry.get("balanced", False),
                pairs=tuple((entry.get("shared") or {}).get("pairs", ())),
            )
        )
    return tuple(layers)


# ------------------------------------------------------------------------------------------- rows as they are cached


@dataclass(frozen=True)
class Packing:
    """Rows whose numbers are `bits` wide: 32-bit words, in groups of about 32 numbers with a scale and an offset of their own.

    `x ~ offset + scale * code`, scale and offset in half precision: words of a row are `(offset << 16 | scale)` a group, then the
    codes from the lowest bit on. Groups do not reach from one part of a row into the next.
    """

    bits: int
    widths: tuple[int, ...]

    @property
    def groups(self) -> list[int]:
        """Numbers of each group."""
        sizes = []
        for width in self.widths:
            size = math.ceil(width / max((width + 16) // 32, 1))
            sizes += [min(size, width - at) for at in range(0, width, size)]
        return sizes

    @property
    def words(self) -> int:
        """Of a row."""
        return len(self.groups) + math.ceil(sum(self.widths) * self.bits / 32)

    def pack(self, rows: Tensor) -> Tensor:
        """`[.., width]` to `[.., words]`, int32."""
        levels, sizes, shape = 2**self.bits - 1, self.groups, rows.shape[:-1]
        groups = rows.float().split(sizes, -1)
        low = torch.stack([group.amin(-1) for group in groups], -1)
        high = torch.stack([group.amax(-1) for group in groups], -1)
        offset = low.clamp(-65504, 65504).half()
        scale = ((high - offset.float()) / levels).clamp(-65504, 65504).half()
        heads = (offset.view(torch.int16).long() & 0xFFFF) << 16 | scale.view(torch.int16).long() & 0xFFFF
        count = torch.tensor(sizes, device=rows.device)
        inverse = torch.where(scale > 0, 1 / scale.float(), 0.0).repeat_interleave(count, -1)
        codes = (rows.float() - offset.float().repeat_interleave(count, -1)) * inverse
        # Halves away from zero, as shrink rounds.
        codes = (codes.clamp(0, levels) + 0.5).floor().long().clamp(0, levels)
        bit = torch.arange(self.bits, device=rows.device)
        bits = (codes.unsqueeze(-1) >> bit & 1).reshape(*shape, -1)
        bits = F.pad(bits, (0, -bits.shape[-1] % 32)).reshape(*shape, -1, 32)
        words = (bits << torch.arange(32, device=rows.device)).sum(-1)
        words = torch.cat([heads, words], -1)
        return torch.where(words >= 2**31, words - 2**32, words).int()

    def unpack(self, words: Tensor) -> Tensor:
        """`[.., words]` to `[.., width]`, float32."""
        sizes, width = self.groups, sum(self.widths)
        heads, codes = words[..., : len(sizes)].long() & 0xFFFFFFFF, words[..., len(sizes) :].long() & 0xFFFFFFFF
        at = torch.arange(width, device=words.device) * self.bits
        beyond = torch.cat([codes, torch.zeros_like(codes[..., :1])], -1)
        window = codes[..., at // 32] | beyond[..., at // 32 + 1] << 32
        numbers = (window >> at % 32 & 2**self.bits - 1).float()
        halves = [half.to(torch.int16).view(torch.float16).float() for half in (heads >> 16, heads & 0xFFFF)]
        count = torch.tensor(sizes, device=words.device)
        offset, scale = (half.repeat_interleave(count, -1) for half in halves)
        return offset + scale * numbers


@lru_cache(maxsize=64)
def spread(width: int) -> Tensor:
    """An orthogonal `[width, width]` with entries of one size: Hadamard's of powers of two, Hartley's else."""
    rows = torch.arange(width)
    product = rows[:, None] * rows
    if width & (width - 1) == 0:
        parity = rows[:, None] & rows
        ones = sum((parity >> bit) & 1 for bit in range(width.bit_length()))
        return ((1 - 2 * (torch.as_tensor(ones) % 2)) / math.sqrt(width)).float()
    angle = (product % width).double() * (math.tau / width)
    return ((angle.cos() + angle.sin()) / math.sqrt(width)).float()


# -------------------------------------------------------------------------------------------------------- attention


@dataclass(frozen=True)
class Term:
    """`rows[columns] @ weight.T` is what keys, or values, take from the rows of a layer."""

    layer: int
    start: int
    weight: Tensor

    def of(self, rows: dict[int, Tensor]) -> Tensor:
        """The columns that are read: `[batch, tokens, columns]`."""
        return rows[self.layer][..., self.start : self.start + self.weight.shape[1]]


class Matrices(nn.Module):
    """What a conversion put in the place of `W_k` and `W_v`; each is `[d_out, d_in]`."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape), requires_grad=trains(name)))


class Bias(nn.Module):
    """What is left of a projection whose matrix is gone."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(size), requires_grad=False)


def trains(name: str) -> bool:
    """Whether a matrix of a conversion is trained: what goes down to latents, up from them, and across."""
    return name.startswith(("w_down", "w_up", "w_cross")) and name != "w_up_shared"


class LatentAttention:
    """What a donor's attention becomes. Grafted: the module stays an instance of its donor's class."""

    layer_idx: int
    config: Any
    training: bool
    donor: type
    mla: Matrices
    latents: Latents

    def graft(self, model: PreTrainedModel, layers: tuple[Latents | None, ...], layer: int, kind: str | None) -> None:
        """Puts latents in the place of keys and values."""
        config, latents = self.config, layers[layer]
        assert latents is not None
        self.latents, self.layers, self.layer_idx = latents, layers, layer
        self.d_head = getattr(self, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.n_heads = config.num_attention_heads
        self.n_kv_heads = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.kind = kind
        # Not children: they have their own place in the model.
        self.around = (model,)
        d_kv, d_model = self.n_kv_heads * self.d_head, config.hidden_size
        normed, fused = hasattr(self, "k_norm"), next((name for name in FUSED if hasattr(self, name)), None)
        read = {"k": d_kv if normed else d_model, "v": d_model, "kv": d_model + (d_kv if normed else 0)}
        shapes: dict[str, tuple[int, ...]] = {}
        for part in latents.parts:
            shapes[f"w_down{part.suffix}"] = (part.width, read[part.serves])
            if latents.up_of == layer:
                shapes[f"w_up{part.suffix}"] = (d_kv * len(part.serves), part.width)
            if latents.balanced:
                shapes[f"w_balance{part.suffix}"] = (part.width, part.width)
        if latents.crossed:
            earlier = sum(of.width for j in latents.reads if (of := layers[j]) is not None)
            own = [part.width for part in latents.parts] if len(latents.parts) == 2 else [0, 0]
            shapes["w_cross_k"], shapes["w_cross_v"] = (d_kv, own[1] + earlier), (d_kv, own[0] + earlier)
        biased = getattr(getattr(self, fused or "k_proj"), "bias", None) is not None
        if latents.pairs:
            shapes["w_down_shared"], shapes["w_up_shared"] = (latents.d_rope, read["k"]), (d_kv, latents.d_rope)
            if biased and not normed:
                shapes["b_down_shared"], shapes["b_k"] = (latents.d_rope,), (d_kv,)
        if fused:
            shapes["w_q"] = (self.n_heads * self.d_head, d_model)
            if biased:
                setattr(self, fused, Bias((self.n_heads + 2 * self.n_kv_heads) * self.d_head))
            else:
                delattr(self, fused)
        else:
            for name in ("k_proj", "v_proj"):
                if name == "k_proj" and normed:
                    continue
                if biased and not (name == "k_proj" and "b_k" in shapes):
                    setattr(self, name, Bias(d_kv))
                else:
                    delattr(self, name)
        self.fused = fused if biased else None
        self.mla = Matrices(shapes)

    # -- what a token gives

    def biases(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of queries, keys and values, as they are added to what is made of matrices here."""
        if self.fused:
            bias, n = getattr(self, self.fused).bias, self.n_heads * self.d_head
            if self.fused == "query_key_value":  # a head's three after one another
                q, k, v = bias.view(self.n_heads, 3, self.d_head).unbind(1)
                return q.reshape(-1), k.reshape(-1), v.reshape(-1)
            d_kv = self.n_kv_heads * self.d_head
            q, k, v = bias.split([n, d_kv, d_kv])
            return q, k, v
        # A bias before a norm is in the normed key already.
        keys = None if hasattr(self, "k_norm") else getattr(getattr(self, "k_proj", None), "bias", None)
        return None, getattr(self.mla, "b_k", keys), getattr(getattr(self, "v_proj", None), "bias", None)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Queries or keys through the norm that the family gives them, over each head or over all: `[batch, tokens, ..]`."""
        norm = getattr(self, name, None)
        if norm is None:
            return x
        if norm.weight.shape[-1] == self.d_head:
            return norm(x.unflatten(-1, (-1, self.d_head))).flatten(-2)
        return norm(x)

    def queries(self, h: Tensor) -> Tensor:
        """Before they are rotated: `[batch, n_heads, tokens, d_head]`."""
        q = F.linear(h, self.mla.w_q, self.biases()[0]) if hasattr(self.mla, "w_q") else self.q_proj(h)  # type: ignore[attr-defined]
        return self.norm("q_norm", q).unflatten(-1, (self.n_heads, self.d_head)).transpose(1, 2)

    def compress(self, h: Tensor, form: Form, shared: Frequencies | None, positions: Tensor) -> Tensor:
        """What is kept of new tokens, as numbers: `[batch, tokens, width]`."""
        keys = self.norm("k_norm", self.k_proj(h)) if hasattr(self, "k_norm") else None  # type: ignore[attr-defined]
        read = {"k": h if keys is None else keys, "v": h, "kv": h if keys is None else torch.cat([keys, h], -1)}
        row = []
        if shared is not None:
            key = F.linear(read["k"], self.mla.w_down_shared, getattr(self.mla, "b_down_shared", None))  # type: ignore[arg-type]
            row.append(form.spread(shared.rotate(key, positions)))
        row += [F.linear(read[part.serves], form.down(self, part)) for part in self.latents.parts]
        return torch.cat(row, -1)

    def output(self) -> Any:
        """`W_o`, whatever the family calls it."""
        return next(getattr(self, name) for name in OUTPUTS if hasattr(self, name))

    # -- what is made of rows

    def terms(self) -> tuple[list[Term], list[Term]]:
        """What keys and what values are made of."""
        up = self if self.latents.up_of == self.layer_idx else attention_of(self.around[0], self.latents.up_of)
        d_kv, latents = self.n_kv_heads * self.d_head, self.latents
        keys, values = [], []
        for at, part in enumerate(latents.parts):
            weight, start = getattr(up.mla, f"w_up{part.suffix}"), latents.start(at)
            if "k" in part.serves:
                keys.append(Term(self.layer_idx, start, weight[:d_kv]))
            if "v" in part.serves:
                values.append(Term(self.layer_idx, start, weight[-d_kv:]))
        if latents.crossed:
            for weight, made, other in ((self.mla.w_cross_k, keys, 1), (self.mla.w_cross_v, values, 0)):
                column = 0
                if len(latents.parts) == 2:
                    column = latents.parts[other].width
                    made.append(Term(self.layer_idx, latents.start(other), weight[:, :column]))
                for layer in latents.reads:
                    width = self.layers[layer].width  # type: ignore[union-attr]
                    made.append(Term(layer, 0, weight[:, column : column + width]))
                    column += width
        return keys, values

    # -- a pass

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the donor's: `[batch, tokens, d_model]` to the same, and the weights of attention where they are written out."""
        if args:
            raise TypeError("a latent attention takes what follows its input by name")
        h = hidden_states
        kwargs.pop("position_embeddings", None)  # of the new tokens alone
        # One that holds nothing yet may be false.
        given = [kwargs.pop(name, None) for name in CACHES]
        store = next((cache for cache in given if cache is not None), None)
        store = getattr(store, "self_attention_cache", store)
        past = _seen(store, self.layer_idx)
        batch, t_q, _ = h.shape
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(past, past + t_q, device=h.device)[None]
        turning, shared = rotations_of(self)
        form = form_of(self.config)
        row = form.keep(self.compress(h, form, shared, positions), self.latents)
        rows = _append(store, row, self, past)
        board = _board(self.around[0], h.device)
        board[self.layer_idx] = rows
        own = {layer: board[layer] for layer in (*self.latents.reads, self.layer_idx)}
        t_kv = min(rows.shape[1] for rows in own.values())
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 4:
            t_kv = min(t_kv, attention_mask.shape[-1])
            attention_mask = attention_mask[..., -t_kv:]
        own = {layer: rows[:, -t_kv:] for layer, rows in own.items()}
        if not torch.is_grad_enabled() and self.layer_idx == max(layer for layer, of in enumerate(self.layers) if of):
            board.clear()

        query = Query(self.queries(h), positions, turning, shared)
        attend = self._walk if self._decodes(t_q, t_kv, kwargs) else self._whole
        out, weights = attend(query, own, form, attention_mask, kwargs)
        out = self.output()(out.reshape(batch, t_q, -1))
        dropout = getattr(self, "resid_dropout", None)
        return (out if dropout is None else dropout(out)), weights

    def _decodes(self, t_q: int, t_kv: int, kwargs: dict[str, Any]) -> bool:
        written_out = kwargs.get("output_attentions") or getattr(self.config, "output_attentions", False)
        return t_q <= DECODING and t_kv > TILE and not torch.is_grad_enabled() and not self.training and not written_out

    def _whole(
        self, query: Query, rows: dict[int, Tensor], form: Form, mask: Any, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Over keys and values of all tokens, by the attention that the model was opened with."""
        (made_k, made_v), (_, bias_k, bias_v) = form.terms(self), self.biases()
        dtype = query.heads.dtype
        rows = {layer: form.numbers(kept, self.layers[layer]).to(dtype) for layer, kept in rows.items()}
        k, v = _made(made_k, rows, bias_k), _made(made_v, rows, bias_v)
        k, v = (x.unflatten(-1, (self.n_kv_heads, self.d_head)).transpose(1, 2) for x in (k, v))
        t_kv = k.shape[2]
        q = query.rotated()
        if query.turning:
            k = query.turning.rotate(k, query.columns(t_kv)[:, None])
        if self.latents.pairs:
            key = rows[self.layer_idx][..., : self.latents.d_rope][:, None].expand(-1, self.n_kv_heads, -1, -1)
            q, k = torch.cat([form.spread(query.reading(self)), q], -1), torch.cat([key, k], -1)
        name = self.config._attn_implementation
        if self._softcap() is not None and name == "sdpa":
            # Which knows no bound in every version.
            name, seen = "eager", columns_seen(mask, q.shape[0], q.shape[2], t_kv, query.window(self, t_kv))
            mask = None if seen is None else torch.where(seen, 0.0, torch.finfo(q.dtype).min).to(q.dtype)
        module = sys.modules[self.donor.__module__]
        interface = ALL_ATTENTION_FUNCTIONS.get(name, None) or module.eager_attention_forward
        more: dict[str, Any] = {"dropout": self._dropout() if self.training else 0.0}
        if (scaling := getattr(self, "scaling", None)) is not None:
            more["scaling"] = scaling
        elif self.latents.pairs or name != "eager":
            more["scaling"] = self._scale()
        if hasattr(self, "sinks"):
            more["s_aux"] = self.sinks
        if self._softcap() is not None:
            more["softcap"] = self._softcap()
        if (window := self._window()) is not None:
            more["sliding_window"] = window
        narrow = v.shape[-1] < q.shape[-1] and "flash" in str(name)
        if narrow:  # its kernels want values as wide as keys
            v = F.pad(v, (0, q.shape[-1] - v.shape[-1]))
        out, weights = interface(self, q, k, v, mask, **more, **kwargs)
        return (out[..., : self.d_head] if narrow else out), weights

    def _walk(
        self, query: Query, rows: dict[int, Tensor], form: Form, mask: Any, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """A tile of tokens after the other.

        Values are absorbed: what is summed up are rows, which become values once, at the end. Keys are absorbed where nothing
        turns them; else a tile of them is rebuilt, rotated from the tile's start on, and the queries by the rest of the way.
        """
        del kwargs
        (made_k, made_v), (_, bias_k, bias_v) = form.terms(self), self.biases()
        group, t_kv, q = self.n_heads // self.n_kv_heads, next(iter(rows.values())).shape[1], query.heads.float()
        batch, _, t_q, _ = q.shape

        def grouped(x: Tensor) -> Tensor:
            """Query heads as rows of the kv head that they read: `[batch, n_kv_heads, group * tokens, ..]`."""
            return x.unflatten(1, (self.n_kv_heads, group)).flatten(2, 3)

        def heads(weight: Tensor) -> Tensor:
            """A matrix, or a bias, by kv heads: `[n_kv_heads, d_head, ..]`."""
            return weight.float().unflatten(0, (self.n_kv_heads, self.d_head))

        reading = grouped(form.spread(query.reading(self)).float()) if self.latents.pairs else None
        absorbed = [grouped(q) @ heads(term.weight) for term in made_k] if query.turning is None else None
        made_k = [Term(term.layer, term.start, term.weight.float()) for term in made_k]
        sinks = getattr(self, "sinks", None)
        if sinks is not None:
            sinks = grouped(sinks.float().view(1, -1, 1, 1).expand(batch, -1, t_q, -1))
        seen = columns_seen(mask, batch, t_q, t_kv, query.window(self, t_kv))
        sums = Softmax(sinks)
        for start in range(0, t_kv, TILE):
            span = slice(start, min(start + TILE, t_kv))
            tile = {layer: form.numbers(kept[:, span], self.layers[layer]).float() for layer, kept in rows.items()}
            if absorbed is not None:
                scores = sum(by @ term.of(tile)[:, None].mT for by, term in zip(absorbed, made_k))
                if bias_k is not None:
                    scores = scores + grouped(q) @ heads(bias_k)[..., None]
            else:
                assert query.turning is not None
                keys = _made(made_k, tile, bias_k).unflatten(-1, (self.n_kv_heads, self.d_head)).transpose(1, 2)
                keys = query.turning.rotate(keys, torch.arange(keys.shape[2], device=q.device)[None, None])
                scores = grouped(query.turning.rotate(q, query.behind(start, t_kv)[:, None])) @ keys.mT
            if reading is not None:
                scores = scores + reading @ tile[self.layer_idx][:, None, :, : self.latents.d_rope].mT
            scores = scores * self._scale()
            if self._softcap() is not None:
                scores = torch.tanh(scores / self._softcap()) * self._softcap()
            if seen is not None:
                visible = seen[..., span].expand(batch, 1, t_q, -1).repeat(1, 1, group, 1)
                scores = scores.masked_fill(~visible, -math.inf)
            sums.add(scores, [term.of(tile)[:, None] for term in made_v])
        out = sum(of @ heads(term.weight).mT for of, term in zip(sums.means(), made_v))
        if bias_v is not None:
            out = out + sums.given() * heads(bias_v)[:, None]
        out = out.unflatten(2, (group, t_q)).flatten(1, 2).transpose(1, 2)
        return out.to(query.heads.dtype), None

    def _dropout(self) -> float:
        rate = getattr(self, "attention_dropout", None)
        return float(getattr(getattr(self, "attn_dropout", None), "p", 0.0) if rate is None else rate)

    def _softcap(self) -> float | None:
        return getattr(self, "attn_logit_softcapping", None)

    def _scale(self) -> float:
        scaling = getattr(self, "scaling", None)
        if scaling is not None:
            return float(scaling)
        scale = self.d_head**-0.5 if getattr(self, "scale_attn_weights", True) else 1.0
        return scale / (self.layer_idx + 1) if getattr(self, "scale_attn_by_inverse_layer_idx", False) else scale

    def _window(self) -> int | None:
        """How far back the layer sees, as its family keeps it."""
        if hasattr(self, "sliding_window"):
            return self.sliding_window
        if self.kind is not None:
            return self.config.sliding_window if self.kind == "sliding_attention" else None
        return getattr(self.config, "sliding_window", None)


class Softmax:
    """Sums under a softmax over tiles, with a running maximum (Milakov & Gimelshein 2018). A sink is a score without a value."""

    def __init__(self, sinks: Tensor | None) -> None:
        self.top = sinks
        self.total = None if sinks is None else torch.ones_like(sinks)
        self.of_sink = self.total
        self.sums: list[Tensor] | None = None

    def add(self, scores: Tensor, values: list[Tensor]) -> None:
        """A tile: scores `[.., rows, tokens]`, and what they weigh, `[.., tokens, width]` each."""
        top = scores.amax(-1, keepdim=True).clamp(min=-1e38)
        top = top if self.top is None else torch.maximum(top, self.top)
        weights = (scores - top).exp()
        total, sums = weights.sum(-1, keepdim=True), [weights @ value for value in values]
        if self.top is not None and self.total is not None:
            keep = (self.top - top).exp()
            total = total + self.total * keep
            self.of_sink = None if self.of_sink is None else self.of_sink * keep
            if self.sums is not None:
                sums = [new + old * keep for new, old in zip(sums, self.sums)]
        self.top, self.total, self.sums = top, total, sums

    def means(self) -> list[Tensor]:
        """What was weighed, by weights that add up to one with the sink's."""
        assert self.sums is not None
        assert self.total is not None
        return [of / self.total for of in self.sums]

    def given(self) -> Tensor:
        """The weight that a sink leaves."""
        assert self.total is not None
        return torch.ones_like(self.total) if self.of_sink is None else 1 - self.of_sink / self.total


@dataclass(frozen=True)
class Query:
    """Queries before they are rotated, `[batch, n_heads, tokens, d_head]`, and where they stand, `[batch or 1, tokens]`."""

    heads: Tensor
    positions: Tensor
    turning: Frequencies | None
    shared: Frequencies | None

    def rotated(self) -> Tensor:
        """As they are scored, where keys are rotated."""
        return self.heads if self.turning is None else self.turning.rotate(self.heads, self.positions[:, None])

    def reading(self, attention: LatentAttention) -> Tensor:
        """What reads the shared key: `[batch, n_heads, tokens, d_rope]`."""
        up = attention.mla.w_up_shared.unflatten(0, (attention.n_kv_heads, attention.d_head))  # type: ignore[operator]
        up = up.repeat_interleave(attention.n_heads // attention.n_kv_heads, 0)
        assert self.shared is not None
        return self.shared.rotate(self.heads @ up.to(self.heads.dtype), self.positions[:, None])

    def columns(self, t_kv: int) -> Tensor:
        """Positions of all columns: those of a row follow one another, behind its padding."""
        t_q = self.positions.shape[1]
        if t_q == t_kv:
            return self.positions
        steps = torch.arange(t_kv, device=self.positions.device) - (t_kv - 1)
        return (self.positions[:, -1:] + steps).clamp(min=0)

    def behind(self, start: int, t_kv: int) -> Tensor:
        """How far each query stands behind column `start`: `[batch or 1, tokens]`."""
        return self.positions - (self.positions[:, -1:] - (t_kv - 1) + start)

    def window(self, attention: LatentAttention, t_kv: int) -> Tensor | None:
        """What a window hides where no mask does: `[1, 1, tokens, t_kv]`, true where a column is seen."""
        t_q, window = self.heads.shape[2], attention._window()
        if t_q == 1 and window is None:
            return None
        columns = torch.arange(t_kv, device=self.heads.device)
        own = columns[-t_q:, None]
        seen = columns <= own
        return (seen if window is None else seen & (columns > own - window))[None, None]


def columns_seen(mask: Any, batch: int, t_q: int, t_kv: int, rule: Tensor | None) -> Tensor | None:
    """What queries see, from whatever transformers says it with: `[batch or 1, 1, tokens, t_kv]`; `None` for all."""
    if mask is None:
        return rule
    if not isinstance(mask, Tensor):
        raise TypeError(f"latents are decoded with a mask that is a tensor, not {type(mask).__name__}")
    if mask.dim() == 2:  # flash attention: which columns are tokens
        seen = mask[:, None, None, -t_kv:].bool()
        return seen if rule is None else seen & rule
    mask = mask[:, :1]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _made(terms: list[Term], rows: dict[int, Tensor], bias: Tensor | None) -> Tensor:
    """Keys or values: `[batch, tokens, d_kv]`."""
    made: Any = sum(F.linear(term.of(rows), term.weight) for term in terms)
    return made if bias is None else made + bias


# ------------------------------------------------------------------------------------------------------------- forms


class Form:
    """How rows are kept: as they are computed, or in 16 bits."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype

    def down(self, attention: LatentAttention, part: Part) -> Tensor:
        """What makes a latent: `[width, ..]`."""
        return getattr(attention.mla, f"w_down{part.suffix}")

    def keep(self, rows: Tensor, latents: Latents) -> Tensor:
        """`[batch, tokens, width]` as it is cached."""
        del latents
        return rows if self.dtype is None else rows.to(self.dtype)

    def numbers(self, kept: Tensor, latents: Latents | None) -> Tensor:
        """What is cached, as numbers."""
        del latents
        return kept

    def terms(self, attention: LatentAttention) -> tuple[list[Term], list[Term]]:
        """What keys and values are made of, given `numbers`."""
        return attention.terms()

    def spread(self, reading: Tensor) -> Tensor:
        """What reads the shared key, given `numbers`."""
        return reading


class Quantised(Form):
    """Integers, each latent in a basis that suits them: `z = T c`, T spreading what balances an error's cost in all numbers."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def down(self, attention: LatentAttention, part: Part) -> Tensor:
        """What makes `z`."""
        weight = super().down(attention, part)
        return self.basis(attention, part)[0].to(weight.dtype) @ weight

    def keep(self, rows: Tensor, latents: Latents) -> Tensor:
        """Packed words; where gradients are asked for, the numbers that they stand for."""
        packing = self.packing(latents)
        packed = packing.pack(rows)
        if torch.is_grad_enabled() and rows.requires_grad:
            # Straight through (Bengio et al. 2013).
            return rows + (packing.unpack(packed).to(rows.dtype) - rows).detach()
        return packed

    def numbers(self, kept: Tensor, latents: Latents | None) -> Tensor:
        """Unpacked."""
        assert latents is not None
        return kept if kept.is_floating_point() else self.packing(latents).unpack(kept)

    def terms(self, attention: LatentAttention) -> tuple[list[Term], list[Term]]:
        """What keys and values are made of, given `z`."""
        return tuple([self.folded(attention, term) for term in terms] for terms in attention.terms())  # type: ignore[return-value]

    def spread(self, reading: Tensor) -> Tensor:
        """The shared key, and what reads it, over all numbers."""
        return reading @ spread(reading.shape[-1]).T.to(reading)

    def packing(self, latents: Latents) -> Packing:
        """How the rows of a layer are packed."""
        return Packing(self.bits, tuple(latents.widths))

    def basis(self, attention: LatentAttention, part: Part) -> tuple[Tensor, Tensor]:
        """T and its inverse, which weights on either side of a latent would have folded in."""
        balance = getattr(attention.mla, f"w_balance{part.suffix}", None)
        device = getattr(attention.mla, f"w_down{part.suffix}").device
        orthogonal = spread(part.width).to(device)
        if balance is None:
            return orthogonal, orthogonal.T
        known: dict[Any, tuple[Tensor, Tensor]] = attention.__dict__.setdefault("_bases", {})
        key = (part, balance.data_ptr(), balance._version)
        if key not in known:
            known.pop(next((old for old in known if old[0] == part), None), None)
            inverse = torch.linalg.inv(balance.detach().double()).float()
            known[key] = (orthogonal @ balance.detach().float(), inverse @ orthogonal.T)
        return known[key]

    def folded(self, attention: LatentAttention, term: Term) -> Term:
        """A term with the inverse basis of what it reads in its weight."""
        source = attention if term.layer == attention.layer_idx else attention_of(attention.around[0], term.layer)
        blocks, column, latents = [], term.start, source.latents
        for at, part in enumerate(latents.parts):
            if latents.start(at) >= term.start and latents.start(at) < term.start + term.weight.shape[1]:
                start = column - term.start
                weight = term.weight[:, start : start + part.width]
                blocks.append(weight @ self.basis(source, part)[1].to(weight.dtype))
                column += part.width
        return Term(term.layer, term.start, torch.cat(blocks, -1))


def form_of(config: Any) -> Form:
    """How a model caches: by `mla.cache_dtype`."""
    name = config.mla.get("cache_dtype")
    floats = {None: None, "f32": None, "f16": torch.float16, "bf16": torch.bfloat16}
    if name in floats:
        return Form(floats[name])
    return Quantised(int(name.removeprefix("int")))


# -------------------------------------------------------------------------------------------------------- rotations


@dataclass(frozen=True)
class Frequencies:
    """A rotary embedding: radians a position of each pair, and what cosines and sines are multiplied by."""

    radians: Tensor
    gain: float

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turns the first dimensions of `x`, pair i being numbers i and i + half of them; the others pass."""
        half = self.radians.shape[0]
        angle = positions[..., None].float() * self.radians.to(x.device, torch.float32)
        cos, sin = ((part * self.gain).to(x.dtype) for part in (angle.cos(), angle.sin()))
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def frequencies_of(attention: LatentAttention, model: PreTrainedModel) -> Frequencies | None:
    """Those of the donor's that turn a layer: as they are now, since some change with the context."""
    base = base_of(model)
    rotary = getattr(base, "rotary_emb", None)
    if attention.kind == "sliding_attention":
        rotary = getattr(base, "rotary_emb_local", rotary)
    if rotary is None:
        rotary = getattr(base, "rotary_embs", None)
    if isinstance(rotary, nn.ModuleDict):
        rotary = rotary[attention.kind]
    if rotary is None:
        return None
    prefix = f"{attention.kind}_" if hasattr(rotary, f"{attention.kind}_inv_freq") else ""
    return Frequencies(getattr(rotary, f"{prefix}inv_freq"), float(getattr(rotary, f"{prefix}attention_scaling")))


def rotations_of(attention: LatentAttention) -> tuple[Frequencies | None, Frequencies | None]:
    """What turns a layer's keys, and what its shared key; a layer has one of them at most."""
    rope = frequencies_of(attention, attention.around[0])
    if attention.latents.pairs:
        return None, _shared(attention, rope)
    return (rope if getattr(attention, "use_rope", True) else None), None


def _shared(attention: LatentAttention, own: Frequencies | None) -> Frequencies:
    """Those that turn the shared key of a layer."""
    pairs = attention.latents.pairs
    rope = attention.config.mla.get("shared_rope")
    if rope is not None:
        steps = torch.arange(0, rope["d_rotary"], 2, dtype=torch.float64) / rope["d_rotary"]
        own = Frequencies((rope["theta"] ** -steps).float(), 1.0)
    if own is None:
        raise ValueError(f"layer {attention.layer_idx} has a shared key and the model no rotary embedding")
    return Frequencies(own.radians[torch.tensor(pairs, device=own.radians.device)], own.gain)


# ----------------------------------------------------------------------------------------------------------- caches


def _seen(store: Any, layer: int) -> int:
    """Tokens that a cache has of a layer."""
    if store is None or layer >= len(store.layers):
        return 0
    return int(store.layers[layer].get_seq_length())


def _append(store: Any, row: Tensor, attention: LatentAttention, past: int) -> Tensor:
    """Puts rows of new tokens behind those that a cache has, and returns all: `[batch, tokens, ..]`."""
    if store is None:
        return row
    layer = attention.layer_idx
    if past == 0:
        _widen(store, attention)
    rows = row[:, None]
    kept, _ = store.update(rows, rows[..., :0], layer)
    if kept.shape[2] < row.shape[1]:
        raise ValueError("a latent cache grows: take a dynamic cache, not a static one")
    return kept[:, 0]


def _widen(store: Any, attention: LatentAttention) -> None:
    """Has a layer's cache reach as far back as the layers that read its latents do."""
    layer, layers = attention.layer_idx, attention.layers
    readers = [reader for reader, latents in enumerate(layers) if latents is not None and layer in latents.reads]
    own = attention._window()
    if own is None or not readers or layer >= len(store.layers):
        return
    windows = [attention_of(attention.around[0], reader)._window() for reader in readers]
    if None in windows:
        from transformers.cache_utils import DynamicLayer

        store.layers[layer] = DynamicLayer()
    elif (widest := max(windows)) > own:
        store.layers[layer] = type(store.layers[layer])(widest)


def _board(model: PreTrainedModel, device: torch.device) -> dict[int, Tensor]:
    """What the layers of a pass have kept, for those that follow; one a device, since replicas run at once."""
    return model.__dict__.setdefault("_latents_of_pass", {}).setdefault(device, {})


# ----------------------------------------------------------------------------------------------------------- models


def base_of(model: PreTrainedModel) -> Any:
    """The model without its head. Not every version's `base_model` is it."""
    base: Any = model.base_model
    return model.model if base is model else base


def blocks_of(model: PreTrainedModel) -> Any:
    """The blocks of a model, whatever its family calls them."""
    base = base_of(model)
    return base.h if hasattr(base, "h") else base.layers


def attention_of(model: PreTrainedModel, layer: int) -> Any:
    """The attention of a block."""
    block = blocks_of(model)[layer]
    return next(getattr(block, name) for name in ("self_attn", "attention", "attn") if hasattr(block, name))


class ShrinkForCausalLM(PreTrainedModel):
    """Opens a converted folder; what comes back is of the donor's class, with latent attention in it."""

    config_class = ShrinkConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """A converted folder's model, with gradients for what a conversion trains and for nothing else."""
        if config is None:
            named = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs}
            config = ShrinkConfig.from_pretrained(pretrained_model_name_or_path, **named)
        model = model_class(config.__class__).from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        (model[0] if isinstance(model, tuple) else model).freeze_donor()
        return model

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        model = model_class(config.__class__)._from_config(config, **kwargs)
        model.freeze_donor()
        return model


class _Converted:
    """What a donor's model gains."""

    #: Originals that a conversion was asked to keep, and buffers of old files.
    _keys_to_ignore_on_load_unexpected: ClassVar = [r"\.mla\.w_[kv]$", r"\.(attn|attention)\.(masked_)?bias$", r"inv_freq$"]
    #: Caches are dynamic here.
    _can_compile_fullgraph = False
    _supports_static_cache = False

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        layers = layers_of(config)
        kinds = getattr(config, "layer_types", None)
        for layer, latents in enumerate(layers):
            if latents is not None:
                attention = attention_of(self, layer)  # type: ignore[arg-type]
                attention.__class__ = attention_class(attention.__class__)
                attention.graft(self, layers, layer, kinds[layer] if kinds else None)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As the donor's."""
        if mapping := renamed(cls):
            kwargs.setdefault("key_mapping", mapping)
        return super().from_pretrained(*args, **kwargs)  # type: ignore[misc]

    def freeze_donor(self) -> None:
        """Leaves gradients to the matrices of the conversion alone."""
        for name, parameter in self.named_parameters():  # type: ignore[attr-defined]
            module, _, last = name.rpartition(".")
            parameter.requires_grad_(module.endswith(".mla") and trains(last))


@cache
def model_class(config_class: Any) -> Any:
    """The class of models whose donor has this configuration."""
    known = AutoModelForCausalLM._model_mapping.items()
    base = next(model for donor, model in known if donor in config_class.__mro__[1:])
    names = {"__module__": __name__, "config_class": config_class, "_auto_class": "AutoModelForCausalLM"}
    return type("ShrinkForCausalLM", (_Converted, base), names)


def renamed(model: Any) -> dict[str, str]:
    """Tensors that transformers names otherwise than a donor's files do, which it looks up for its own classes only."""
    try:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping as known
    except ImportError:  # before 5.0
        return {}
    rules = (rule for donor in model.__mro__[2:] for rule in known(donor.__name__) or ())
    return {
        source: target
        for rule in rules
        if type(rule).__name__ == "WeightRenaming"
        for source, target in zip(rule.source_patterns, rule.target_patterns)
    }


@cache
def attention_class(donor: Any) -> Any:
    """A donor's class of attention with latents in it."""
    return type(f"Latent{donor.__name__}", (LatentAttention, donor), {"__module__": __name__, "donor": donor})
