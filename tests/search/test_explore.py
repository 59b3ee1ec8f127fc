"""Large spaces: found without listing them, and better than by chance."""

from __future__ import annotations

import importlib.util
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from onnxcompress.errors import BoundError, UsageError
from onnxcompress.search.constraints import parse_constraint
from onnxcompress.search.estimates import Estimates, Sums
from onnxcompress.search.explore import LOST, candidates, evolved, selected
from onnxcompress.search.pareto import front
from onnxcompress.search.space import Space

RATIOS = (1.0, 0.75, 0.5, 0.25)


def large(constraint: str = "none", superblocks: int = 15) -> tuple[Space, Estimates]:
    """A made-up network: errors grow with the square of what is saved, unlike in every part."""
    generator = np.random.default_rng(7)
    gone = 1.0 - np.array(RATIOS)

    def sums(weights: np.ndarray) -> Sums:
        single = tuple(float(w) * gone * 1000.0 for w in weights)
        pairs = {
            (at, at + 1): -200.0 * float(weights[at]) * np.outer(gone, gone)
            for at in range(superblocks - 1)
        }
        return Sums(single, pairs)

    names = [str(number) for number in range(1, superblocks + 1)]
    octets, ms = generator.uniform(0.2, 1.0, (2, superblocks))
    error = tuple(float(w) * gone**2 for w in 10.0 ** generator.uniform(-3, 0, superblocks))
    counted = {"weight_bytes": sums(octets), "macs": sums(ms)}
    estimates = Estimates(error, counted, sums(ms), 20_000, 20_000.0)
    return Space((RATIOS,) * superblocks, parse_constraint(constraint, names)), estimates


def hypervolume(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """The share of a box that is dominated, by 20,000 random points (the same ones every time)."""
    drawn = np.random.default_rng(11).uniform(low, high, (20_000, 3))
    best = points[front(points)]
    return float(np.mean([np.any(np.all(best <= one, axis=1)) for one in drawn]))


needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None,
    reason="Optuna is not installed: the extra `distributed`, with which CI runs",
)


@needs_optuna
@pytest.mark.parametrize("constraint", ["none", "c1 >= c15 and c2 + c3 < 2"])
def test_100_evaluations_beat_1000_random_ones(constraint: str) -> None:
    space, estimates = large(constraint)
    assert space.size > 10**9
    found = evolved(space, estimates, 0, 100)
    assert len(found) == len({tuple(v) for v in found}) <= 100
    assert all(space.allows(tuple(v)) for v in found)
    generator = np.random.default_rng(1)
    random = np.array([space.draw(generator) for _ in range(1000)])
    ours, theirs = estimates.objectives(found), estimates.objectives(random)
    every = np.concatenate([ours, theirs])
    low, high = every.min(axis=0), every.max(axis=0)
    assert hypervolume(ours, low, high) > hypervolume(theirs, low, high)


@needs_optuna
def test_a_constraint_that_nothing_was_found_for() -> None:
    space, estimates = large("c1 > 1")
    with pytest.raises(UsageError, match="holds for none of 200 tries"):
        evolved(space, estimates, 0, 50)


@needs_optuna
def test_memory_does_not_grow_with_the_space() -> None:
    peaks = []
    for superblocks in (15, 30):
        space, estimates = large(superblocks=superblocks)
        tracemalloc.start()
        found = evolved(space, estimates, 0, 60)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(found) <= 60
    # 10^9 and 10^18 combinations.
    assert peaks[1] < 4 * peaks[0] < 2**28


def test_small_spaces_are_listed() -> None:
    space, estimates = large("c1 == 1", superblocks=4)
    found = candidates(space, estimates, 0)
    assert [tuple(v) for v in found] == list(space.vectors())
    assert len(found) == 64
    # 816 of 10^9 combinations fall.
    space, estimates = large("non-increasing")
    assert len(candidates(space, estimates, 0)) == space.listed == 816


def test_hopeless_networks_are_left_out_while_there_are_others() -> None:
    space, estimates = large(superblocks=4)
    every = candidates(space, estimates, 0)
    errors = estimates.objectives(every)[:, 0]
    order = np.argsort(errors[1:])
    # As if half of all combinations lost too much.
    harder = replace(estimates, error=tuple(LOST / np.median(errors) * e for e in estimates.error))
    found = np.array(selected(every, harder, 8, 0))
    assert len(found) == 8
    assert np.all(harder.objectives(found)[:, 0] <= LOST)
    # And as if all did: then those that lose least.
    scale = 2.0 * LOST / errors[1:].min()
    worst = replace(estimates, error=tuple(scale * each for each in estimates.error))
    found = np.array(selected(every, worst, 8, 0))
    assert {tuple(v) for v in found} <= {tuple(v) for v in every[1:][order[:8]]}


def test_the_network_as_it_is_is_no_choice() -> None:
    space, estimates = large("c1 == 1 and c2 == 1 and c3 == 1 and c4 == 1", superblocks=4)
    with pytest.raises(BoundError, match="nothing but the network as it is"):
        selected(candidates(space, estimates, 0), estimates, 3, 0)


@needs_optuna
def test_the_same_seed_finds_the_same() -> None:
    space, estimates = large()
    one, other = (evolved(space, estimates, 3, 50) for _ in range(2))
    assert np.array_equal(one, other)
