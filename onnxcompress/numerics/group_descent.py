"""The group lasso on a working set: accelerated gradient steps, then Newton's.

Gradient steps tell which groups are zero, whatever the start; Newton's then finish where gradient
steps would need hundreds of iterations because R is badly conditioned, as that of activations
behind a ReLU is. Neither raises the objective for long, and should Newton's not help, gradient
steps carry on in ever longer runs, so that their guarantee stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg

from onnxcompress.numerics.accelerated import iterates, largest_eigenvalue
from onnxcompress.numerics.group_newton import newton, worthwhile
from onnxcompress.numerics.low_rank import Array
from onnxcompress.numerics.quadratic import Quadratic

_BURST = 5


def descend(
    problems: Sequence[Quadratic],
    penalty: Array,
    start: Sequence[Array],
    *,
    goal: float,
    budget: int,
) -> tuple[list[Array], int]:
    """Minimise sum_i 1/2 E||y_i - M_i x_i||^2 + sum_g c_g sqrt(sum_i ||M_i,g||_F^2).

    Args:
        problems: Their columns ascend by group; none is free.
        penalty: c, [G], above 0.
        start: The M_i to begin from, [h_i, d_i].
        goal: The largest norm over the groups of a subgradient to stop at.
        budget: Most steps.

    Returns:
        The M_i and the number of steps; it is the budget where the goal was not reached.
    """
    parts: list[Quadratic] = []
    spans: list[Array | None] = []
    first: list[Array] = []
    for problem, matrix in zip(problems, start, strict=True):
        cross, begin, span = problem.cross, matrix, None
        if cross.shape[0] > cross.shape[1]:
            # At the minimum M's rows' combinations are T's: coordinates in its span are enough.
            span, cross = scipy.linalg.qr(cross, mode="economic")
            begin = span.T @ begin
        parts.append(Quadratic(problem.gram, cross, problem.energy, problem.groups))
        spans.append(span)
        first.append(begin)
    bound = max(largest_eigenvalue(part.gram) for part in parts)
    used, burst = 0, _BURST
    while True:
        first, steps, reached = _burst(
            parts, penalty, first, goal, min(burst, budget - used), bound
        )
        used += steps
        if reached or used >= budget:
            break
        if worthwhile(parts):
            first, steps = newton(parts, penalty, first, 0.5 * goal)
            used += steps
        burst *= 2
    found = [
        matrix if span is None else span @ matrix for matrix, span in zip(first, spans, strict=True)
    ]
    return found, used


def group_norms(matrices: Sequence[Array], problems: Sequence[Quadratic], count: int) -> Array:
    """Measure every group over all matrices.

    Args:
        matrices: [h_i, d_i].
        problems: Whose groups are those of the columns; none is free.
        count: The number of groups.

    Returns:
        sqrt(sum_i ||M_i,g||_F^2), [G].
    """
    squares = np.zeros(count)
    for matrix, problem in zip(matrices, problems, strict=True):
        columns = np.einsum("ij,ij->j", matrix, matrix)
        squares += np.bincount(problem.groups, weights=columns, minlength=count)
    return np.asarray(np.sqrt(squares))


def group_threshold(
    matrices: Sequence[Array], problems: Sequence[Quadratic], amount: Array
) -> list[Array]:
    """Shorten every group by an amount, those no longer than it to zero.

    Args:
        matrices: [h_i, d_i].
        problems: Whose groups are those of the columns; none is free.
        amount: [G].

    Returns:
        A_g max(0, 1 - amount_g / sqrt(sum_i ||A_i,g||^2)), [h_i, d_i].
    """
    norms = group_norms(matrices, problems, amount.size)
    share = np.divide(amount, norms, out=np.ones_like(norms), where=norms > amount)
    return [
        matrix * (1.0 - share)[problem.groups]
        for matrix, problem in zip(matrices, problems, strict=True)
    ]


def _burst(
    parts: Sequence[Quadratic],
    penalty: Array,
    first: Sequence[Array],
    goal: float,
    most: int,
    bound: float,
) -> tuple[list[Array], int, bool]:
    """Run gradient steps; returns where they end, how many they were, whether that is the goal."""

    def prox(points: list[Array], step: float) -> list[Array]:
        return group_threshold(points, parts, step * penalty)

    for state in iterates(parts, prox, first, bound=bound):
        residual = group_norms(state.residuals, parts, penalty.size)
        reached = bool(residual.max(initial=0.0) <= goal)
        if reached or state.number >= most:
            return state.matrices, state.number, reached
    raise AssertionError("the iteration has no end")
