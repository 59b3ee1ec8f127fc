"""Excerpts of layers at full and at reduced width: they run, and have the cut shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.plan.channels.excerpt import excerpts
from onnxcompress.plan.channels.remove import remove_channels

RESIDUAL = """net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y) {
    [stem] a = Conv <kernel_shape = [1, 1]> (x, w0, b0) [r0] b = Relu (a)
    [c1] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w1, b1) [r1] d = Sigmoid (c)
    [c2] e = Conv <kernel_shape = [1, 1]> (d, w2) [sum] f = Add (e, b) [r2] g = Relu (f)
    [last] y = Conv <kernel_shape = [1, 1]> (g, w3) }"""
DEPTHWISE = """net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y) {
    [one] a = Conv <kernel_shape = [1, 1]> (x, w0) [r0] b = Clip (a, low, high)
    [dw] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 8> (b, w1, b1)
    [r1] d = Clip (c, low, high) [last] y = Conv <kernel_shape = [1, 1]> (d, w2) }"""
DENSE = """net (float[N, 3, 2, 2] x) => (float[N, 5] y) {
    [conv] a = Conv <kernel_shape = [1, 1]> (x, w0) [r0] b = Relu (a)
    [flat] c = Flatten (b) [fc] d = Gemm <transB = 1> (c, w1, b1) [r1] e = Relu (d)
    [out] y = MatMul (e, w2) }"""
JOINED = """net (float[N, 3, 6, 7] x) => (float[N, 5, 8, 9] y) {
    [one] a = Conv <kernel_shape = [1, 1]> (x, w0) [two] b = Conv <kernel_shape = [1, 1]> (x, w1)
    [join] c = Concat <axis = 1> (a, b) [r0] d = Relu (c)
    [last] y = ConvTranspose <kernel_shape = [3, 3]> (d, w2) }"""

CASES: dict[str, tuple[Callable[[Any], Facts], dict[str, list[int]], dict[str, int]]] = {
    "residual": (
        lambda facts_of: facts_of(
            RESIDUAL,
            (2, 3, 6, 7),
            w0=(9, 3, 1, 1),
            b0=(9,),
            w1=(8, 9, 3, 3),
            b1=(8,),
            w2=(9, 8, 1, 1),
            w3=(5, 9, 1, 1),
        ),
        {"stem": [0, 4, 8], "c1": [1, 2]},
        {"stem": 6, "c1": 6, "c2": 6, "last": 5},
    ),
    "residual, equal": (
        lambda facts_of: facts_of(
            RESIDUAL.replace("[N, 5", "[N, 6"),
            (6, 3, 6, 7),
            w0=(6, 3, 1, 1),
            b0=(6,),
            w1=(6, 6, 3, 3),
            b1=(6,),
            w2=(6, 6, 1, 1),
            w3=(6, 6, 1, 1),
        ),
        {"stem": [0, 4], "c1": [1, 2, 5]},
        {"stem": 4, "c1": 3, "c2": 4, "last": 6},
    ),
    "depthwise": (
        lambda facts_of: facts_of(
            DEPTHWISE,
            (1, 3, 6, 7),
            w0=(8, 3, 1, 1),
            w1=(8, 1, 3, 3),
            b1=(8,),
            w2=(5, 8, 1, 1),
            low=np.float32(-1),
            high=np.float32(1),
        ),
        {"one": [3, 5, 6]},
        {"one": 5, "dw": 5, "last": 5},
    ),
    "flattened": (
        lambda facts_of: facts_of(
            DENSE, (2, 3, 2, 2), w0=(4, 3, 1, 1), w1=(7, 16), b1=(7,), w2=(7, 5)
        ),
        {"conv": [2], "fc": [0, 6]},
        {"conv": 3, "fc": 5, "out": 5},
    ),
    "joined": (
        lambda facts_of: facts_of(
            JOINED, (1, 3, 6, 7), w0=(4, 3, 1, 1), w1=(3, 3, 1, 1), w2=(7, 5, 3, 3)
        ),
        {"one": [0], "two": [2]},
        {"one": 3, "two": 2, "last": 5},
    ),
}


def shapes_of(model: onnx.ModelProto, kit: Any) -> list[tuple[int, ...]]:
    """Run with the declared inputs; the declared output must be what comes out."""
    onnx.checker.check_model(model, full_check=True)
    feeds = {
        value.name: np.ones([d.dim_value for d in value.type.tensor_type.shape.dim], np.float32)
        for value in model.graph.input
    }
    found = [value.shape for value in kit.run(model, feeds)]
    declared = [
        tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in model.graph.output
    ]
    assert found == declared
    return [*(value.shape for value in feeds.values()), *found]


@pytest.mark.parametrize("name", CASES)
def test_excerpts_run_and_have_the_cut_shapes(kit: Any, facts_of: Any, name: str) -> None:
    """Every layer that changes comes once, as it is and as it is in the smaller network."""
    make, removed, widths = CASES[name]
    facts = make(facts_of)
    pairs = excerpts(facts, removed)
    assert [before.graph.node[0].name for before, _ in pairs] == list(widths)
    small = remove_channels(facts.model, facts.coupling(), removed)
    nodes = {node.name: node for node in small.graph.node}
    weights = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in small.graph.initializer
    }
    for before, after in pairs:
        layer = before.graph.node[0]
        whole, cut = shapes_of(before, kit), shapes_of(after, kit)
        assert whole[-1] == facts.shape(before.graph.node[-1].output[0])
        assert cut[-1][1] == widths[layer.name]
        assert [n.op_type for n in before.graph.node] == [n.op_type for n in after.graph.node]
        # Nothing but the channel axis is another one.
        for one, other in zip(whole, cut, strict=True):
            assert [a for a in range(len(one)) if one[a] != other[a]] in ([], [1])
        # The weights are those of the smaller network; only absorbed biases are not.
        mine = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
        found, expected = mine[layer.input[1]], weights[nodes[layer.name].input[1]]
        assert np.array_equal(found, expected)


def test_what_does_not_change_is_not_timed(facts_of: Any) -> None:
    facts = CASES["residual"][0](facts_of)
    pairs = excerpts(facts, {"c1": [0]})
    assert [before.graph.node[0].name for before, _ in pairs] == ["c1", "c2"]


def test_the_model_is_not_changed(facts_of: Any) -> None:
    for make, removed, _ in CASES.values():
        facts = make(facts_of)
        before = facts.model.SerializeToString()
        excerpts(facts, removed)
        assert facts.model.SerializeToString() == before
