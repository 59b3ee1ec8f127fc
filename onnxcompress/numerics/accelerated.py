"""Accelerated proximal gradients (FISTA) with adaptive restart, for quadratics and one penalty.

min sum_i 1/2 tr(M_i R_i M_i^T) - tr(M_i T_i^T) + p(M_1, M_2, ...), with the step 1 / max_i L_i,
L_i the largest eigenvalue of R_i. A quadratic's gradient is affine, so the gradient in the
extrapolated point is extrapolated too: one product with each R_i an iteration gives the gradient
in the iterate itself, and with it a subgradient of the whole objective there, to stop on.

References:
    A. Beck and M. Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse
    problems", SIAM J. Imaging Sci. 2 (2009): F(M_k) - F* <= 2 L ||M_0 - M*||^2 / k^2.
    B. O'Donoghue and E. Candès, "Adaptive restart for accelerated gradient schemes", Found.
    Comput. Math. 15 (2015), section 3.2, the gradient scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from onnxcompress.numerics.low_rank import Array
from onnxcompress.numerics.quadratic import Quadratic

Prox = Callable[[list[Array], float], list[Array]]
"""Minimises 1/2 sum ||M_i - A_i||^2 + step p(M), given the A_i and the step."""

_DENSE = 128
_MARGIN = 1e-3


@dataclass(frozen=True, eq=False)
class Iterate:
    """Where the iteration stands.

    Attributes:
        number: 1 for the first step.
        matrices: The M_i, [h_i, d_i].
        gradients: The M_i R_i - T_i, [h_i, d_i].
        residuals: A subgradient of the whole objective at the M_i, [h_i, d_i]; 0 at the minimum.
    """

    number: int
    matrices: list[Array]
    gradients: list[Array]
    residuals: list[Array]


def iterates(
    problems: Sequence[Quadratic],
    prox: Prox,
    start: Sequence[Array],
    *,
    bound: float | None = None,
) -> Iterator[Iterate]:
    """Iterate without end.

    Args:
        problems: The quadratics.
        prox: The proximal operator of the penalty.
        start: The first M_i, [h_i, d_i].
        bound: max_i L_i, where it is known.

    Yields:
        Each step's result.
    """
    if bound is None:
        bound = max(largest_eigenvalue(problem.gram) for problem in problems)
    step = 1.0 / bound if bound > 0 else 1.0
    here = list(start)
    slope = [problem.gradient(m) for problem, m in zip(problems, here, strict=True)]
    before, slope_before = here, slope
    number, momentum = 0, 1
    while True:
        number += 1
        theta = (momentum - 1) / (momentum + 2)
        momentum += 1
        ahead = [m + theta * (m - p) for m, p in zip(here, before, strict=True)]
        slope_ahead = [g + theta * (g - q) for g, q in zip(slope, slope_before, strict=True)]
        before, slope_before = here, slope
        here = prox([a - step * g for a, g in zip(ahead, slope_ahead, strict=True)], step)
        slope = [problem.gradient(m) for problem, m in zip(problems, here, strict=True)]
        jump = [a - m for a, m in zip(ahead, here, strict=True)]
        residuals = [j / step + g - q for j, g, q in zip(jump, slope, slope_ahead, strict=True)]
        yield Iterate(number, here, slope, residuals)
        uphill = sum(float(np.vdot(j, m - p)) for j, m, p in zip(jump, here, before, strict=True))
        if uphill > 0:
            momentum = 1


def largest_eigenvalue(gram: Array) -> float:
    """Bound the largest eigenvalue of a Gram matrix from above.

    Args:
        gram: [d, d], symmetric and positive semi-definite.

    Returns:
        The eigenvalue; for large matrices from Lanczos' method, with a margin over its tolerance.
    """
    width = len(gram)
    if width == 0 or not gram.any():
        return 0.0
    if width <= _DENSE:
        top = scipy.linalg.eigvalsh(gram, subset_by_index=[width - 1, width - 1])
        return max(float(top[0]), 0.0)
    first = np.random.default_rng(0).standard_normal(width)
    top = scipy.sparse.linalg.eigsh(
        gram, k=1, which="LA", v0=first, tol=_MARGIN / 10, return_eigenvectors=False
    )
    return float(top[0]) * (1.0 + _MARGIN)
