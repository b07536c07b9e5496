"""Steps of geoopt's Riemannian optimisers on small problems, in float64.

Problems, all over matrices with orthonormal columns:
- procrustes: min ½‖AX − B‖²
- brockett:   min ½ tr(XᵀAXN), A symmetric, N = diag(p, …, 1)
- quadratic:  min ½ tr(XᵀAX) + tr(BᵀX), A symmetric positive definite

in three shapes: tall, square, and wide. geoopt knows orthonormal columns only, so a wide problem is its transpose, and is
stored with `"rows": true`: X, the start and the iterates there are the transposes.

Each run stores iterates after 1, 10 and 50 steps and the first ten losses. Each case stores the loss that gradient descent
with Nesterov's momentum settles at in 10 000 steps: what an optimiser whose steps differ by design must reach too.
"""

import json
import platform
from pathlib import Path

import geoopt
import torch

HERE = Path(__file__).resolve().parent
SEED = 20
SHAPES = {"tall": (10, 4), "square": (5, 5), "wide": (9, 3)}
PROBLEMS = ("procrustes", "brockett", "quadratic")
KEPT = (1, 10, 50)
SETTLED = 10_000
RUNS = {
    "sgd": ("sgd", {"lr": 0.05}),
    "momentum": ("sgd", {"lr": 0.02, "momentum": 0.9, "dampening": 0.1}),
    "nesterov": ("sgd", {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    "adam": ("adam", {"lr": 0.1}),
    "amsgrad": ("adam", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1}),
}


def data(problem, n, p, gen):
    def normal(*size):
        return torch.randn(*size, generator=gen, dtype=torch.float64)

    start = torch.linalg.qr(normal(n, p))[0]
    if problem == "procrustes":
        a = torch.eye(n, dtype=torch.float64) + 0.3 * normal(n, n)
        return start, a, a @ torch.linalg.qr(normal(n, p))[0] + 0.1 * normal(n, p)
    # Eigenvalues 1 to 4, apart from each other.
    q = torch.linalg.qr(normal(n, n))[0]
    a = q @ torch.diag(torch.linspace(1, 4, n, dtype=torch.float64)) @ q.T
    if problem == "brockett":
        return start, a, torch.diag(torch.arange(p, 0, -1, dtype=torch.float64))
    return start, a, normal(n, p)


def loss(problem, x, a, b):
    if problem == "procrustes":
        return 0.5 * (a @ x - b).square().sum()
    if problem == "brockett":
        return 0.5 * torch.trace(x.T @ a @ x @ b)
    return 0.5 * torch.trace(x.T @ a @ x) + torch.trace(b.T @ x)


def run(problem, start, a, b, algorithm, options, manifold, settle):
    x = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
    kind = {"sgd": geoopt.optim.RiemannianSGD, "adam": geoopt.optim.RiemannianAdam}[algorithm]
    optimizer = kind([x], **options)
    iterates, losses = {}, []
    for step in range(1, SETTLED + 1 if settle else KEPT[-1] + 1):
        optimizer.zero_grad()
        f = loss(problem, x, a, b)
        f.backward()
        if step <= 10:
            losses.append(f.item())
        optimizer.step()
        if step in KEPT:
            iterates[step] = x.detach().clone()
    return iterates, losses, loss(problem, x, a, b).item()


def main():
    torch.set_default_dtype(torch.float64)
    cases = []
    for shape, (n, p) in SHAPES.items():
        for problem in PROBLEMS:
            gen = torch.Generator().manual_seed(SEED + 7 * len(cases))
            start, a, b = data(problem, n, p, gen)
            turn = (lambda m: m.T) if shape == "wide" else (lambda m: m)
            runs = {}
            for name, (algorithm, options) in RUNS.items():
                iterates, losses, final = run(
                    problem, start, a, b, algorithm, options, geoopt.EuclideanStiefel(), settle=name == "nesterov"
                )
                runs[name] = {
                    "algorithm": algorithm,
                    **options,
                    "iterates": {step: turn(x).tolist() for step, x in iterates.items()},
                    "losses": losses,
                }
                if name == "nesterov":
                    settled = final
            cases.append(
                {
                    "problem": problem,
                    "shape": shape,
                    "rows": shape == "wide",
                    "start": turn(start).tolist(),
                    "a": a.tolist(),
                    "b": b.tolist(),
                    "settled_loss": settled,
                    "runs": runs,
                }
            )
            print(problem, shape, settled, flush=True)
    versions = {"python": platform.python_version(), "torch": torch.__version__, "geoopt": geoopt.__version__}
    golden = {"made_by": versions, "seed": SEED, "cases": cases}
    (HERE / "golden.json").write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
