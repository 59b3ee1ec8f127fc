"""Which of many networks are worth having: fronts, a knee, and a few that stand for the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def front(points: Floats) -> list[int]:
    """The points that no other one dominates: no worse in anything and better in something.

    Args:
        points: objectives [n, d], smaller is better. Of equal points the first counts.
    """
    # What comes earlier in this order is never dominated by what comes later.
    order = np.lexsort(points.T[::-1])
    kept: list[int] = []
    for at in order:
        if not kept or not np.any(np.all(points[kept] <= points[at], axis=1)):
            kept.append(int(at))
    return sorted(kept)


def knee(points: Floats) -> int:
    """The point of a front that is nearest to having the best of everything at once.

    Objectives are scaled to the range that they take on the front.

    Args:
        points: objectives [n, d] of the front, smaller is better.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    return int(np.argmin(np.linalg.norm(scaled, axis=1)))


def representatives(points: Floats, count: int, by: Sequence[int]) -> list[int]:
    """A few points of the front: of every size (or latency) the one that errs least.

    Points are binned by one objective after the other, as many bins as are needed; in every bin the
    one that is least in the first objective is taken.

    Args:
        points: objectives [n, d], smaller is better; the first is what is to be small in a bin.
        count: how many, at most.
        by: the objectives that bins are made of.

    Returns:
        Indices of points, ascending.
    """
    best = front(points)
    if len(best) <= count:
        return best
    bins, taken = max(1, count // len(by)), set[int]()
    while len(taken) < count:
        wanted = [at for axis in by for at in _least_in_bins(points, best, axis, bins)]
        fresh = [at for at in dict.fromkeys(wanted) if at not in taken]
        taken.update(fresh[: count - len(taken)])
        bins += 1
    return sorted(taken)


def _least_in_bins(points: Floats, among: Sequence[int], axis: int, bins: int) -> list[int]:
    values = points[among, axis]
    edges = np.linspace(values.min(), values.max(), bins + 1)
    where = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        inside = [at for at, place in zip(among, where, strict=True) if place == number]
        if inside:
            found.append(min(inside, key=lambda at: (points[at, 0], *points[at])))
    return found
