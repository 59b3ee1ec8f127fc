"""`prune:channels=F`: how many channels stay, and which."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.plan.contract import NoCandidate, Site
from onnxcompress_passes.prune import Prune


def test_no_smaller_width(pruning: Any, nets: Any) -> None:
    facts = nets.facts(pruning.chain(one=4))
    owner = Prune(round_to=4)
    with pytest.raises(NoCandidate, match="no smaller width"):
        owner.candidates(Site("prune", "one"), facts)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.51, 0.9])
@pytest.mark.parametrize("round_to", [0, 4])
def test_a_fraction_of_every_group(pruning: Any, nets: Any, fraction: float, round_to: int) -> None:
    """One recommended candidate; widths are rounded up to multiples."""
    facts = nets.facts(pruning.chain())
    found = pruning.offers(Prune(channels=fraction, round_to=round_to), facts)
    for group, full in (("one", 12), ("two", 20)):
        wanted = round(fraction * full)
        if round_to:
            wanted = -(-wanted // round_to) * round_to
        if wanted >= full:
            assert found[group] == []
            continue
        (candidate,) = found[group]
        assert candidate.recommended
        assert len(candidate.setting.kept) == wanted
        ladder = pruning.offers(Prune(round_to=1), facts)[group]
        (same,) = (c for c in ladder if len(c.setting.kept) == wanted)
        assert candidate.setting == same.setting
        assert (candidate.saving, candidate.damage) == (same.saving, same.damage)


def test_a_fraction_of_all_together(pruning: Any, nets: Any) -> None:
    """'one' is loud and 'two' is quiet: what goes of 32 channels goes from 'two' first."""
    model = pruning.chain()
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            louder = onnx.numpy_helper.to_array(tensor) * np.float32(100)
            tensor.CopyFrom(onnx.numpy_helper.from_array(louder, "w1"))
    facts = nets.facts(model)
    for fraction, one, two in ((0.75, 12, 12), (0.5, 12, 4), (0.25, 7, 1)):
        owner = Prune(channels=fraction, scope="global", normalise="none")
        found = pruning.offers(owner, facts)
        kept = {g: len(c[0].setting.kept) if c else None for g, c in found.items()}
        # 24, 16 and 8 of 32 stay, one of 'two' at least.
        assert kept == {"one": one if one < 12 else None, "two": two}


def test_nothing_is_left_over_for_a_fraction_of_nothing(pruning: Any, nets: Any) -> None:
    """One channel stays, however small the fraction is."""
    found = pruning.offers(Prune(channels=0.001), nets.facts(pruning.chain()))
    assert {group: pruning.widths(c) for group, c in found.items()} == {"one": [1], "two": [1]}


def test_a_whole_fraction_changes_nothing(pruning: Any, nets: Any) -> None:
    facts = nets.facts(pruning.chain())
    owner = Prune(channels=1.0)
    for node, width in (("one", 12), ("two", 20)):
        with pytest.raises(NoCandidate, match=f"all {width} channels stay"):
            owner.candidates(Site("prune", node), facts)


def test_the_least_important_channels_go(pruning: Any, nets: Any) -> None:
    """By a norm computed here; with `random` it is others."""
    facts = nets.facts(pruning.chain())
    weight = facts.view.array64("w1")
    for norm in ("l1", "l2"):
        scores = [float((abs(f) if norm == "l1" else f * f).sum()) for f in weight]
        best = sorted(range(12), key=lambda c: scores[c])[6:]
        (candidate,) = pruning.offers(Prune(channels=0.5, norm=norm), facts)["one"]
        assert candidate.setting.kept == tuple(sorted(best))
    kept = {
        pruning.offers(Prune("random", channels=0.5, seed=s), facts)["one"][0].setting.kept
        for s in range(5)
    }
    assert len(kept) > 1
