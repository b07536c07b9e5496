"""What a step of geoopt's Riemannian Adam takes, as one line of JSON: `cargo xtask bench stiefel` runs it.

python xtask/bench/stiefel.py ROWS COLUMNS LEARNING_RATE STEPS
"""

import json
import statistics
import sys
import time
import warnings

warnings.filterwarnings("ignore")
import geoopt  # noqa: E402
import torch  # noqa: E402


def main():
    rows, columns, lr, steps = (float(arg) for arg in sys.argv[1:])
    rows, columns, steps = int(rows), int(columns), int(steps)
    torch.manual_seed(1)
    manifold = geoopt.EuclideanStiefel()
    x = geoopt.ManifoldParameter(torch.linalg.qr(torch.randn(rows, columns))[0], manifold=manifold)
    gradient = torch.randn(rows, columns)
    optimizer = geoopt.optim.RiemannianAdam([x], lr=lr)
    times = []
    for step in range(steps + 1):
        # The optimiser projects it in place.
        x.grad = gradient.clone()
        begun = time.perf_counter()
        optimizer.step()
        if step:
            times.append(time.perf_counter() - begun)
    residual = (x.T @ x - torch.eye(columns)).abs().max().item()
    found = {"median_s": statistics.median(times), "least_s": min(times), "residual": residual}
    print(json.dumps({"torch": torch.__version__, "geoopt": geoopt.__version__, **found}))


if __name__ == "__main__":
    main()
