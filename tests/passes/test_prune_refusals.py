"""What `prune` leaves alone, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.plan.contract import Refusal
from onnxcompress_passes.prune import Prune


def test_refusals(pruning: Any, nets: Any) -> None:
    """The last layer makes the output; members go with the first; every layer is heard of."""
    facts = nets.facts(pruning.graph("residual"))
    reasons = pruning.refused(Prune(), facts)
    assert set(reasons) == {"c2", "last"}
    assert "'stem'" in reasons["c2"]
    assert "output" in reasons["last"]
    (see,) = (r.see for r in Prune().sites(facts) if isinstance(r, Refusal) and r.node == "c2")
    assert see == "prune"


@pytest.mark.parametrize("excluded", ["stem", "c2", "last", "sum", "r1"])
def test_excluded(pruning: Any, nets: Any, excluded: str) -> None:
    """A group with an excluded layer stays; one whose layers it does not touch does not."""
    facts = nets.facts(pruning.graph("residual"), excluded=[excluded])
    reasons = pruning.refused(Prune(), facts)
    found = pruning.offers(Prune(), facts)
    changes = {
        name
        for candidates in pruning.offers(Prune(), nets.facts(pruning.graph("residual"))).values()
        for name in (n for c in candidates[1:] for n in c.touches)
    }
    if excluded in changes:
        assert "excluded by the user" in reasons["stem"]
        assert ("c1" in found) == (excluded != "c2")
    else:
        assert set(found) == {"stem", "c1"}
    for candidates in found.values():
        assert not any(excluded in candidate.touches for candidate in candidates)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(pruning: Any, nets: Any, value: float) -> None:
    """The group is refused with the layer's name: it would be scored by it."""
    model = pruning.chain()
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[0, 0] = value
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w2"))
    reasons = pruning.refused(Prune(), nets.facts(model))
    assert all("'two' contains NaN or infinite" in reasons[name] for name in ("one", "two"))


def test_quantised_layers_are_refused(pruning: Any, nets: Any) -> None:
    text = """net (uint8[N, 3, 4, 4] x) => (int32[N, 5, 4, 4] y) {
        [whole] y = ConvInteger (x, w) }"""
    facts = nets.facts(nets.build(text, w=np.ones((5, 3, 1, 1), np.uint8)))
    assert "quantised already" in pruning.refused(Prune(), facts)["whole"]
