"""The choice among candidates: a multiple-choice knapsack, solved exactly (HiGHS through SciPy).

At each site one candidate is taken, or the layer stays as it is. Either the sum of predicted
damage is minimised under demands on what must be saved, or the saving is maximised under a budget
of damage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

Array = NDArray[np.float64]


def least_damage(
    sites: Sequence[Sequence[float]],
    savings: Mapping[str, Sequence[Sequence[float]]],
    demands: Mapping[str, float],
) -> list[int | None] | None:
    """Choose so that every demand is met with the least total damage.

    Args:
        sites: damage of each candidate at each site.
        savings: per resource, what each candidate at each site saves (may be negative).
        demands: per resource, how much must be saved in all.

    Returns:
        Per site the index of the candidate taken, or None to leave the layer; None altogether if
        the demands cannot be met.
    """
    rows = [_flat(savings[name]) for name in demands]
    scales = [max(np.abs(row).max(initial=0.0), 1e-300) for row in rows]
    matrix = np.array([row / scale for row, scale in zip(rows, scales, strict=True)])
    least = np.array([value / s for value, s in zip(demands.values(), scales, strict=True)])
    return _solve(sites, _flat(sites), matrix, least)


def most_saved(
    sites: Sequence[Sequence[float]], saving: Sequence[Sequence[float]], budget: float
) -> list[int | None]:
    """Choose so that the most is saved while the total damage stays within `budget`."""
    gains, damage = _flat(saving), _flat(sites)
    scale = max(np.abs(gains).max(initial=0.0), 1e-300)
    # Among equal savings the smaller damage is taken: the tie-break is far below one unit.
    objective = -gains / scale + 1e-9 * damage
    chosen = _solve(sites, objective, -damage[None, :], np.array([-budget]))
    return chosen if chosen is not None else [None] * len(sites)


def _solve(
    sites: Sequence[Sequence[float]], objective: Array, matrix: Array, least: Array
) -> list[int | None] | None:
    count = len(objective)
    if count == 0:
        return [None] * len(sites) if not np.any(least > 0) else None
    owner = np.repeat(np.arange(len(sites)), [len(site) for site in sites])
    one_each = csr_array((np.ones(count), (owner, np.arange(count))), shape=(len(sites), count))
    constraints = [LinearConstraint(one_each, -np.inf, 1.0)]
    if len(least):
        constraints.append(LinearConstraint(matrix, least, np.inf))
    result = milp(
        objective,
        integrality=np.ones(count),
        bounds=Bounds(0.0, 1.0),
        constraints=constraints,
        options={"mip_rel_gap": 1e-6, "time_limit": 60.0},
    )
    if result.x is None:
        return None
    taken = np.flatnonzero(result.x > 0.5)
    first = np.searchsorted(owner, np.arange(len(sites)))
    chosen: list[int | None] = [None] * len(sites)
    for index in taken:
        chosen[owner[index]] = int(index - first[owner[index]])
    return chosen


def _flat(values: Sequence[Sequence[float]]) -> Array:
    return np.array([v for site in values for v in site], dtype=np.float64)
