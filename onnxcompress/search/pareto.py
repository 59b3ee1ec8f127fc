"""Which of many networks are worth having: fronts, a knee, and a few that stand for the rest."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_DRAWN = 2**14
"""Random points that a volume is measured by."""

_MARGIN = 0.1
"""How far the volume reaches beyond the worst, as a part of the range."""


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


def representatives(points: Floats, count: int, seed: int) -> list[int]:
    """A few points of the front that together dominate the most of what all points span.

    They are taken one after the other, each time the one that adds most to the dominated volume
    (measured at random points, the same for the same seed), which is at least 1 - 1/e of the best.

    Args:
        points: objectives [n, d], smaller is better.
        count: how many, at most.
        seed: of the random points.

    Returns:
        Indices of points, ascending; fewer than `count` where others would add nothing.
    """
    best = front(points)
    if len(best) <= count:
        return best
    low, high = points.min(axis=0), points.max(axis=0)
    # What is worst in one thing may be best in another: it shall dominate something, too.
    high = high + _MARGIN * (high - low)
    drawn = np.random.default_rng(seed).uniform(low, high, (_DRAWN, points.shape[1]))
    covers = np.stack([np.all(points[at] <= drawn, axis=1) for at in best])
    free = np.ones(_DRAWN, dtype=bool)
    taken: list[int] = []
    while len(taken) < count:
        gains = covers[:, free].sum(axis=1)
        most = int(np.argmax(gains))
        if taken and not gains[most]:
            break
        taken.append(best[most])
        free &= ~covers[most]
    return sorted(taken)
