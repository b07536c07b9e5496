"""The split of a layer's keys into a rotated key that all heads share and the rest, in plain PyTorch, float64.

    python goldens/deepseek/make.py

Pairs of dimensions as complex numbers, their components under a metric, which of them keep their rotation and what the others
become: the formulas of DeepSeek-V2's decoupled key made of trained weights. Components are known up to a phase, so what is kept
of them here is free of it: the part of a key that goes through the shared key, `A⁻¹[:, c] A[c, :]` summed over the chosen
components, as a real matrix, and the same of what is left, with its gain.
"""

import json
from pathlib import Path

import torch

torch.manual_seed(7)
F64, C128 = torch.float64, torch.complex128
HEADS, D_HEAD, D_ROTARY, PAIRS_KEPT, THETA, REACH, NEAR, LOUDNESS = 3, 7, 6, 4, 50.0, 100.0, 3.0, 1.21
J, D_KV = D_ROTARY // 2, HEADS * D_HEAD


def positive(n: int) -> torch.Tensor:
    half = torch.randn(n, 2 * n, dtype=F64)
    return half @ half.T / n


def pairs_of(moment: torch.Tensor) -> torch.Tensor:
    """`E[z zᴴ]` of each pair: `[J, HEADS, HEADS]`."""
    x = moment.reshape(HEADS, D_HEAD, HEADS, D_HEAD)
    a, b = x[:, :J, :, :], x[:, J:D_ROTARY, :, :]
    d = torch.arange(J)
    re = a[:, d, :, d] + b[:, d, :, d + J]
    im = b[:, d, :, d] - a[:, d, :, d + J]
    return torch.complex(re, im)


def root(m: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    m = m + 1e-4 * m.diagonal().real.mean() * torch.eye(len(m), dtype=C128)
    values, vectors = torch.linalg.eigh(m)
    return tuple(vectors @ torch.diag(values.to(C128) ** p) @ vectors.mH for p in (0.5, -0.5))


def real(blocks: torch.Tensor) -> torch.Tensor:
    """The real `[D_KV, D_KV]` of a complex `[J, HEADS, HEADS]` that acts on pairs."""
    out = torch.zeros(HEADS, D_HEAD, HEADS, D_HEAD, dtype=F64)
    for j in range(J):
        out[:, j, :, j], out[:, j, :, j + J] = blocks[j].real, -blocks[j].imag
        out[:, j + J, :, j], out[:, j + J, :, j + J] = blocks[j].imag, blocks[j].real
    return out.reshape(D_KV, D_KV)


moment, metric = positive(D_KV), positive(D_KV)
frequencies = THETA ** (-torch.arange(J, dtype=F64) * 2 / D_ROTARY)
to, back, spectra = [], [], []
for z, m in zip(pairs_of(moment), pairs_of(metric)):
    s, inverse = root(m)
    values, u = torch.linalg.eigh(s @ z @ s)
    values, u = values.flip(0), u.flip(1)
    to.append(u.mH @ s), back.append(inverse @ u), spectra.append(values)
spectrum = torch.stack(spectra)
turn = (frequencies * REACH) ** 2
worth = spectrum * (turn / (1 + turn))[:, None]
kept = torch.zeros(J, HEADS, dtype=torch.bool)
kept.view(-1)[worth.reshape(-1).argsort(descending=True)[:PAIRS_KEPT]] = True
gain = (1 / (1 - 1j * frequencies * NEAR)).conj() * LOUDNESS
through = torch.stack([back[j][:, kept[j]] @ to[j][kept[j]] for j in range(J)])
rest = torch.stack([gain[j] * (back[j][:, ~kept[j]] @ to[j][~kept[j]]) for j in range(J)])
rest = real(rest)
for place in (h * D_HEAD + i for h in range(HEADS) for i in range(D_ROTARY, D_HEAD)):
    rest[place, place] = 1.0

golden = {
    "versions": {"torch": torch.__version__},
    "heads": HEADS, "d_head": D_HEAD, "d_rotary": D_ROTARY, "pairs_kept": PAIRS_KEPT, "loudness": LOUDNESS,
    "frequencies": frequencies.tolist(),
    "moment": moment.reshape(-1).tolist(),
    "metric": metric.reshape(-1).tolist(),
    "spectrum": spectrum.reshape(-1).tolist(),
    "kept": [[j, c] for j in range(J) for c in range(HEADS) if kept[j, c]],
    "lost": worth[~kept].sum().item(),
    "through": real(through).reshape(-1).tolist(),
    "rest": rest.reshape(-1).tolist(),
}
path = Path(__file__).parent / "golden.json"
path.write_text(json.dumps(golden) + "\n")
