"""Fronts against the definition, and a few points that stand for many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxcompress.search.pareto import front, knee, representatives

points_of = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=25)


def dominated(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether the other is no worse in anything and better in something."""
    return all(b <= a for a, b in zip(one, other, strict=True)) and one != other


@given(points_of)
def test_a_front_is_what_nothing_dominates(points: list[tuple[int, ...]]) -> None:
    found = front(np.array(points, dtype=float))
    best = {p for p in points if not any(dominated(p, other) for other in points)}
    assert [points[at] for at in found] == [points[at] for at in sorted(found)]
    assert {points[at] for at in found} == best
    assert len(found) == len(best)


def test_the_knee_has_most_of_everything() -> None:
    curve = np.array([[0.0, 10.0], [1.0, 4.0], [2.0, 1.0], [6.0, 0.5], [10.0, 0.0]])
    assert knee(curve) == 2
    # Units do not matter.
    assert knee(curve * [1.0, 1e6]) == 2
    assert knee(np.array([[1.0, 1.0]])) == 0


def test_representatives_dominate_more_than_any_random_choice() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.uniform(0.0, 1.0, 400)
    times = generator.uniform(0.0, 1.0, 400)
    points = np.stack([(1 - sizes) ** 2 + (1 - times) ** 2, sizes, times], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    drawn = generator.uniform(low, high + 0.1 * (high - low), (5000, 3))

    def dominated_by(chosen: Sequence[int]) -> float:
        return float(np.mean([np.any(np.all(points[chosen] <= at, axis=1)) for at in drawn]))

    best = front(points)
    chosen = representatives(points, 12, seed=1)
    assert len(chosen) == len(set(chosen)) == 12
    assert set(chosen) <= set(best)
    ours = dominated_by(chosen)
    assert ours > 0.75 * dominated_by(best)
    for _ in range(20):
        assert ours > dominated_by(generator.choice(best, 12, replace=False))
    assert representatives(points, 10_000, seed=1) == best


def test_representatives_that_would_add_nothing_are_left_out() -> None:
    points = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert representatives(points, 1, seed=0) == [0]
    # Each is the worst in something.
    points = np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.0]])
    assert representatives(points, 1, seed=0) == [1]
    assert representatives(points, 2, seed=0) in ([0, 1], [1, 2])
