"""The choice among candidates: a multiple-choice knapsack, solved exactly (HiGHS through SciPy).

At each site one candidate is taken, or the layer stays as it is. Either the sum of predicted
damage is minimised under demands on what must be saved, or the saving is maximised under a budget
of damage. Every row is scaled to a right-hand side of one, so that the solver's absolute tolerance
is a relative one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from onnxcompress.errors import BoundError

Array = NDArray[np.float64]
Conflicts = Sequence[tuple[int, int]]

_TINY = 1e-300
_MAX_CUTS = 100
_LIMIT_REACHED = 1


@dataclass(frozen=True)
class Solution:
    """What the solver found.

    Attributes:
        picks: per site the index of the candidate taken, or None to leave the layer.
        gap: how far the objective may be from the best there is, as a fraction of it; 0 where the
            solver proved that nothing is better.
    """

    picks: tuple[int | None, ...]
    gap: float


def least_damage(
    sites: Sequence[Sequence[float]],
    savings: Mapping[str, Sequence[Sequence[float]]],
    demands: Mapping[str, float],
    *,
    conflicts: Conflicts = (),
) -> Solution | None:
    """Choose so that every demand is met with the least total damage.

    Args:
        sites: damage of each candidate at each site.
        savings: per resource, what each candidate at each site saves (may be negative).
        demands: per resource, how much must be saved in all.
        conflicts: pairs of sites of which only one may be rewritten.

    Returns:
        The choice; None if the demands cannot be met.

    Raises:
        BoundError: no choice was found within the solver's minute.
    """
    binding = [(_flat(savings[name]), value) for name, value in demands.items() if value > 0.0]
    rows = [(saved / value, 1.0) for saved, value in binding]
    damage = _flat(sites)
    # A choice costs a little by itself, so that nothing is rewritten without need.
    objective = damage / max(damage.max(initial=0.0), _TINY) + 1e-6
    for _ in range(_MAX_CUTS):
        found = _solve(sites, objective, rows, conflicts)
        if found is None:
            return None
        taken = _mask(sites, found.picks)
        if all(saved[taken].sum() >= value * (1.0 - 1e-12) for saved, value in binding):
            return found
        # The solver's tolerance let something pass that falls short by a hair: exclude just that.
        rows.append((np.where(taken, -1.0, 1.0), 1.0 - float(taken.sum())))
    return None


def most_saved(
    sites: Sequence[Sequence[float]],
    saving: Sequence[Sequence[float]],
    budget: float | None,
    *,
    conflicts: Conflicts = (),
) -> Solution:
    """Choose so that the most is saved while the total damage stays within `budget`.

    Args:
        sites: damage of each candidate at each site.
        saving: what each candidate at each site saves.
        budget: total damage allowed; None for any.
        conflicts: pairs of sites of which only one may be rewritten.

    Raises:
        BoundError: no choice was found within the solver's minute.
    """
    gains, damage = _flat(saving), _flat(sites)
    rows = []
    if budget is not None:
        # What does not fit alone cannot be part of any choice.
        gains = np.where(damage <= budget, gains, -np.abs(gains).max(initial=_TINY))
        if budget > 0.0:
            rows.append((-damage / budget, -1.0))
    scale = max(np.abs(gains).max(initial=0.0), _TINY)
    # Among equal savings the smaller damage is taken: the tie-break is far below one unit.
    tie = 1e-6 * damage / max(damage.max(initial=0.0), _TINY)
    found = _solve(sites, tie - gains / scale, rows, conflicts)
    return found if found is not None else Solution((None,) * len(sites), 0.0)


def _solve(
    sites: Sequence[Sequence[float]],
    objective: Array,
    rows: Sequence[tuple[Array, float]],
    conflicts: Conflicts,
) -> Solution | None:
    """Minimise `objective` over one candidate or none per site, with `row @ x >= least` each."""
    count = len(objective)
    if count == 0:
        nothing = Solution((None,) * len(sites), 0.0)
        return nothing if all(least <= 0.0 for _, least in rows) else None
    owner = np.repeat(np.arange(len(sites)), [len(site) for site in sites])
    one_each = csr_array((np.ones(count), (owner, np.arange(count))), shape=(len(sites), count))
    constraints = [LinearConstraint(one_each, -np.inf, 1.0)]
    if conflicts:
        pairs = csr_array(
            (
                np.ones(2 * len(conflicts)),
                (np.repeat(np.arange(len(conflicts)), 2), np.ravel(conflicts)),
            ),
            shape=(len(conflicts), len(sites)),
        )
        constraints.append(LinearConstraint(pairs @ one_each, -np.inf, 1.0))
    constraints += [LinearConstraint(row[None, :], least, np.inf) for row, least in rows]
    with _muted_stdout():
        result = milp(
            objective,
            integrality=np.ones(count),
            bounds=Bounds(0.0, 1.0),
            constraints=constraints,
            options={"mip_rel_gap": 0.0, "time_limit": 60.0},
        )
    if result.x is None:
        if result.status == _LIMIT_REACHED:
            raise BoundError("the planner found no choice within its time limit: name fewer passes")
        return None
    taken = np.flatnonzero(result.x > 0.5)
    first = np.searchsorted(owner, np.arange(len(sites)))
    chosen: list[int | None] = [None] * len(sites)
    for index in taken:
        chosen[owner[index]] = int(index - first[owner[index]])
    return Solution(tuple(chosen), float(result.mip_gap or 0.0))


@contextmanager
def _muted_stdout() -> Iterator[None]:
    """Keep HiGHS quiet: it prints past Python to a descriptor that may carry the model."""
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:
        # Standard output is closed: there is nothing to protect.
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(sink)


def _mask(sites: Sequence[Sequence[float]], chosen: Sequence[int | None]) -> NDArray[np.bool_]:
    """Which of all candidates, in flat order, are taken."""
    return np.array(
        [
            index == pick
            for site, pick in zip(sites, chosen, strict=True)
            for index in range(len(site))
        ],
        dtype=bool,
    )


def _flat(values: Sequence[Sequence[float]]) -> Array:
    return np.array([v for site in values for v in site], dtype=np.float64)
