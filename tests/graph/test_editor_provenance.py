"""Who made a node, and out of what, is stamped into it at birth."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import helper

from onnxcompress.graph.editor import PROVENANCE_KEY, SOURCE_KEY, Editor


@pytest.fixture
def model(kit):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "v"], ["y"], name="conv2"),
    ]
    constants = {"w": kit.whole((4, 3, 2, 2), seed=1), "v": kit.whole((4, 4, 2, 2), seed=2)}
    outputs = [kit.value("y", (2, 4, 4, 3))]
    return kit.model(nodes, [kit.value("x", (2, 3, 6, 5))], outputs, constants)


def _stamps(node):
    return {p.key: p.value for p in node.metadata_props}


def _by_name(model):
    return {node.name: node for node in model.graph.node}


def _halved(editor, name):
    """`name` replaced by itself at half the weight, and a doubling behind it."""
    node = editor.node(name)
    weight = editor.constant("half", node.inputs[1].values / 2)
    two = editor.constant("two", np.array(2, np.float32))
    middle = editor.variable("middle", like=node.outputs[0])
    first = gs.Node("Conv", attrs=dict(node.attrs), inputs=[node.inputs[0], weight])
    first.outputs = [middle]
    editor.replace(node, [first, gs.Node("Mul", inputs=[middle, two])])


def test_provenance_is_stamped_into_new_nodes_only(model):
    editor = Editor(model)
    editor.sign("tucker2")
    _halved(editor, "conv")
    editor.sign("svd")
    _halved(editor, "conv2")
    result = _by_name(editor.finish())
    expected = {"conv": "tucker2", "conv2": "svd"}
    for source, author in expected.items():
        for op in ("Conv", "Mul"):
            stamps = _stamps(result[f"{source}_{op}"])
            assert stamps == {PROVENANCE_KEY: author, SOURCE_KEY: source}
    assert _stamps(result["relu"]) == {}


def test_stamps_survive_a_second_editor(model):
    editor = Editor(model)
    editor.sign("svd")
    _halved(editor, "conv")
    once = editor.finish()
    again = Editor(once)
    again.sign("tucker2")
    _halved(again, "conv2")
    result = _by_name(again.finish())
    assert _stamps(result["conv_Conv"]) == {PROVENANCE_KEY: "svd", SOURCE_KEY: "conv"}
    assert _stamps(result["conv2_Conv"]) == {PROVENANCE_KEY: "tucker2", SOURCE_KEY: "conv2"}


def test_unsigned_edits_leave_no_stamp(model):
    editor = Editor(model)
    _halved(editor, "conv")
    assert all(not _stamps(node) for node in editor.finish().graph.node)


def test_a_replacement_of_a_replacement_names_its_own_source(model):
    editor = Editor(model)
    editor.sign("first")
    _halved(editor, "conv")
    editor.sign("second")
    _halved(editor, "conv_Conv")
    result = _by_name(editor.finish())
    assert _stamps(result["conv_Mul"]) == {PROVENANCE_KEY: "first", SOURCE_KEY: "conv"}
    stamps = {PROVENANCE_KEY: "second", SOURCE_KEY: "conv_Conv"}
    assert _stamps(result["conv_Conv_Conv"]) == stamps
    assert _stamps(result["conv_Conv_Mul"]) == stamps
