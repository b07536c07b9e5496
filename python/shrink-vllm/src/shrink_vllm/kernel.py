"""Decoding over pages of latents in one Triton kernel: what `LatentAttention._walk` computes, for one new token a sequence.

A program takes a sequence, a kv head with the query heads that read it, and a part of the context (flash decoding, Dao et al.
2023). It goes over the part a tile of rows at a time. Where nothing turns keys, queries were taken to the rows beforehand and
scores are products with rows as they lie. Else a tile of keys is rebuilt, `K = rows W_ukT`, and turned: with the halves of a head
`K1, K2` and of a query `q1, q2`, `q . K = q1 . (K1 cos - K2 sin) + q2 . (K2 cos + K1 sin)`, the query turned to where it stands,
cos and sin of a key's column. What is weighed and summed up are rows; values are made of the sums, outside. The parts are joined
outside too, by their maxima (Milakov & Gimelshein 2018).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Tokens of a tile, and of a part of the context at least.
TILE = 32
PART = 256
#: The widest row that a program sums up.
WIDEST = 1024


@triton.jit
def _decode(  # noqa: ANN202
    q,  # noqa: ANN001  rotated: [sequences, n_heads, d_head]; absorbed: [sequences, n_heads, width]
    bias,  # noqa: ANN001  [sequences, n_heads]: what is added to every score
    w_up,  # noqa: ANN001  rotated: [n_kv_heads, d_head, d_latent]
    b_k,  # noqa: ANN001  rotated: [n_kv_heads, d_head]
    radians,  # noqa: ANN001  rotated: [half]
    cache,  # noqa: ANN001  [pages, 1, page, width]
    table,  # noqa: ANN001  [sequences, pages of a sequence]
    seen,  # noqa: ANN001  [sequences]
    sums,  # noqa: ANN001  [sequences, n_heads, parts, d_sum]
    totals,  # noqa: ANN001  [sequences, n_heads, parts]
    tops,  # noqa: ANN001  [sequences, n_heads, parts]
    scale,  # noqa: ANN001
    softcap,  # noqa: ANN001
    gain,  # noqa: ANN001
    stride_page,  # noqa: ANN001
    stride_row,  # noqa: ANN001
    stride_table,  # noqa: ANN001
    n_heads,  # noqa: ANN001
    parts,  # noqa: ANN001
    part_tokens,  # noqa: ANN001
    page: tl.constexpr,
    width: tl.constexpr,
    first_key: tl.constexpr,
    d_latent: tl.constexpr,
    first_sum: tl.constexpr,
    d_sum: tl.constexpr,
    d_head: tl.constexpr,
    half: tl.constexpr,
    group: tl.constexpr,
    window: tl.constexpr,
    ROTATED: tl.constexpr,
    CAPPED: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    LATENT: tl.constexpr,
    SUM: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    sequence, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tokens = tl.load(seen + sequence)
    heads = tl.arange(0, HEADS)
    is_head = heads < group
    head = sequence * n_heads + kv_head * group + heads
    beside = tl.load(bias + head, mask=is_head, other=0.0)
    over_sum, over_width, over_latent = tl.arange(0, SUM), tl.arange(0, WIDTH), tl.arange(0, LATENT)
    over_half, over_rest = tl.arange(0, HALF), tl.arange(0, REST)
    if ROTATED:
        of_head = q + head[:, None] * d_head
        first = tl.load(of_head + over_half[None], mask=is_head[:, None] & (over_half < half)[None], other=0.0)
        second = tl.load(of_head + half + over_half[None], mask=is_head[:, None] & (over_half < half)[None], other=0.0)
        is_rest = over_rest < d_head - 2 * half
        rest = tl.load(of_head + 2 * half + over_rest[None], mask=is_head[:, None] & is_rest[None], other=0.0)
        turns = tl.load(radians + over_half, mask=over_half < half, other=0.0)
        # [latent, half] of the matrix's rows: what makes either half of a head, and the rest of it.
        made = w_up + kv_head * d_head * d_latent + over_latent[:, None]
        is_latent = (over_latent < d_latent)[:, None]
        up_first = tl.load(made + over_half[None] * d_latent, mask=is_latent & (over_half < half)[None], other=0.0)
        up_second = tl.load(made + (half + over_half[None]) * d_latent, mask=is_latent & (over_half < half)[None], other=0.0)
        up_rest = tl.load(made + (2 * half + over_rest[None]) * d_latent, mask=is_latent & is_rest[None], other=0.0)
        bias_of = b_k + kv_head * d_head
        bias_first = tl.load(bias_of + over_half, mask=over_half < half, other=0.0)
        bias_second = tl.load(bias_of + half + over_half, mask=over_half < half, other=0.0)
        bias_rest = tl.load(bias_of + 2 * half + over_rest, mask=is_rest, other=0.0)
    else:
        query = tl.load(
            q + head[:, None] * width + over_width[None], mask=is_head[:, None] & (over_width < width)[None], other=0.0
        )
    top = tl.full([HEADS], -1e38, tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    summed = tl.zeros([HEADS, SUM], tl.float32)
    start = part * part_tokens
    end = tl.minimum(start + part_tokens, tokens)
    for at in range(start, end, TOKENS):
        column = at + tl.arange(0, TOKENS)
        is_seen = column < end
        if window > 0:
            is_seen = is_seen & (column > tokens - 1 - window)
        pages = tl.load(table + sequence * stride_table + column // page, mask=column < end, other=0).to(tl.int64)
        row = cache + pages * stride_page + (column % page) * stride_row
        if ROTATED:
            latent = tl.load(
                row[:, None] + first_key + over_latent[None], mask=is_seen[:, None] & (over_latent < d_latent)[None], other=0.0
            ).to(tl.float32)
            one = tl.dot(latent, up_first, input_precision="ieee") + bias_first[None]
            two = tl.dot(latent, up_second, input_precision="ieee") + bias_second[None]
            angle = column.to(tl.float32)[:, None] * turns[None]
            cos, sin = tl.cos(angle) * gain, tl.sin(angle) * gain
            key_first, key_second = one * cos - two * sin, two * cos + one * sin
            key_rest = tl.dot(latent, up_rest, input_precision="ieee") + bias_rest[None]
            scores = tl.dot(first, tl.trans(key_first), input_precision="ieee")
            scores += tl.dot(second, tl.trans(key_second), input_precision="ieee")
            scores += tl.dot(rest, tl.trans(key_rest), input_precision="ieee")
        else:
            numbers = tl.load(row[:, None] + over_width[None], mask=is_seen[:, None] & (over_width < width)[None], other=0.0).to(
                tl.float32
            )
            scores = tl.dot(query, tl.trans(numbers), input_precision="ieee")
        scores = (scores + beside[:, None]) * scale
        if CAPPED:
            bounded = scores / softcap
            scores = softcap * (2 / (1 + tl.exp(-2 * bounded)) - 1)
        scores = tl.where(is_seen[None], scores, -1e38)
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.where(is_seen[None], tl.exp(scores - higher[:, None]), 0.0)
        keep = tl.exp(top - higher)
        values = tl.load(
            row[:, None] + first_sum + over_sum[None], mask=is_seen[:, None] & (over_sum < d_sum)[None], other=0.0
        ).to(tl.float32)
        summed = summed * keep[:, None] + tl.dot(weights, values, input_precision="ieee")
        total = total * keep + tl.sum(weights, 1)
        top = higher
    place = head * parts + part
    tl.store(sums + place[:, None] * d_sum + over_sum[None], summed, mask=is_head[:, None] & (over_sum < d_sum)[None])
    tl.store(totals + place, total, mask=is_head)
    tl.store(tops + place, top, mask=is_head)


def claims(attention: Any, form: Any) -> bool:
    """Whether the kernel does what a layer asks: rows of numbers, all of them the layer's own."""
    latents = attention.latents
    return not latents.crossed and form.dtype is None and type(form).__name__ == "Form" and latents.width <= WIDEST


def decode(attention: Any, form: Any, query: Any, cache: Tensor, table: Tensor, seen: Tensor) -> Tensor:
    """One new token a sequence: `[sequences, 1, n_heads * d_head]`.

    `query` has its heads before they are rotated, `[sequences, n_heads, 1, d_head]`; `cache` is `[pages, 1, page, width]`,
    `table` `[sequences, pages]` and `seen` `[sequences]`.
    """
    latents, (made_k, made_v), (_, bias_k, bias_v) = attention.latents, form.terms(attention), attention.biases()
    n_heads, n_kv_heads, d_head = attention.n_heads, attention.n_kv_heads, attention.d_head
    group, device, rotated = n_heads // n_kv_heads, cache.device, query.turning is not None
    sequences, [key], [value] = table.shape[0], made_k, made_v
    heads = query.heads[:, :, 0].float()

    def by_kv_heads(weight: Tensor) -> Tensor:
        return weight.float().unflatten(0, (n_kv_heads, d_head))

    bias = torch.zeros(sequences, n_heads, device=device)
    none = torch.zeros(1, device=device)
    if rotated:
        q = query.rotated()[:, :, 0].float().contiguous()
        w_up, radians, gain = by_kv_heads(key.weight).contiguous(), query.turning.radians.float().to(device), query.turning.gain
        b_k = torch.zeros(n_kv_heads, d_head, device=device) if bias_k is None else by_kv_heads(bias_k).contiguous()
    else:
        grouped = heads.unflatten(1, (n_kv_heads, group))
        q = torch.zeros(sequences, n_heads, latents.width, device=device)
        q[..., key.start : key.start + key.weight.shape[1]] = (grouped @ by_kv_heads(key.weight)).flatten(1, 2)
        if latents.pairs:
            q[..., : latents.d_rope] = query.reading(attention)[:, :, 0].float()
        if bias_k is not None:
            bias = (grouped @ by_kv_heads(bias_k)[..., None])[..., 0].flatten(1, 2).contiguous()
        w_up, b_k, radians, gain = none, none, none, 1.0
    longest = int(seen.max())
    parts = max(1, min(-(-longest // PART), 64))
    d_sum = value.weight.shape[1]
    sums = torch.zeros(sequences, n_heads, parts, d_sum, device=device)
    totals, tops = torch.zeros(sequences, n_heads, parts, device=device), torch.zeros(sequences, n_heads, parts, device=device)
    half, softcap, power = len(radians) if rotated else 1, attention._softcap(), triton.next_power_of_2
    _decode[(sequences, n_kv_heads, parts)](
        q,
        bias,
        w_up,
        b_k,
        radians,
        cache,
        table,
        seen,
        sums,
        totals,
        tops,
        attention._scale(),
        softcap or 1.0,
        gain,
        cache.stride(0),
        cache.stride(2),
        table.stride(0),
        n_heads,
        parts,
        -(-longest // parts),
        page=cache.shape[2],
        width=latents.width,
        first_key=key.start,
        d_latent=key.weight.shape[1],
        first_sum=value.start,
        d_sum=d_sum,
        d_head=d_head,
        half=half,
        group=group,
        window=attention._window() or 0,
        ROTATED=rotated,
        CAPPED=softcap is not None,
        HEADS=max(16, power(group)),
        TOKENS=TILE,
        WIDTH=max(16, power(latents.width)),
        LATENT=max(16, power(key.weight.shape[1])),
        SUM=max(16, power(d_sum)),
        HALF=max(16, power(half)),
        REST=max(16, power(max(d_head - 2 * half, 1))),
    )
    sinks = getattr(attention, "sinks", None)
    top = tops.amax(-1, keepdim=True)
    if sinks is not None:
        top = torch.maximum(top, sinks.float()[:, None])
    keep = (tops - top).exp()
    given = (totals * keep).sum(-1, keepdim=True)
    total = given if sinks is None else given + (sinks.float()[:, None] - top).exp()
    mean = ((sums * keep[..., None]).sum(2) / total).unflatten(1, (n_kv_heads, group))
    out = mean @ by_kv_heads(value.weight).mT
    if bias_v is not None:
        out = out + (given / total).unflatten(1, (n_kv_heads, group)) * by_kv_heads(bias_v)[:, None]
    return out.flatten(1)[:, None].to(query.heads.dtype)
