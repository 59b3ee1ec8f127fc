"""The pass `prune`: widths on offer, counted cost, and that what is removed equals zero."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.graph.cost import Cost, model_cost
from onnxcompress_passes.prune import Prune

GRAPHS = ["chain", "residual", "residual, equal", "concat", "depthwise", "shared", "dequantised",
          "matmul"]  # fmt: skip


def counted(model: onnx.ModelProto, facts: Facts) -> Cost:
    return model_cost(model, shapes_for(model, facts.sizes))


@pytest.mark.parametrize("name", GRAPHS)
def test_cost_is_what_is_counted_on_the_result(pruning: Any, nets: Any, name: str) -> None:
    """Every candidate of every group, alone: what it promises is what the rewrite saves."""
    facts = nets.facts(pruning.graph(name))
    found = pruning.offers(Prune(round_to=1), facts)
    assert found
    lossy = 0
    for group, candidates in found.items():
        for candidate in candidates:
            result = pruning.applied(facts.model, candidate)
            saving = facts.total() - counted(result, facts)
            assert candidate.saving == saving, (group, candidate.setting)
            assert group in candidate.touches
            lossy += saving.macs > 0
    assert lossy >= 6


def masked(model: onnx.ModelProto, facts: Facts, group: str, gone: list[int]) -> onnx.ModelProto:
    """The model with a Mul by zeros and ones right behind every producer of a group."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    for node in nodes:
        copy.graph.node.append(node)
        if node.name in facts.coupling().group(group).producers:
            made = copy.graph.node[-1].output[0]
            shape = facts.shape(made)
            mask = np.ones((1, shape[1], *([1] * (len(shape) - 2))), np.float32)
            mask[:, gone] = 0
            copy.graph.node[-1].output[0] = f"{made}_raw"
            names = [f"{made}_raw", f"{made}_mask"]
            copy.graph.node.append(onnx.helper.make_node("Mul", names, [made]))
            copy.graph.initializer.append(onnx.numpy_helper.from_array(mask, f"{made}_mask"))
    return copy


@pytest.mark.parametrize("name", GRAPHS)
def test_a_candidate_equals_channels_of_zeros(pruning: Any, nets: Any, kit: Any, name: str) -> None:
    """Masks behind the producers; channels of a group are those of its producers, in order.

    For float32 sums of at most 108 terms of order one, regrouped, 1e-5 is generous; Sigmoid
    makes what remains 1/2, so that absorbed constants matter.
    """
    model = pruning.graph(name)
    facts = nets.facts(model)
    feeds = nets.samples(model, 3)
    for group, candidates in pruning.offers(Prune(round_to=1), facts).items():
        candidate = candidates[len(candidates) // 2]
        width = facts.coupling().group(group).width
        gone = sorted(set(range(width)) - set(candidate.setting.kept))
        assert gone
        reference = masked(model, facts, group, gone)
        small = pruning.applied(model, candidate)
        onnx.checker.check_model(small, full_check=True)
        for whole, expected, found in zip(
            kit.run(model, feeds), kit.run(reference, feeds), kit.run(small, feeds), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
            assert name == "shared" or np.abs(whole - expected).max() > 1e-3


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("criterion", ["weight", "random"])
def test_ladders(pruning: Any, nets: Any, name: str, criterion: str) -> None:
    """All channels first; then ever fewer, each a part of the one before, cheaper and worse."""
    facts = nets.facts(pruning.graph(name))
    for group, candidates in pruning.offers(Prune(criterion, seed=3), facts).items():
        assert candidates[0].setting.kept == tuple(range(facts.coupling().group(group).width))
        assert candidates[0].damage == 0.0
        assert candidates[0].saving == Cost()
        assert not any(candidate.recommended for candidate in candidates)
        assert len({candidate.before for candidate in candidates}) == 1
        for loose, tight in pairwise(candidates):
            assert set(tight.setting.kept) < set(loose.setting.kept)
            assert tight.damage >= loose.damage
            assert tight.after.macs <= loose.after.macs
            assert tight.after.params <= loose.after.params


def test_planted_costs_do_not_pass(
    pruning: Any, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forgotten biases and MACs show in the comparison above."""
    monkeypatch.setattr("onnxcompress.plan.channels.cost._new_biases", lambda *_: Cost())
    with pytest.raises(AssertionError):
        test_cost_is_what_is_counted_on_the_result(pruning, nets, "residual")
    monkeypatch.undo()
    monkeypatch.setattr(
        "onnxcompress.plan.channels.cost._macs", lambda facts, name, _: facts.macs(name)
    )
    with pytest.raises(AssertionError):
        test_cost_is_what_is_counted_on_the_result(pruning, nets, "chain")
