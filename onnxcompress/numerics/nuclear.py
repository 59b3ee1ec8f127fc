"""Low-rank reconstruction of a layer's output by the nuclear norm, the soft relaxation.

min 1/2 E||y - M x||^2 + lambda ||M||_* (Linear Neural Reconstruction, D. A. R. Robin 2019). The
hard version, the best M of a given rank, has a closed form: `data_low_rank`.

References:
    J.-F. Cai, E. Candès and Z. Shen, "A singular value thresholding algorithm for matrix
    completion", SIAM J. Optim. 20 (2010), theorem 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcompress.errors import OnnxCompressError
from onnxcompress.numerics.accelerated import iterates
from onnxcompress.numerics.low_rank import Array
from onnxcompress.numerics.quadratic import Quadratic


@dataclass(frozen=True, eq=False)
class NuclearSolution:
    """The minimum of 1/2 E||y - M x||^2 + lambda ||M||_*.

    Attributes:
        matrix: M, [h, d].
        rank: Of M: the number of singular values that the threshold left.
        objective: Its value.
        kkt: The Frobenius norm of a subgradient at M, in the units of T.
        iterations: Steps taken.
    """

    matrix: Array
    rank: int
    objective: float
    kkt: float
    iterations: int


def lambda_max(problem: Quadratic) -> float:
    """Find the smallest lambda whose solution is zero.

    Args:
        problem: The problem.

    Returns:
        ||T||_2.
    """
    return float(np.linalg.norm(problem.cross, 2)) if problem.cross.size else 0.0


def solve(
    problem: Quadratic,
    lam: float,
    *,
    start: Array | None = None,
    tolerance: float = 1e-9,
    max_iterations: int = 20_000,
) -> NuclearSolution:
    """Minimise 1/2 E||y - M x||^2 + lambda ||M||_*.

    Args:
        problem: The problem; its groups play no part.
        lam: Lambda, above 0.
        start: Where to begin, [h, d]; zero by default.
        tolerance: Largest subgradient to stop at, relative to lambda_max.
        max_iterations: Most steps.

    Returns:
        The solution.

    Raises:
        ValueError: Lambda is not above 0.
        OnnxCompressError: The steps did not suffice.
    """
    if not 0 < lam < np.inf:
        raise ValueError(f"lambda is {lam}; it takes a finite number above 0")
    top = lambda_max(problem)
    if lam >= top:
        return NuclearSolution(np.zeros_like(problem.cross), 0, 0.5 * problem.energy, 0.0, 0)
    thresholded: list[Array] = []

    def prox(points: list[Array], step: float) -> list[Array]:
        matrix, values = threshold(points[0], step * lam)
        thresholded[:] = [values]
        return [matrix]

    first = np.zeros_like(problem.cross) if start is None else start
    for state in iterates([problem], prox, [first]):
        kkt = float(np.linalg.norm(state.residuals[0]))
        if kkt <= tolerance * top:
            break
        if state.number >= max_iterations:
            raise OnnxCompressError(
                f"the nuclear norm problem at lambda {lam:.3g} is at a subgradient of {kkt:.1e} "
                f"after {max_iterations} iterations; raise lambda, max_iterations or tolerance"
            )
    matrix, values = state.matrices[0], thresholded[0]
    objective = 0.5 * problem.error(matrix) + lam * float(values.sum())
    return NuclearSolution(matrix, values.size, objective, kkt, state.number)


def threshold(matrix: Array, amount: float) -> tuple[Array, Array]:
    """Lower every singular value by an amount, those below it to zero.

    Args:
        matrix: [m, n].
        amount: Above 0.

    Returns:
        The matrix of the lowered singular values, [m, n], and those of them above zero.
    """
    # The eigenvectors of the smaller Gram matrix: values far below the amount, which squaring
    # loses, are cut away anyhow.
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    squares, vectors = np.linalg.eigh(wide @ wide.T)
    kept = squares > amount**2
    values = np.sqrt(squares[kept])
    left = vectors[:, kept]
    lowered = (left * (1.0 - amount / values)) @ (left.T @ wide)
    return (lowered if wide is matrix else lowered.T), values - amount
