"""Weighed widths: what is saved is predicted exactly, enough is saved, and less is damaged."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.errors import UsageError
from onnxcompress.plan.options import collect
from onnxcompress.plan.registry import make_pass
from onnxcompress_passes.scbp.allocation import Bill, weighed
from tests.passes.scbp.resnets import resnet


def layers(counts: Any) -> np.ndarray:
    """A stem of 6 channels, a layer from 6 to 8 channels, and one from 8 to 8 of the same group."""
    a, b = 6 - counts[0], 8 - counts[1]
    costs = np.array([27 * a + 9 * a * b + 9 * b * b + 5 * b, 3 * a + a * b + 10 * b * b])
    return np.array([27 * 6 + 9 * 48 + 9 * 64 + 40, 18 + 48 + 640]) - costs


def test_what_is_saved_follows_from_single_groups_and_pairs() -> None:
    bill = Bill.of((5, 7), layers)
    for counts in product(range(6), range(8)):
        np.testing.assert_allclose(bill.saved(counts), layers(counts), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_enough_is_saved_with_no_more_damage_than_evenly(seed: int) -> None:
    generator = np.random.default_rng(seed)
    curves = np.cumsum(np.cumsum(generator.uniform(0.0, 1.0, (2, 9)), axis=1), axis=1)
    curves *= generator.uniform(0.1, 1.0, (2, 1))
    bill = Bill.of((5, 7), layers)
    evenly = [(1, 2), (3, 4), (4, 6)]

    def damage(at: int, count: int) -> float:
        return float(curves[at, count]) if count else 0.0

    found = weighed(bill, evenly, (5, 7), (1, 1), damage)
    for counts, even in zip(found, evenly, strict=True):
        assert np.all(layers(counts) >= layers(even) - 1e-6)
    assert sum(map(damage, (0, 1), found[0])) <= sum(map(damage, (0, 1), evenly[0]))
    for before, after in pairwise(found):
        assert all(a >= b for a, b in zip(after, before, strict=True))


def test_what_cannot_be_reached_takes_all_there_is() -> None:
    bill = Bill.of((2, 2), layers)
    damage = dict.fromkeys(product(range(2), range(8)), 1.0)
    look = lambda at, count: damage[at, count]  # noqa: E731
    assert weighed(bill, [(5, 7)], (2, 2), (1, 1), look) == [(2, 2)]
    # Nothing is demanded, nothing goes.
    assert weighed(bill, [(0, 0)], (2, 2), (1, 1), look) == [(0, 0)]


def facts_of(width: int) -> Facts:
    return analyse(resnet(18, size=32, width=width), {"x": (1, 3, 32, 32)})


@pytest.mark.parametrize("round_to", [1, 4])
def test_superblocks_of_a_network(round_to: int) -> None:
    facts = facts_of(16)
    options: dict[str, Any] = {"ranking": "weight", "round_to": round_to}
    even = collect(facts, [make_pass("scbp", **options)]).sites
    free = collect(facts, [make_pass("scbp", within="weighed", **options)]).sites
    for ours, theirs in zip(free, even, strict=True):
        assert len(ours) == len(theirs) == 4
        for one, other in zip(ours, theirs, strict=True):
            assert one.setting.ratio == other.setting.ratio
            assert one.saving.macs >= other.saving.macs
            assert one.saving.params >= other.saving.params
            assert all(len(kept) % round_to == 0 for _, kept in one.setting.kept)
        for wide, narrow in pairwise(ours):
            for (name, more), (same, less) in zip(
                wide.setting.kept, narrow.setting.kept, strict=True
            ):
                assert name == same
                assert set(less) <= set(more)
        # Where it is weighed there is less damage, by the measure that it is weighed by.
        assert ours[1].damage <= theirs[1].damage


def test_a_way_that_is_not_known() -> None:
    with pytest.raises(UsageError, match="within='fair'"):
        make_pass("scbp", within="fair")
