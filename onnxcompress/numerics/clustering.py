"""Agglomerative clustering by distances, cut by a threshold or into a number of clusters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

Array = NDArray[np.float64]

LINKAGES = ("average", "complete", "single", "poster")


def merges(distances: Array, method: str = "average") -> Array:
    """The order in which things join, as SciPy's linkage matrix [n - 1, 4].

    Args:
        distances: [n, n], symmetric with a diagonal of zeros, n >= 2.
        method: average, complete or single, on these distances; or poster: Ward's method on the
            rows of the matrix 1 - distances as if they were points, which is what the dendrograms
            of Sehgal (2022) show.
    """
    if method == "poster":
        return np.asarray(linkage(1.0 - distances, "ward"))
    return np.asarray(linkage(squareform(distances, checks=False), method))


def cut_at(tree: Array, threshold: float) -> NDArray[np.intp]:
    """The cluster of everything when nothing joins that is farther apart than `threshold`."""
    return numbered(fcluster(tree, threshold, "distance"))


def cut_into(tree: Array, count: int) -> NDArray[np.intp]:
    """The cluster of everything when `count` clusters are left, by undoing the last joins.

    Unlike a cut by distance this gives the number asked for where joins are equally far apart.
    """
    things = len(tree) + 1
    members: dict[int, list[int]] = {thing: [thing] for thing in range(things)}
    for step, (one, other) in enumerate(tree[: things - max(1, min(count, things)), :2]):
        members[things + step] = members.pop(int(one)) + members.pop(int(other))
    found = np.zeros(things, dtype=np.intp)
    for number, mine in enumerate(members.values()):
        found[mine] = number
    return numbered(found)


def numbered(labels: NDArray[np.integer]) -> NDArray[np.intp]:
    """Labels counted from 0 in the order in which they first appear."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return np.asarray(order[inverse], dtype=np.intp)
