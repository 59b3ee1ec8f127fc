"""The read-only index: who makes, who reads, what is constant."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxcompress.errors import ModelError
from onnxcompress.graph.view import GraphView, Use, attributes, subgraphs


@pytest.fixture
def model(kit):
    """x -> a; a read twice by one node, b an output too, c captured by a branch."""
    then = helper.make_graph(
        [helper.make_node("Neg", ["c"], ["t"], name="inner")], "t", [], [kit.value("t", (2, 3))]
    )
    other = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["e"], name="inner2")], "e", [], [kit.value("e", (2, 3))]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="dense"),
        helper.make_node("Mul", ["a", "a"], ["b"], name="square"),
        helper.make_node("Clip", ["b", "", "high"], ["c"], name="clip"),
        helper.make_node("Relu", ["c"], ["d"], name="relu"),
        helper.make_node("If", ["which"], ["i"], name="if", then_branch=then, else_branch=other),
        helper.make_node("Add", ["d", "i"], ["y"], name="add"),
    ]
    inputs = [kit.value("x", (2, 3)), kit.value("w", (3, 3)), kit.value("which", (), 9)]
    constants = {"w": kit.whole((3, 3), seed=1), "high": np.array(2, np.float32)}
    outputs = [kit.value("y", (2, 3)), kit.value("b", (2, 3))]
    return kit.model(nodes, inputs, outputs, constants, domains={"other": 3})


def test_names(model):
    view = GraphView(model)
    assert view.inputs == ("x", "which")
    assert view.outputs == ("y", "b")
    assert list(view.nodes) == ["dense", "square", "clip", "relu", "if", "add"]
    assert view.producers["c"].name == "clip"
    assert set(view.producers) == {"a", "b", "c", "d", "i", "y"}
    assert (view.is_constant("w"), view.is_constant("x"), view.is_constant("a")) == (
        True,
        False,
        False,
    )
    assert "c" in view.captured
    assert "d" not in view.captured


def test_uses(model):
    view = GraphView(model)
    nodes = view.nodes
    assert view.uses("a") == (Use(nodes["square"], 0), Use(nodes["square"], 1))
    assert view.uses("high") == (Use(nodes["clip"], 2),)
    assert view.uses("") == ()
    assert view.uses("nobody") == ()


def test_sole_use(model):
    view = GraphView(model)
    assert view.sole_use("d") == Use(view.nodes["add"], 0)
    # Twice by one node; also a graph output; also captured; by nobody.
    for name in ("a", "b", "c", "y"):
        assert view.sole_use(name) is None


def test_values(kit, model):
    view = GraphView(model)
    np.testing.assert_array_equal(view.array("w"), kit.whole((3, 3), seed=1))
    assert view.array("w").dtype == np.float32
    assert view.array64("w").dtype == np.float64
    with pytest.raises(ModelError, match="'a' is not a constant"):
        view.array("a")


def test_values_that_cannot_be_decoded(model):
    model.graph.initializer[0].raw_data = b"\0" * 7
    with pytest.raises(ModelError, match="'w' cannot be decoded"):
        GraphView(model).array("w")


@pytest.mark.parametrize("name", ["", "ai.onnx"])
def test_opset(model, name):
    model.opset_import[0].domain = name
    view = GraphView(model)
    assert (view.opset(), view.opset("other"), view.opset("absent")) == (17, 3, 0)


def test_attributes_are_python_values():
    node = helper.make_node(
        "Op", [], [], i=3, f=0.5, s="text", ints=[1, 2], floats=[0.5, 1.5], strings=["a", "b"]
    )
    found = attributes(node)
    assert (found["i"], found["f"], found["s"]) == (3, 0.5, "text")
    assert list(found["ints"]) == [1, 2]
    assert list(found["floats"]) == [0.5, 1.5]
    assert list(found["strings"]) == [b"a", b"b"]


def test_subgraphs(model):
    node = GraphView(model).nodes["if"]
    assert sorted(g.name for g in subgraphs(node)) == ["e", "t"]
    several = helper.make_node("Op", [], [], name="many")
    attribute = several.attribute.add(name="graphs", type=10)
    attribute.graphs.extend(subgraphs(node))
    assert sorted(g.name for g in subgraphs(several)) == ["e", "t"]
