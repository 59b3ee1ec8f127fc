"""The group lasso on moments against coordinate descent on samples, interleaved along one path.

    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/lasso_solver.py [--limit 240] [--points 20]

Peers: scikit-learn's MultiTaskLasso (groups of one column, many outputs), and skglm's GroupLasso
(groups of nine, one output) where it can be imported. Inputs are correlated and behind a ReLU, as
activations are; the outputs are a layer's. All go down the same path, with tolerances that leave
every gap below 1e-6, each started from its own last solution. At each point one solver after the
other runs; a peer that has used up its limit of seconds ends the comparison there. Seconds are sums
over the points both did; forming the moments from the samples is counted once and shown beside.
The gap is the largest over the points of (objective - best of the two) / best, objectives measured
on the samples.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import MultiTaskLasso

from onnxcompress.numerics.group_lasso import GroupLasso
from onnxcompress.numerics.quadratic import Quadratic

Array = NDArray[np.float64]
Solver = Callable[[float], Array]


def layer(count: int, width: int, height: int) -> tuple[Array, Array]:
    """Inputs [n, d] behind a ReLU, an eighth as many factors as columns, and outputs [n, h]."""
    random = np.random.default_rng(0)
    factors = width // 8
    inputs = random.standard_normal((count, factors)) @ random.standard_normal((factors, width))
    inputs = inputs / np.sqrt(factors) + 0.3 * random.standard_normal((count, width))
    inputs = np.maximum(inputs, 0)
    return inputs, inputs @ random.standard_normal((width, height)) / np.sqrt(width)


def moments(inputs: Array, outputs: Array, size: int) -> Quadratic:
    """What our solver sees."""
    count = len(inputs)
    groups = np.arange(inputs.shape[1]) // size
    energy = float(np.vdot(outputs, outputs)) / count
    return Quadratic(inputs.T @ inputs / count, outputs.T @ inputs / count, energy, groups)


def objective(inputs: Array, outputs: Array, matrix: Array, lam: float, size: int) -> float:
    """1/2 mean squared error and penalty, from the samples."""
    residual = outputs - inputs @ matrix.T
    blocks = matrix.reshape(len(matrix), -1, size)
    norms = np.sqrt((blocks**2).sum(axis=(0, 2)))
    return 0.5 * float(np.vdot(residual, residual)) / len(inputs) + lam * float(norms.sum())


def ours(ready: GroupLasso, tolerance: float) -> Solver:
    """Our solver, warm."""
    last: list[tuple[Array, ...] | None] = [None]

    def run(lam: float) -> Array:
        found = ready.solve(lam, start=last[0], tolerance=tolerance)
        last[0] = found.matrices
        return found.matrices[0]

    return run


def multi_task(inputs: Array, outputs: Array, tolerance: float) -> Solver:
    """scikit-learn's, warm."""
    inputs, outputs = np.asfortranarray(inputs), np.asfortranarray(outputs)
    model = MultiTaskLasso(fit_intercept=False, warm_start=True, tol=tolerance, max_iter=100_000)

    def run(lam: float) -> Array:
        model.set_params(alpha=lam).fit(inputs, outputs)
        return np.array(model.coef_)

    return run


def group_lasso(inputs: Array, outputs: Array, tolerance: float) -> Solver:
    """skglm's, warm and compiled."""
    from skglm import GroupLasso as Peer  # type: ignore[import-not-found]

    def model() -> Any:
        return Peer(
            groups=9,
            alpha=1.0,
            fit_intercept=False,
            warm_start=True,
            tol=tolerance,
            max_iter=500,
        )

    small = np.asfortranarray(inputs[:200, :90])
    model().set_params(alpha=10 * tolerance).fit(small, outputs[:200, 0])
    inputs, peer = np.asfortranarray(inputs), model()

    def run(lam: float) -> Array:
        peer.set_params(alpha=lam).fit(inputs, outputs[:, 0])
        return np.array(peer.coef_)[None]

    return run


def compare(name: str, size: int, height: int, options: argparse.Namespace) -> None:
    """One row of the table: our solver and a peer."""
    inputs, outputs = layer(options.samples, options.width, height)
    began = time.perf_counter()
    problem = moments(inputs, outputs, size)
    forming = time.perf_counter() - began
    began = time.perf_counter()
    ready = GroupLasso([problem])
    setting_up = time.perf_counter() - began
    top = ready.lambda_max
    single = name == "skglm"
    peer = (
        group_lasso(inputs, outputs, options.tolerances[2] * top)
        if single
        else multi_task(inputs, outputs, options.tolerances[1])
    )
    mine, seconds, gaps, active = (
        ours(ready, options.tolerances[0]),
        [setting_up, 0.0],
        [0.0, 0.0],
        0,
    )
    fractions = np.geomspace(0.9, options.least, options.points)
    done = 0
    for fraction in fractions:
        values = []
        for place, solver in enumerate((mine, peer)):
            began = time.perf_counter()
            matrix = solver(float(fraction * top))
            seconds[place] += time.perf_counter() - began
            values.append(objective(inputs, outputs, matrix, fraction * top, size))
            if place == 0:
                active = int(np.count_nonzero(np.abs(matrix).sum(axis=0)))
        gaps = [max(g, v / min(values) - 1) for g, v in zip(gaps, values, strict=True)]
        done += 1
        if seconds[1] > options.limit:
            break
    print(
        f"| {name} | {options.samples} × {options.width} → {height}, groups of {size} "
        f"| {done} of {options.points}, down to {fractions[done - 1]:.3f}, {active} columns "
        f"| {forming:.2f} | {seconds[0]:.2f} | {seconds[1]:.1f} "
        f"| {seconds[1] / seconds[0]:.1f} | {seconds[1] / (seconds[0] + forming):.1f} "
        f"| {gaps[0]:.1e} | {gaps[1]:.1e} |",
        flush=True,
    )


def growth(points: int, tolerance: float) -> None:
    """How the cost of a path grows; medians of three, the cases interleaved."""
    base = {"count": 4608, "width": 576, "height": 64}
    cases = [base, base | {"count": 9216}, base | {"width": 1152}, base | {"height": 128}]
    taken: list[list[tuple[float, float]]] = [[] for _ in cases]
    for _ in range(3):
        for place, case in enumerate(cases):
            inputs, outputs = layer(**case)
            began = time.perf_counter()
            problem = moments(inputs, outputs, 9)
            middle = time.perf_counter()
            ready = GroupLasso([problem])
            solver = ours(ready, tolerance)
            for fraction in np.geomspace(0.9, 0.05, points):
                solver(float(fraction * ready.lambda_max))
            taken[place].append((middle - began, time.perf_counter() - middle))
    medians = [np.median(times, axis=0) for times in taken]
    print("\n| samples | d | h | moments s | path s | path, relative |\n|---|---|---|---|---|---|")
    for case, (forming, solving) in zip(cases, medians, strict=True):
        shape = f"{case['count']} | {case['width']} | {case['height']}"
        print(f"| {shape} | {forming:.3f} | {solving:.3f} | {solving / medians[0][1]:.2f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for each peer")
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--least", type=float, default=0.05, help="the path's last fraction")
    parser.add_argument("--tolerances", type=float, nargs=3, default=[1e-5, 1e-4, 1e-4])
    parser.add_argument("--width", type=int, default=2304)
    parser.add_argument("--samples", type=int, default=4608)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")
    print(
        "| peer | problem | points | moments s | ours s | peer s | ratio | with moments "
        "| our gap | peer's gap |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    compare("MultiTaskLasso", 1, 256, options)
    try:
        compare("skglm", 9, 1, options)
    except ImportError:
        print("| skglm | not installed | | | | | | | | |")
    growth(options.points // 2, options.tolerances[0])


if __name__ == "__main__":
    main()
