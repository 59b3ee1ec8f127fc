"""Fronts against the definition, and a few points that stand for many."""

from __future__ import annotations

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


def test_representatives_lie_on_the_front_over_its_whole_length() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.uniform(0.0, 1.0, 400)
    times = generator.uniform(0.0, 1.0, 400)
    points = np.stack([(1 - sizes) ** 2 + (1 - times) ** 2, sizes, times], axis=1)
    chosen = representatives(points, 12, (1, 2))
    best = front(points)
    assert len(chosen) == len(set(chosen)) == 12
    assert set(chosen) <= set(best)
    for axis in (1, 2):
        assert np.ptp(points[chosen, axis]) > 0.8 * np.ptp(points[best, axis])
    assert representatives(points, 10_000, (1, 2)) == best
