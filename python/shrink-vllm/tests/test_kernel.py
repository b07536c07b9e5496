"""The Triton kernel against the tiles of the folder's own code, in Triton's interpreter: no GPU is asked for.

TRITON_INTERPRET=1 SHRINK_CASES=… PYTHONPATH=python/shrink-vllm/src pytest python/shrink-vllm/tests
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from shrink_vllm import kernel
from shrink_vllm import modeling_shrink as shrink
from shrink_vllm.configuration_shrink import ShrinkConfig

PAGE, BOUND = 16, 1e-4
CLAIMED = ("separate", "joint", "xkv", "deepseek")


@dataclass(frozen=True)
class Query(shrink.Query):
    """Queries of sequences whose column is their position."""

    def behind(self, start: int, t_kv: int) -> torch.Tensor:
        return self.positions - start


def cases() -> list[Path]:
    root = Path(os.environ["SHRINK_CASES"])
    found = [path.parent for path in sorted(root.glob("*/config.json")) if path.parent.name.split(".")[1] in CLAIMED]
    if not found:
        raise pytest.UsageError(f"{root} holds no case")
    return found


def opened(path: Path) -> Any:
    config = ShrinkConfig.from_pretrained(path)
    return shrink.model_class(config.__class__).from_pretrained(path, config=config, dtype=torch.float32).eval()


@pytest.mark.parametrize("path", cases(), ids=lambda path: path.name)
def test_the_kernel_is_the_tiles(path: Path) -> None:
    model = opened(path)
    torch.manual_seed(0)
    seen = torch.tensor([37, 300, 1])
    pages = -(-int(seen.max()) // PAGE)
    table = torch.randperm(len(seen) * pages).view(len(seen), pages)
    checked = 0
    for layer, latents in enumerate(shrink.layers_of(model.config)):
        attention, form = shrink.attention_of(model, layer), shrink.form_of(model.config)
        if latents is None or not kernel.claims(attention, form):
            continue
        cache = torch.randn(len(seen) * pages, 1, PAGE, latents.width)
        turning, shared = shrink.rotations_of(attention)
        heads = torch.randn(len(seen), attention.n_heads, 1, attention.d_head)
        query = Query(heads, (seen - 1)[:, None], turning, shared)
        with torch.no_grad():
            found = kernel.decode(attention, form, query, cache, table, seen)
            for row, tokens in enumerate(seen.tolist()):
                rows = cache[table[row], 0].flatten(0, 1)[None, :tokens]
                one = Query(heads[row : row + 1], query.positions[row : row + 1], turning, query.shared)
                mask = torch.ones(1, 1, 1, tokens, dtype=torch.bool)
                if (window := attention._window()) is not None:
                    mask[..., : max(tokens - window, 0)] = False
                right = attention._walk(one, {layer: rows}, form, mask, {})[0].flatten(2)
                gap = (found[row] - right[0]).abs().max().item()
                assert gap < BOUND * max(1.0, right.abs().max().item()), f"layer {layer}, {tokens} tokens: {gap:e}"
        checked += 1
    assert checked
