"""Subgraphs: what they capture stays, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


def _chain(s: Any, extents: Any) -> tuple[str, str]:
    """Input, 'first', Relu: the input and the tensor behind the Relu."""
    x = s.input(extents.image)
    return x, s.add("Relu", s.conv(x, extents.source, extents.inner, name="first"), name="relu")


def _subgraph(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [value])


def _branches(tensor: str) -> dict[str, onnx.GraphProto]:
    """Of an If: the tensor's magnitude, or its negative."""
    return {
        "then_branch": _subgraph("then", [helper.make_node("Abs", [tensor], ["t"], name="t")], "t"),
        "else_branch": _subgraph("else", [helper.make_node("Neg", [tensor], ["e"], name="e")], "e"),
    }


def _body(inside: onnx.NodeProto, carried: str, shape: list[int]) -> onnx.GraphProto:
    """Of a Loop that never stops early: `inside` makes CARRIED_out of CARRIED_in."""
    return helper.make_graph(
        [inside, helper.make_node("Identity", ["go_in"], ["go_out"], name="on")],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"{carried}_in", TensorProto.FLOAT, shape),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"{carried}_out", TensorProto.FLOAT, shape),
        ],
    )


def test_if_that_captures_a_tensor(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    _, a = _chain(s, extents)
    flag = s.input([], "flag", TensorProto.BOOL)
    picked = s.add("If", flag, name="branch", **_branches(a))
    b = s.conv(a, c, 5, name="second")
    y = s.conv(s.add("Relu", b), 5, 4, name="third")
    end = s.add("ReduceSum", picked, keepdims=0)
    pruning.check(
        s.model(y, end),
        widths={"second": 5},
        refused={"first": ["subgraph", f"'{a}'"]},
    )


def test_if_whose_result_feeds_a_layer(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    _, a = _chain(s, extents)
    flag = s.input([], "flag", TensorProto.BOOL)
    picked = s.add("If", flag, name="branch", **_branches(a))
    y = s.conv(picked, c, extents.outer, name="second")
    pruning.check(s.model(y), widths={}, refused={"first": "subgraph"})


def test_if_decided_by_a_channel(sketch: Any, pruning: Any) -> None:
    s = sketch()
    x = s.input([2, 3])
    a = s.add("Gemm", x, s.whole([3, 4]), s.whole([4]), name="first")
    flag = s.add("Greater", s.add("ReduceMax", a, name="most", keepdims=0), s.constant(0.0))
    y = s.add("If", flag, name="branch", **_branches(x))
    pruning.check(s.model(y), widths={}, refused={"first": ["'most'"]})


def test_loop_that_captures_a_tensor(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    _, a = _chain(s, extents)
    shape = [extents.batch, c, extents.height, extents.width]
    inside = helper.make_node("Add", ["total_in", a], ["total_out"], name="inside")
    start = s.constant(np.zeros([1, 1, 1, 1]))
    start = s.add("Expand", start, s.constant(shape, dtype=np.int64))
    trips, go = s.constant(2, dtype=np.int64), s.constant(True, dtype=np.bool_)
    total = s.add("Loop", trips, go, start, name="loop", body=_body(inside, "total", shape))
    b = s.conv(a, c, 5, name="second")
    y = s.conv(s.add("Relu", b), 5, 4, name="third")
    end = s.add("ReduceSum", total, keepdims=0)
    model = s.model(y, end, **{end: []})
    pruning.check(model, widths={"second": 5}, refused={"first": ["subgraph", f"'{a}'"]})


def test_loop_that_carries_a_tensor(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    _, a = _chain(s, extents)
    shape = [extents.batch, c, extents.height, extents.width]
    inside = helper.make_node("Abs", ["carried_in"], ["carried_out"], name="inside")
    trips, go = s.constant(2, dtype=np.int64), s.constant(True, dtype=np.bool_)
    b = s.add("Loop", trips, go, a, name="loop", body=_body(inside, "carried", shape))
    y = s.conv(b, c, extents.outer, name="second")
    model = s.model(y, **{y: [extents.batch, extents.outer, extents.height, extents.width]})
    pruning.check(model, widths={}, refused={"first": "Loop 'loop'"})


def test_weight_that_a_subgraph_reads_too(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    weight = s.whole([c, extents.source, 1, 1], "weight")
    a = s.add("Conv", s.input(extents.image), weight, name="first")
    flag = s.input([], "flag", TensorProto.BOOL)
    shown = s.add("If", flag, name="branch", **_branches(weight))
    y = s.conv(s.add("Relu", a), c, extents.outer, name="second")
    pruning.check(s.model(y, shown), widths={"first": c})


def test_layers_inside_a_subgraph_are_left_alone(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    x, a = _chain(s, extents)
    weight = s.whole([c, extents.source, 1, 1], "inner_weight")
    flag = s.input([], "flag", TensorProto.BOOL)
    branches = {
        "then_branch": _subgraph(
            "then", [helper.make_node("Conv", [x, weight], ["t"], name="inside")], "t"
        ),
        "else_branch": _subgraph(
            "else", [helper.make_node("Conv", [x, weight], ["e"], name="within")], "e"
        ),
    }
    picked = s.add("If", flag, name="branch", **branches)
    y = s.conv(s.add("Add", picked, a, name="meet"), c, extents.outer, name="second")
    pruning.check(s.model(y), widths={}, refused={"first": "Add 'meet'"})


@pytest.mark.parametrize("operator", ["LSTM", "GRU"])
def test_recurrent_layers(sketch: Any, pruning: Any, operator: str) -> None:
    s = sketch()
    gates = 4 if operator == "LSTM" else 3
    a = s.add("MatMul", s.input([4, 2, 4]), s.whole([4, 4]), name="first")
    w, r = s.whole([1, gates * 3, 4]), s.whole([1, gates * 3, 3])
    y = s.add(operator, a, w, r, name="recurrent", hidden_size=3)
    pruning.check(s.model(y), widths={}, refused={"first": f"{operator} 'recurrent'"})
