"""Which tensors stand for which, and which nodes differ between two graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnxcompress.graph.branch_removal import remove_branch
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.infer import with_value_info
from onnxcompress.graph.view import GraphView
from onnxcompress.plan.correspondence import correspondence
from onnxcompress.rewrite.changes import changed_nodes, reached

BLOCKS = """net (float[N, 3, 4, 5] x) => (float[N, 2, 4, 5] y) {
    [stem] a = Conv (x, w0, b0) [r0] b = Relu (a)
    [p1] c = Conv (b, w1) [q1] d = Relu (c) [p2] e = Conv (d, w2)
    [sum] f = Add (b, e) [r1] g = Relu (f)
    [last] y = Conv (g, w3) }"""


def blocks(nets: Any) -> onnx.ModelProto:
    made: onnx.ModelProto = nets.build(
        BLOCKS, w0=(4, 3, 1, 1), b0=(4,), w1=(5, 4, 1, 1), w2=(4, 5, 1, 1), w3=(2, 4, 1, 1)
    )
    return made


def without(model: onnx.ModelProto, mean: np.ndarray) -> onnx.ModelProto:
    editor = Editor(model)
    remove_branch(editor, "sum", 1, mean)
    return with_value_info(editor.finish())


def test_nothing_changed(nets: Any) -> None:
    view = GraphView(blocks(nets))
    assert correspondence(view, GraphView(blocks(nets)), {}).stands_for == {}
    assert changed_nodes(view, GraphView(blocks(nets))) == set()
    assert reached(view, set()) == set()


def test_a_stream_stands_for_the_stream_behind_the_removed_branch(nets: Any) -> None:
    model = blocks(nets)
    before = GraphView(model)
    for mean in (np.zeros(4), np.array([1.0, 2.0, 0.5, 3.0])):
        after = GraphView(without(model, mean))
        found = correspondence(before, after, {})
        (stream,) = after.nodes["last"].input[:1]
        assert stream not in {"g", "f"}
        assert found.place(stream) == "g"
        assert found.place("a") == "a"
        assert found.place("y") == "y"


def test_what_several_read_differently_stands_for_nothing_else(nets: Any) -> None:
    """'b' takes the place of 'c' for one reader, and is itself for the other."""
    text = """net (float[N, 3, 4, 5] x) => (float[N, 3, 4, 5] y, float[N, 3, 4, 5] z) {{
        [one] b = Relu (x) {mid} [two] y = Conv ({read}, w) [three] z = Conv (b, w) }}"""
    before = nets.build(text.format(mid="[gone] c = Sigmoid (b)", read="c"), w=(3, 3, 1, 1))
    after = nets.build(text.format(mid="", read="b"), w=(3, 3, 1, 1))
    assert correspondence(GraphView(before), GraphView(after), {}).stands_for == {}


def test_what_took_the_place_of_two_tensors_stands_for_neither(nets: Any) -> None:
    text = """net (float[N, 3, 4, 5] x) => (float[N, 3, 4, 5] y, float[N, 3, 4, 5] z) {{
        [one] b = Relu (x) {mid} [two] y = Conv ({left}, w) [three] z = Conv ({right}, w) }}"""
    both = "[gone] c = Sigmoid (b) [also] d = Tanh (b)"
    before = nets.build(text.format(mid=both, left="c", right="d"), w=(3, 3, 1, 1))
    after = nets.build(text.format(mid="", left="b", right="b"), w=(3, 3, 1, 1))
    assert correspondence(GraphView(before), GraphView(after), {}).stands_for == {}
    same = nets.build(text.format(mid=both, left="c", right="c"), w=(3, 3, 1, 1))
    assert correspondence(GraphView(same), GraphView(after), {}).stands_for == {"b": "c"}


def test_outputs_and_captured_tensors_stand_for_themselves(nets: Any) -> None:
    text = """net (float[N, 3, 4, 5] x) => (float[N, 3, 4, 5] b, float[N, 3, 4, 5] y) {{
        [one] b = Relu (x) {mid} [two] y = Conv ({read}, w) }}"""
    before = nets.build(text.format(mid="[gone] c = Sigmoid (b)", read="c"), w=(3, 3, 1, 1))
    after = nets.build(text.format(mid="", read="b"), w=(3, 3, 1, 1))
    assert correspondence(GraphView(before), GraphView(after), {}).stands_for == {}
    del before.graph.output[0], after.graph.output[0]
    found = correspondence(GraphView(before), GraphView(after), {})
    assert found.stands_for == {"b": "c"}


def test_changed_nodes_and_what_they_reach(nets: Any, bench: Any) -> None:
    model = blocks(nets)
    before = GraphView(model)
    weight = bench.constant(model, "p1", 1).astype(np.float32)
    after = GraphView(bench.variant(model, w1=weight + np.float32(1e-3)))
    assert changed_nodes(before, after) == {"p1"}
    assert reached(after, {"p1"}) == {"p1", "q1", "p2", "sum", "r1", "last"}
    assert reached(after, {"stem"}) == set(after.nodes)
    assert reached(after, {"last"}) == {"last"}
    strided = onnx.ModelProto()
    strided.CopyFrom(model)
    node = next(n for n in strided.graph.node if n.name == "p2")
    node.attribute.append(onnx.helper.make_attribute("strides", [1, 1]))
    node.name = "other"
    assert changed_nodes(before, GraphView(strided)) == {"other"}


def test_what_a_subgraph_captures_is_reached(nets: Any, kit: Any) -> None:
    model = blocks(nets)
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["d"], ["inner"])], "g", [], [kit.value("inner", None)]
    )
    model.graph.node.append(
        onnx.helper.make_node("If", ["yes"], ["z"], "if", then_branch=branch, else_branch=branch)
    )
    view = GraphView(model)
    assert "if" in reached(view, {"p1"})
    assert "if" not in reached(view, {"p2"})
