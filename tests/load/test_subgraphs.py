"""If and Loop keep what they capture, whatever canonicalisation does around them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.errors import ModelError
from onnxcompress.load.canonical import canonicalise

INT64, BOOL = TensorProto.INT64, TensorProto.BOOL


def _branch(kit, name, nodes, shape, initializers=()):
    return helper.make_graph(nodes, name, [], [kit.value(name, shape)], list(initializers))


def _if(kit, then, otherwise, shape, source="which", target="y"):
    return helper.make_node(
        "If",
        [source],
        [target],
        name=f"if_{target}",
        then_branch=_branch(kit, "then", then, shape),
        else_branch=_branch(kit, "else", otherwise, shape),
    )


def _check(kit, model, feeds):
    before = model.SerializeToString()
    result = canonicalise(model).model
    assert model.SerializeToString() == before
    for which in (True, False):
        kit.assert_same(model, result, feeds | {"which": np.array(which)})
    return result


def test_captured_identity_constant_and_normalised_tensor(kit):
    """Everything a branch may capture: an alias, a lifted constant, and what a fold makes."""
    shape = (2, 4, 5, 4)
    then = [
        helper.make_node("Mul", ["alias", "k"], ["t1"], name="mul"),
        helper.make_node("Add", ["t1", "folded"], ["then"], name="add"),
    ]
    otherwise = [helper.make_node("Sub", ["folded", "alias"], ["else"], name="sub")]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        kit.norm("norm", "a", "folded"),
        helper.make_node("Relu", ["folded"], ["r"], name="relu"),
        helper.make_node("Identity", ["r"], ["alias"], name="identity"),
        helper.make_node("Constant", [], ["k"], name="constant", value_float=3.0),
        _if(kit, then, otherwise, shape),
    ]
    constants = {"w": kit.whole((4, 3, 2, 2), seed=1), **kit.norm_constants("norm", 4, seed=2)}
    inputs = [kit.value("x", (2, 3, 6, 5)), kit.value("which", (), BOOL)]
    model = kit.model(nodes, inputs, [kit.value("y", shape)], constants)
    result = _check(kit, model, {"x": kit.whole((2, 3, 6, 5), seed=3)})
    assert kit.operators(result) == ["Conv", "Relu", "If"]


@pytest.mark.parametrize("size", [3, 40], ids=["small", "large"])
def test_initializer_that_only_a_branch_reads(kit, size):
    shape = (2, size)
    then = [helper.make_node("MatMul", ["x", "w"], ["then"], name="dense")]
    otherwise = [helper.make_node("Neg", ["x"], ["else"], name="neg")]
    inputs = [kit.value("x", shape), kit.value("which", (), BOOL)]
    model = kit.model(
        [_if(kit, then, otherwise, shape)],
        inputs,
        [kit.value("y", shape)],
        {"w": kit.whole((size, size), seed=1)},
    )
    result = _check(kit, model, {"x": kit.whole(shape, seed=2)})
    assert [t.name for t in result.graph.initializer] == ["w"]


def test_tensor_that_only_a_nested_branch_reads(kit):
    shape = (2, 3)
    inner = _if(
        kit,
        [helper.make_node("Mul", ["deep", "x"], ["then"], name="mul")],
        [helper.make_node("Abs", ["deep"], ["else"], name="abs")],
        shape,
        source="flag",
        target="inner",
    )
    nodes = [
        helper.make_node("Neg", ["x"], ["deep"], name="neg"),
        helper.make_node("Not", ["which"], ["flag"], name="not"),
        helper.make_node(
            "If",
            ["which"],
            ["y"],
            name="outer",
            then_branch=_branch(
                kit,
                "outer_then",
                [inner, helper.make_node("Relu", ["inner"], ["outer_then"], name="relu")],
                shape,
            ),
            else_branch=_branch(
                kit,
                "outer_else",
                [helper.make_node("Neg", ["x"], ["outer_else"], name="neg2")],
                shape,
            ),
        ),
    ]
    inputs = [kit.value("x", shape), kit.value("which", (), BOOL)]
    model = kit.model(nodes, inputs, [kit.value("y", shape)])
    result = _check(kit, model, {"x": kit.whole(shape, seed=1)})
    assert kit.operators(result) == ["Neg", "Not", "If"]


def test_loop_that_captures_and_carries(kit):
    shape = (2, 3)
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["v", "w"], ["v1"], name="mul"),
            helper.make_node("Add", ["v1", "alias"], ["v_out"], name="add"),
            helper.make_node("Identity", ["go"], ["go_out"], name="go"),
            helper.make_node("Neg", ["v_out"], ["scan"], name="neg"),
        ],
        "body",
        [kit.value("i", (), INT64), kit.value("go", (), BOOL), kit.value("v", shape)],
        [kit.value("go_out", (), BOOL), kit.value("v_out", shape), kit.value("scan", shape)],
    )
    nodes = [
        helper.make_node("Identity", ["x"], ["alias"], name="identity"),
        helper.make_node("Loop", ["times", "go0", "x"], ["y", "all"], name="loop", body=body),
    ]
    constants = {
        "w": np.array([1, 2, -1], np.float32),
        "times": np.array(3),
        "go0": np.array(True),
    }
    outputs = [kit.value("y", shape), kit.value("all", (None, *shape))]
    model = kit.model(nodes, [kit.value("x", shape)], outputs, constants)
    result = canonicalise(model).model
    assert kit.operators(result) == ["Loop"]
    kit.assert_same(model, result, {"x": kit.whole(shape, seed=1)})


@pytest.mark.parametrize("alias", [False, True], ids=["as it was", "capture renamed"])
def test_what_a_subgraph_says_about_itself_is_kept(kit, alias):
    """Doc strings, metadata and local constants inside a branch survive."""
    shape, source = (2, 3), "alias" if alias else "x"
    inner = helper.make_node("Add", [source, "local"], ["then"], name="add", doc_string="inner doc")
    inner.metadata_props.add(key="origin", value="layer 7")
    local = numpy_helper.from_array(np.array([1, 2, 3], np.float32), "local")
    then = _branch(kit, "then", [inner], shape, [local])
    then.doc_string = "branch doc"
    otherwise = _branch(kit, "else", [helper.make_node("Neg", ["x"], ["else"])], shape)
    nodes = [
        helper.make_node("If", ["which"], ["y"], name="if", then_branch=then, else_branch=otherwise)
    ]
    if alias:
        nodes.insert(0, helper.make_node("Identity", ["x"], ["alias"], name="identity"))
    inputs = [kit.value("x", shape), kit.value("which", (), BOOL)]
    model = kit.model(nodes, inputs, [kit.value("y", shape)])
    result = _check(kit, model, {"x": kit.whole(shape, seed=1)})
    (node,) = result.graph.node
    (found,) = [a.g for a in node.attribute if a.name == "then_branch"]
    assert found.doc_string == "branch doc"
    assert [t.name for t in found.initializer] == ["local"]
    assert list(found.node[0].input) == ["x", "local"]
    assert found.node[0].doc_string == "inner doc"
    assert [(p.key, p.value) for p in found.node[0].metadata_props] == [("origin", "layer 7")]


def test_constant_of_a_branch_that_shadows_one_outside(kit):
    """Neither the checker nor ONNX Runtime minds: it computes the same, or it is refused."""
    shape = (2, 3)
    own = numpy_helper.from_array(np.array([5, 6, 7], np.float32), "k")
    then = _branch(kit, "then", [helper.make_node("Add", ["x", "k"], ["then"])], shape, [own])
    otherwise = _branch(kit, "else", [helper.make_node("Neg", ["x"], ["else"])], shape)
    nodes = [
        helper.make_node("If", ["which"], ["i"], name="i", then_branch=then, else_branch=otherwise),
        helper.make_node("Mul", ["i", "k"], ["y"], name="mul"),
    ]
    inputs = [kit.value("x", shape), kit.value("which", (), BOOL)]
    constants = {"k": np.array([1, 2, 3], np.float32)}
    model = kit.model(nodes, inputs, [kit.value("y", shape)], constants)
    try:
        result = canonicalise(model).model
    except ModelError:
        return  # its names are not unique, so that it may well be refused
    for which in (True, False):
        feeds = {"x": kit.whole(shape, seed=1), "which": np.array(which)}
        kit.assert_same(model, result, feeds)


def test_optional_tensor_out_of_a_branch(kit):
    """A type that graphsurgeon does not know."""
    shape = (2, 3)
    optional = helper.make_optional_type_proto(
        helper.make_tensor_type_proto(TensorProto.FLOAT, shape)
    )
    branches = {}
    for name, op in (("then", "Neg"), ("else", "Abs")):
        inner = [
            helper.make_node(op, ["x"], [f"{name} t"], name=name),
            helper.make_node("Optional", [f"{name} t"], [name], name=f"wrap {name}"),
        ]
        out = helper.make_value_info(name, optional)
        branches[f"{name}_branch"] = helper.make_graph(inner, name, [], [out])
    nodes = [
        helper.make_node("If", ["which"], ["o"], name="if", **branches),
        helper.make_node("OptionalGetElement", ["o"], ["y"], name="get"),
    ]
    inputs = [kit.value("x", shape), kit.value("which", (), BOOL)]
    model = kit.model(nodes, inputs, [kit.value("y", shape)])
    _check(kit, model, {"x": kit.whole(shape, seed=1)})
