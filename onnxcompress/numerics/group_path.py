"""Which groups to keep: the group lasso along a path of lambdas, down to an exact number of groups.

Solutions are found from lambda_max downwards, each from the one before. The number of groups kept
nearly always rises as lambda falls, so an exact number is found by bisection; twins that enter
together are told apart by their norm.

References:
    E. Candès, M. Wakin and S. Boyd, "Enhancing sparsity by reweighted l1 minimization",
    J. Fourier Anal. Appl. 14 (2008), for the rounds of reweighting.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.numerics.group_lasso import GroupLasso, Solution
from onnxcompress.numerics.low_rank import Array
from onnxcompress.numerics.quadratic import Quadratic

_DESCENT = 0.7
_LEAST_FRACTION = 1e-4
_BISECTIONS = 40
# Below this gap of the two lambdas, groups count as entering together.
_TOGETHER = 1e-4
# Added to norms relative to the largest before they are inverted. Less holds on to the first
# choice: a group that is zero once would be penalised out of reach.
_LEAST_NORM = 1.0


@dataclass(frozen=True, eq=False)
class Selection:
    """An exact number of groups to keep.

    Attributes:
        kept: The groups, ascending.
        solution: The solution they were read from: its active groups are those, but for ties.
        exact: Whether its active groups are exactly those.
    """

    kept: tuple[int, ...]
    solution: Solution
    exact: bool


def path(
    problems: Sequence[Quadratic],
    fractions: Sequence[float],
    *,
    weights: Array | None = None,
    scale_invariant: bool = False,
    tolerance: float = 1e-8,
    max_iterations: int = 20_000,
) -> list[Solution]:
    """Solve along a path, each solution started from the one before.

    Args:
        problems: One or more that number their groups together.
        fractions: Lambda as fractions of lambda_max, decreasing.
        weights: w, [G], above 0; 1 by default.
        scale_invariant: As in `GroupLasso`.
        tolerance: As in `GroupLasso.solve`.
        max_iterations: Most steps for one solution.

    Returns:
        A solution for each fraction.

    Raises:
        ValueError: The fractions do not decrease.
        OnnxCompressError: The steps did not suffice.
    """
    if any(after >= before for before, after in itertools.pairwise(fractions)):
        raise ValueError(f"fractions is {list(fractions)}; it takes decreasing numbers")
    ready = GroupLasso(problems, weights, scale_invariant=scale_invariant)
    found: list[Solution] = []
    for fraction in fractions:
        found.append(
            ready.solve(
                fraction * ready.lambda_max,
                start=found[-1].matrices if found else None,
                tolerance=tolerance,
                max_iterations=max_iterations,
            )
        )
    return found


def select(
    problems: Sequence[Quadratic],
    count: int,
    *,
    weights: Array | None = None,
    scale_invariant: bool = False,
    reweighted: int = 0,
    tolerance: float = 1e-6,
    max_iterations: int = 20_000,
) -> Selection:
    """Choose a number of groups.

    Args:
        problems: One or more that number their groups together.
        count: How many to keep, 0 to G.
        weights: w, [G], above 0; 1 by default.
        scale_invariant: As in `GroupLasso`.
        reweighted: Rounds that penalise a group by the inverse of its norm in the round before,
            which takes away most of the bias towards many small groups.
        tolerance: As in `GroupLasso.solve`; which groups are active needs no more digits.
        max_iterations: Most steps for one solution.

    Returns:
        The choice.

    Raises:
        ValueError: The count is out of range.
        OnnxCompressError: The steps did not suffice.
    """
    ready = GroupLasso(problems, weights, scale_invariant=scale_invariant)
    if not 0 <= count <= ready.count:
        raise ValueError(f"count is {count}; it takes 0 to {ready.count}")
    base = ready.weights
    chosen = _bisect(ready, count, None, tolerance, max_iterations)
    for _ in range(reweighted):
        norms = chosen.solution.norms
        top = float(norms.max(initial=0.0))
        if top == 0:
            break
        ready.reweigh(base / (norms / top + _LEAST_NORM))
        start = chosen.solution.matrices
        chosen = _bisect(ready, count, start, tolerance, max_iterations)
    return chosen


def _bisect(
    ready: GroupLasso,
    count: int,
    start: Sequence[Array] | None,
    tolerance: float,
    max_iterations: int,
) -> Selection:
    """Find a lambda at which a given number of groups is active.

    Args:
        ready: The problems.
        count: The number, 0 to G.
        start: Where to begin.
        tolerance: As in `GroupLasso.solve`.
        max_iterations: As in `GroupLasso.solve`.

    Returns:
        The choice.
    """

    def at(lam: float, near: Sequence[Array] | None) -> Solution:
        return ready.solve(lam, start=near, tolerance=tolerance, max_iterations=max_iterations)

    few = at(ready.lambda_max, start)
    many = few
    least = _LEAST_FRACTION * ready.lambda_max
    while len(many.active) < count and many.lam > least:
        few = many
        many = at(_DESCENT * few.lam, few.matrices)
    for _ in range(_BISECTIONS):
        if len(many.active) <= count or many.lam >= (1.0 - _TOGETHER) * few.lam:
            break
        middle = at(math.sqrt(few.lam * many.lam), many.matrices)
        if len(middle.active) < count:
            few = middle
        else:
            many = middle
    return Selection(_strongest(ready, many, count), many, exact=len(many.active) == count)


def _strongest(ready: GroupLasso, solution: Solution, count: int) -> tuple[int, ...]:
    """Order groups by what they contribute, and take the first.

    Args:
        ready: The problems.
        solution: Of them.
        count: How many to take.

    Returns:
        The active groups of largest E||M_g x_g||^2; where there are too few, those as well that
        would become active next. Ties go to the lower number.
    """
    contribution, gradient = np.zeros(ready.count), np.zeros(ready.count)
    for problem, matrix in zip(ready.problems, solution.matrices, strict=True):
        slope = problem.gradient(matrix)
        for group in range(ready.count):
            columns = np.flatnonzero(problem.groups == group)
            block = matrix[:, columns]
            contribution[group] += np.vdot(block, block @ problem.gram[np.ix_(columns, columns)])
            gradient[group] += np.vdot(slope[:, columns], slope[:, columns])
    active = solution.norms > 0
    nearness = np.sqrt(gradient) / ready.weights
    # Rounding must not decide between twins: equal to nine digits counts as equal.
    keys = [
        (not active[group], -float(f"{(contribution if active[group] else nearness)[group]:.9e}"))
        for group in range(ready.count)
    ]
    order = sorted(range(ready.count), key=lambda group: (*keys[group], group))
    return tuple(sorted(order[:count]))
