from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage

from onnxcompress.numerics.clustering import cut_at, cut_into, merges

POINTS = np.array([0.0, 0.1, 5.0, 5.3, 9.0, 9.05])
DISTANCES = np.abs(POINTS[:, None] - POINTS)


def naive(distances: np.ndarray, count: int) -> list[set[int]]:
    """Join the two clusters of least mean distance until `count` are left."""
    clusters = [{i} for i in range(len(distances))]
    while len(clusters) > count:
        pairs = [(a, b) for a in range(len(clusters)) for b in range(a)]
        mean = [
            np.mean([distances[i, j] for i in clusters[a] for j in clusters[b]]) for a, b in pairs
        ]
        a, b = pairs[int(np.argmin(mean))]
        clusters[b] |= clusters.pop(a)
    return clusters


@pytest.mark.parametrize("count", range(1, 13))
def test_average_linkage_is_the_naive_one(count: int) -> None:
    points = np.random.default_rng(0).standard_normal((12, 3))
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    labels = cut_into(merges(distances), count)
    found = [set(np.flatnonzero(labels == label).tolist()) for label in range(count)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, naive(distances, count)))


def test_cuts() -> None:
    tree = merges(DISTANCES)
    assert cut_into(tree, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert cut_at(tree, 0.2).tolist() == [0, 0, 1, 2, 3, 3]
    assert cut_at(tree, 0.0).tolist() == list(range(6))
    assert cut_into(tree, 6).tolist() == list(range(6))
    assert cut_into(tree, 99).tolist() == list(range(6))


def test_count_is_kept_where_joins_are_equally_far() -> None:
    tree = merges(1.0 - np.eye(5))
    assert [cut_into(tree, count).max() + 1 for count in range(1, 6)] == [1, 2, 3, 4, 5]


def test_poster_clusters_rows_of_the_matrix_as_points() -> None:
    """Its heights exceed the largest distance, as the poster's 3.05 does."""
    chance = np.random.default_rng(1)
    similar = chance.uniform(0.5, 1.0, (8, 8))
    similar = (similar + similar.T) / 2
    np.fill_diagonal(similar, 1.0)
    tree = merges(1.0 - similar, "poster")
    np.testing.assert_allclose(tree, linkage(similar, "ward"))
    # SciPy warns where a square matrix looks like uncondensed distances; this one must not.
    assert not np.allclose(tree, merges(1.0 - similar))
