"""What the editor keeps and drops in the end, and what its journal says."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import helper

from onnxcompress.errors import ModelError
from onnxcompress.graph.editor import Editor


def test_journal_names_action_node_and_author(kit):
    nodes = [
        helper.make_node("Identity", ["x"], ["a"], name="identity"),
        helper.make_node("Constant", [], ["k"], name="constant", value_float=2.0),
        helper.make_node("Mul", ["a", "k"], ["b"], name="mul"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("Neg", ["c"], ["y"], name="neg"),
    ]
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))])
    editor = Editor(model)
    identity = editor.node("identity")
    editor.bypass(identity, identity.inputs[0])
    editor.sign("a pass")
    assert editor.lift_constants() == 1
    editor.set_input(editor.node("mul"), 1, editor.constant("k", np.array(3, np.float32)))
    editor.sign("another")
    editor.replace(editor.node("relu"), [gs.Node("Abs", inputs=[editor.node("mul").outputs[0]])])
    minus = gs.Node("Neg", inputs=[editor.inputs[0]], outputs=[editor.variable("minus")])
    editor.insert_before(editor.node("neg"), minus)
    editor.set_attributes(editor.node("neg"), {})
    editor.take_over_output(editor.node("relu_Abs"), editor.node("neg"))
    assert [(e.action, e.node, e.author) for e in editor.journal] == [
        ("bypass", "identity", ""),
        ("lift", "constant", "a pass"),
        ("rewire", "mul", "a pass"),
        ("replace", "relu", "another"),
        ("insert", minus.name, "another"),
        ("attributes", "neg", "another"),
        ("absorb", "neg", "another"),
    ]
    result = editor.finish()
    # The inserted node is read by nobody.
    assert kit.operators(result) == ["Mul", "Abs"]
    x = kit.whole((2, 3), seed=1)
    np.testing.assert_array_equal(kit.run(result, {"x": x})[0], abs(x * 3))


def test_insert_before_stands_in_front(kit):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="relu"),
        helper.make_node("Neg", ["a"], ["y"], name="neg"),
    ]
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))])
    editor = Editor(model)
    neg = editor.node("neg")
    made = editor.variable("doubled", like=neg.inputs[0])
    editor.insert_before(neg, gs.Node("Add", inputs=[neg.inputs[0]] * 2, outputs=[made]))
    editor.set_input(neg, 0, made)
    result = editor.finish()
    assert [n.name for n in result.graph.node] == ["relu", "neg_Add", "neg"]
    x = kit.whole((2, 3), seed=1)
    np.testing.assert_array_equal(kit.run(result, {"x": x})[0], -2 * np.maximum(x, 0))


def test_insert_before_a_node_that_is_gone(kit):
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    editor = Editor(kit.model(nodes, [kit.value("x", (2,))], [kit.value("y", (2,))]))
    with pytest.raises(ModelError, match="'stranger' is not in the graph"):
        editor.insert_before(gs.Node("Neg", name="stranger"), gs.Node("Relu"))


def test_dead_code_goes_and_weights_with_it(kit):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["d1"], name="dead1"),
        helper.make_node("Relu", ["d1"], ["d2"], name="dead2"),
        helper.make_node("Neg", ["x"], ["y"], name="neg"),
    ]
    weights = {"w": kit.whole((3, 4), seed=1), "loose": np.ones(2, np.float32)}
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))], weights)
    result = Editor(model).finish()
    assert [n.name for n in result.graph.node] == ["neg"]
    assert not result.graph.initializer


def test_node_with_one_live_output_of_several_stays_whole(kit):
    nodes = [
        helper.make_node("Split", ["x", "s"], ["a", "b", "c"], name="split", axis=1),
        helper.make_node("Neg", ["b"], ["y"], name="neg"),
    ]
    constants = {"s": np.array([1, 2, 3])}
    model = kit.model(nodes, [kit.value("x", (2, 6))], [kit.value("y", (2, 2))], constants)
    result = Editor(model).finish()
    assert list(result.graph.node[0].output) == ["a", "b", "c"]
    kit.assert_same(model, result, {"x": kit.whole((2, 6), seed=1)})


def test_omitted_outputs_keep_no_node_alive_and_are_kept(kit):
    """TopK's first output is omitted; a dead Dropout has an omitted one as well."""
    nodes = [
        helper.make_node("Dropout", ["x"], ["d", ""], name="dead"),
        helper.make_node("TopK", ["x", "k"], ["", "y"], name="topk"),
    ]
    constants = {"k": np.array([2])}
    model = kit.model(nodes, [kit.value("x", (3, 4))], [kit.value("y", (3, 2), 7)], constants)
    result = Editor(model).finish()
    assert [(n.name, list(n.output)) for n in result.graph.node] == [("topk", ["", "y"])]


def test_replacing_one_output_of_a_node_with_several(kit):
    nodes = [
        helper.make_node("Split", ["x", "s"], ["a", "b"], name="split", axis=1),
        helper.make_node("Sub", ["a", "b"], ["y"], name="sub"),
    ]
    constants = {"s": np.array([2, 2])}
    model = kit.model(nodes, [kit.value("x", (3, 4))], [kit.value("y", (3, 2))], constants)
    editor = Editor(model)
    split = editor.node("split")
    swapped = gs.Node("Split", attrs=dict(split.attrs), inputs=list(split.inputs))
    editor.replace(split, [swapped])
    result = editor.finish()
    assert list(result.graph.node[0].output) == ["a", "b"]
    kit.assert_same(model, result, {"x": kit.whole((3, 4), seed=1)})


def _branches(kit, shape, then, otherwise):
    return {
        "then_branch": helper.make_graph(then, "then", [], [kit.value("then", shape)]),
        "else_branch": helper.make_graph(otherwise, "else", [], [kit.value("else", shape)]),
    }


@pytest.fixture
def capturing(kit):
    """`deep` is read only by a branch inside a branch, `shallow` only by a branch."""
    shape = (2, 3)
    inner = helper.make_node(
        "If",
        ["which"],
        ["inner"],
        name="inner if",
        then_branch=helper.make_graph(
            [helper.make_node("Neg", ["deep"], ["t2"])], "t2", [], [kit.value("t2", shape)]
        ),
        else_branch=helper.make_graph(
            [helper.make_node("Abs", ["x"], ["e2"])], "e2", [], [kit.value("e2", shape)]
        ),
    )
    then = [inner, helper.make_node("Relu", ["inner"], ["then"], name="inner relu")]
    otherwise = [helper.make_node("Neg", ["shallow"], ["else"], name="inner neg")]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["deep"], name="deep"),
        helper.make_node("Abs", ["x"], ["shallow"], name="shallow"),
        helper.make_node("Sqrt", ["x"], ["dead"], name="dead"),
        helper.make_node(
            "If", ["which"], ["y"], name="if", **_branches(kit, shape, then, otherwise)
        ),
    ]
    inputs = [kit.value("x", shape), kit.value("which", (), 9)]
    return kit.model(nodes, inputs, [kit.value("y", shape)], {"w": kit.whole((3, 3), seed=1)})


def _assert_same_either_way(kit, model, result):
    for which in (True, False):
        feeds = {"x": kit.whole((2, 3), seed=2), "which": np.array(which)}
        kit.assert_same(model, result, feeds)


def test_subgraph_captures_keep_nodes_alive(kit, capturing):
    result = Editor(capturing).finish()
    assert [n.name for n in result.graph.node] == ["deep", "shallow", "if"]
    _assert_same_either_way(kit, capturing, result)


def test_replaced_tensors_reach_the_subgraphs(kit, capturing):
    editor = Editor(capturing)
    deep, shallow = editor.node("deep"), editor.node("shallow")
    editor.replace(deep, [gs.Node("MatMul", inputs=list(deep.inputs))])
    twice = editor.variable("twice")
    first = gs.Node("Abs", inputs=[shallow.inputs[0]], outputs=[twice])
    editor.replace(shallow, [first, gs.Node("Abs", inputs=[twice])])
    result = editor.finish()
    assert kit.operators(result) == ["MatMul", "Abs", "Abs", "If"]
    _assert_same_either_way(kit, capturing, result)


def test_bypassed_tensors_are_renamed_in_the_subgraphs(kit, capturing):
    capturing.graph.node[0].output[0] = "product"
    capturing.graph.node.insert(1, helper.make_node("Identity", ["product"], ["deep"], name="id"))
    editor = Editor(capturing)
    identity = editor.node("id")
    editor.bypass(identity, identity.inputs[0])
    result = editor.finish()
    assert "Identity" not in kit.operators(result)
    _assert_same_either_way(kit, capturing, result)


def test_long_chains_need_no_recursion(kit):
    depth = 3000
    nodes = [helper.make_node("Neg", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(depth)]
    inputs, outputs = [kit.value("t0", (2,))], [kit.value(f"t{depth}", (2,))]
    result = Editor(kit.model(nodes, inputs, outputs)).finish()
    assert [n.name for n in result.graph.node] == [f"n{i}" for i in range(depth)]


def test_unnamed_and_duplicate_nodes_get_names_of_their_own(kit):
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Abs", ["a"], ["b"]),
        helper.make_node("Neg", ["b"], ["c"], name="n"),
        helper.make_node("Abs", ["c"], ["y"], name="n"),
    ]
    model = kit.model(nodes, [kit.value("x", (2,))], [kit.value("y", (2,))])
    before = model.SerializeToString()
    editor = Editor(model)
    names = [node.name for node in editor.nodes]
    assert len({*names, ""}) == 5
    assert names[2] == "n"
    for node in editor.nodes:
        assert editor.node(node.name) is node
    assert [n.name for n in editor.finish().graph.node] == names
    assert model.SerializeToString() == before
    assert [node.name for node in Editor(model).nodes] == names
