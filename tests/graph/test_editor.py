"""The editor: fresh names and rewiring."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import helper, numpy_helper

from onnxcompress.errors import ModelError
from onnxcompress.graph.editor import Editor


@pytest.fixture
def model(kit):
    """x -> conv -> relu -> conv2 -> y, with a residual from relu."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "v"], ["c"], name="conv2", pads=[1, 0, 0, 1]),
        helper.make_node("Add", ["c", "b"], ["y"], name="add"),
    ]
    constants = {"w": kit.whole((4, 3, 2, 2), seed=1), "v": kit.whole((4, 4, 2, 2), seed=2)}
    outputs = [kit.value("y", (2, 4, 5, 4))]
    return kit.model(nodes, [kit.value("x", (2, 3, 6, 5))], outputs, constants)


@pytest.fixture
def feeds(kit):
    return {"x": kit.whole((2, 3, 6, 5), seed=3)}


def _halved(editor, name):
    """`name` replaced by itself at half the weight, and a doubling behind it."""
    node = editor.node(name)
    weight = editor.constant("half", node.inputs[1].values / 2)
    two = editor.constant("two", np.array(2, np.float32))
    middle = editor.variable("middle", like=node.outputs[0])
    editor.replace(
        node,
        [
            gs.Node(
                "Conv", attrs=dict(node.attrs), inputs=[node.inputs[0], weight], outputs=[middle]
            ),
            gs.Node("Mul", inputs=[middle, two]),
        ],
    )


def test_untouched_graph_comes_back_the_same(model):
    before = model.SerializeToString()
    editor = Editor(model)
    result = editor.finish()
    assert [n.name for n in result.graph.node] == ["conv", "relu", "conv2", "add"]
    for old, new in zip(model.graph.node, result.graph.node, strict=True):
        assert (new.op_type, list(new.input), list(new.output)) == (
            old.op_type,
            list(old.input),
            list(old.output),
        )
        assert list(new.attribute) == list(old.attribute)
        assert not new.metadata_props
    assert list(result.graph.initializer) == list(model.graph.initializer)
    assert editor.journal == []
    assert model.SerializeToString() == before


def test_the_given_model_is_never_changed(kit):
    """Not even the name of a tensor inside an attribute, which graphsurgeon likes to set."""
    fill = numpy_helper.from_array(np.array([2], np.float32))
    fill.ClearField("name")
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["k"], name="fill", value=fill),
        helper.make_node("Add", ["x", "k"], ["y"], name="add"),
    ]
    constants = {"s": np.array([2, 3])}
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))], constants)
    before = model.SerializeToString()
    editor = Editor(model)
    editor.set_attributes(editor.node("add"), {})
    result = editor.finish()
    assert model.SerializeToString() == before
    kit.assert_same(model, result, {"x": kit.whole((2, 3), seed=1)})


def test_replace_rewires_and_keeps_the_function(kit, model, feeds):
    before = model.SerializeToString()
    editor = Editor(model)
    _halved(editor, "conv")
    _halved(editor, "conv2")
    result = editor.finish()
    assert kit.operators(result) == ["Conv", "Mul", "Relu", "Conv", "Mul", "Add"]
    kit.assert_same(model, result, feeds)
    # The old weights are read by nobody any more.
    names = [t.name for t in result.graph.initializer]
    assert names == ["half", "two", "half_1", "two_1"]
    assert model.SerializeToString() == before


def test_replace_keeps_the_very_output_names(model):
    editor = Editor(model)
    _halved(editor, "conv")
    result = editor.finish()
    assert result.graph.node[1].output == ["a"]
    assert result.graph.node[2].input == ["a"]


def test_new_nodes_are_named_after_what_they_replace(model):
    editor = Editor(model)
    _halved(editor, "conv")
    assert [n.name for n in editor.finish().graph.node][:2] == ["conv_Conv", "conv_Mul"]


def test_given_names_are_kept_and_made_unique(model):
    editor = Editor(model)
    node = editor.node("conv")
    new = gs.Node("Conv", name="relu", attrs=dict(node.attrs), inputs=list(node.inputs))
    editor.replace(node, [new])
    result = editor.finish()
    assert [n.name for n in result.graph.node] == ["relu_1", "relu", "conv2", "add"]
    assert editor.node("relu_1") is new
    assert editor.node("relu").op == "Relu"


def test_replaced_node_is_gone(model):
    editor = Editor(model)
    node = editor.node("conv")
    _halved(editor, "conv")
    for ask in (lambda: editor.node("conv"), lambda: editor.replace(node, [gs.Node("Relu")])):
        with pytest.raises(ModelError, match="'conv' is not in the graph"):
            ask()


def test_replacement_must_leave_the_last_outputs_empty(model):
    editor = Editor(model)
    new = gs.Node("Relu", inputs=[editor.inputs[0]], outputs=[editor.variable("mine")])
    with pytest.raises(ModelError, match="'relu'"):
        editor.replace(editor.node("relu"), [new])


def test_names_are_handed_out_once(model):
    editor = Editor(model)
    assert editor.tensor_name("fresh") == "fresh"
    assert editor.tensor_name("fresh") == "fresh_1"
    # Taken already: an initializer, an input, an intermediate tensor, an output.
    assert [editor.tensor_name(n) for n in ("w", "x", "b", "y")] == ["w_1", "x_1", "b_1", "y_1"]
    assert editor.constant("w", np.zeros(1)).name == "w_2"
    assert editor.variable("b").name == "b_2"


def test_names_of_subgraphs_and_set_aside_weights_are_taken(kit):
    branch = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["inner"], name="neg")], "b", [], [kit.value("inner", (2,))]
    )
    other = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["other"], name="abs")], "o", [], [kit.value("other", (2,))]
    )
    node = helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch, else_branch=other)
    inputs = [kit.value("x", (2,)), kit.value("c", (), 9)]
    model = kit.model([node], inputs, [kit.value("y", (2,))])
    aside = {"aside": numpy_helper.from_array(np.zeros(3), "aside")}
    editor = Editor(model, weights=aside)
    assert editor.tensor_name("inner") == "inner_1"
    assert editor.tensor_name("aside") == "aside_1"


def test_constant_is_stored_contiguously(kit, model):
    editor = Editor(model)
    weight = kit.whole((2, 2, 3, 4), seed=5).transpose(3, 2, 1, 0)
    editor.set_input(editor.node("conv"), 1, editor.constant("t", weight))
    (tensor,) = [t for t in editor.finish().graph.initializer if t.name == "t"]
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), weight)


def test_bypass(kit, model, feeds):
    editor = Editor(model)
    relu = editor.node("relu")
    editor.bypass(relu, relu.inputs[0])
    result = editor.finish()
    assert kit.operators(result) == ["Conv", "Conv", "Add"]
    # Both readers were rewired, each at the position where it read the tensor.
    assert [list(n.input) for n in result.graph.node][1:] == [["a", "v"], ["c", "a"]]
    with pytest.raises(ModelError, match="'relu' is not in the graph"):
        editor.node("relu")


def test_bypass_refuses_what_makes_a_graph_output(model):
    editor = Editor(model)
    with pytest.raises(ModelError, match="'add' makes the graph output 'y'"):
        editor.bypass(editor.node("add"), editor.inputs[0])


def test_take_over_output(kit, model):
    editor = Editor(model)
    editor.take_over_output(editor.node("conv"), editor.node("relu"))
    result = editor.finish()
    assert kit.operators(result) == ["Conv", "Conv", "Add"]
    assert result.graph.node[0].output == ["b"]
    assert [list(n.input) for n in result.graph.node][1:] == [["b", "v"], ["c", "b"]]


def test_take_over_a_graph_output(model):
    editor = Editor(model)
    add = editor.node("add")
    follower = gs.Node("Relu", name="last", inputs=[add.outputs[0]])
    assert editor.is_output(add.outputs[0])
    assert not editor.is_output(editor.node("conv").outputs[0])
    del follower
    editor.take_over_output(editor.node("conv2"), add)
    result = editor.finish()
    assert result.graph.node[-1].name == "conv2"
    assert result.graph.node[-1].output == ["y"]


def test_set_input_appends_a_bias(kit, model, feeds):
    editor = Editor(model)
    bias = np.arange(4, dtype=np.float32)
    editor.set_input(editor.node("conv"), 2, editor.constant("bias", bias))
    result = editor.finish()
    assert list(result.graph.node[0].input) == ["x", "w", "bias"]
    assert not np.array_equal(kit.run(result, feeds)[0], kit.run(model, feeds)[0])


def test_set_input_leaves_omitted_inputs_omitted(kit):
    nodes = [helper.make_node("Clip", ["x"], ["y"], name="clip")]
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))])
    editor = Editor(model)
    editor.set_input(editor.node("clip"), 2, editor.constant("high", np.array(1, np.float32)))
    result = editor.finish()
    assert list(result.graph.node[0].input) == ["x", "", "high"]
    x = kit.whole((2, 3), seed=1)
    np.testing.assert_array_equal(kit.run(result, {"x": x})[0], np.minimum(x, 1))


def test_set_attributes(model):
    editor = Editor(model)
    editor.set_attributes(editor.node("conv2"), {"pads": None, "auto_pad": "SAME_LOWER"})
    (node,) = [n for n in editor.finish().graph.node if n.name == "conv2"]
    assert {a.name: helper.get_attribute_value(a) for a in node.attribute} == {
        "auto_pad": b"SAME_LOWER"
    }
