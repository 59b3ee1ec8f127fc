"""A residual branch replaced by a constant per channel, which goes where it costs nothing.

The sum x + m needs no node where x comes straight from a layer: its bias takes m. Through an Add
the constant goes on to a layer behind it. A ReLU in between lets it through as a maximum,
relu(s) + m = max(s + m, m), and a ReLU behind it is part of that: relu(max(s, c)) is
max(s, relu(c)).
Where none of this applies, the Add stays, with a constant.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxcompress.graph.editing import apply_edits
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.edits import Absorb
from onnxcompress.graph.view import GraphView

Vector = NDArray[np.float64]
_BROADCASTING_MAX = 8
"""The opset from which on Max takes a constant per channel."""


def remove_branch(editor: Editor, add: str, index: int, mean: Vector) -> None:
    """Let the branch that enters an Add be a constant.

    Args:
        editor: the graph; channels that go are cut already.
        add: the Add.
        index: the branch's input of it.
        mean: the constant per channel (axis 1), for the channels that are there.
    """
    node = editor.node(add)
    shortcut = node.inputs[1 - index]
    node_behind = _sole_relu(editor, node)
    if not mean.any() and (node_behind is None or _is_relu(_maker(shortcut))):
        # Nothing is added; a second ReLU behind the first would change nothing either.
        _pass_by(editor, node, node_behind, shortcut)
        return
    branch = node.inputs[index]
    editor.set_input(node, index, _constant(editor, add, mean, branch))
    if not _alive_only_for(editor, shortcut, node) or editor.is_output(node.outputs[0]):
        return
    maker = _maker(shortcut)
    if _is_relu(maker) and editor.opset < _BROADCASTING_MAX:
        return
    if maker is not None and _is_relu(maker) and _alive_only_for(editor, maker.inputs[0], maker):
        if _into_bias(editor, maker.inputs[0], mean):
            floor = np.maximum(mean, 0.0) if node_behind is not None else mean
            _become_maximum(editor, maker, floor)
            _pass_by(editor, node, node_behind, shortcut)
    elif (
        maker is not None
        and _is_maximum(maker, len(mean))
        and _alive_only_for(editor, maker.inputs[0], maker)
        and _into_bias(editor, maker.inputs[0], mean)
    ):
        floor = np.asarray(maker.inputs[1].values, dtype=np.float64).ravel() + mean
        floor = np.maximum(floor, 0.0) if node_behind is not None else floor
        _set_floor(editor, maker, floor)
        _pass_by(editor, node, node_behind, shortcut)
    elif _into_bias(editor, shortcut, mean):
        _pass_by(editor, node, None, shortcut)


def restore_thresholds(editor: Editor, before: GraphView) -> None:
    """Put ReLUs back where the mean of a removed branch had turned them into maxima.

    What such a maximum stands for is the stream behind the branch, mean and all: whoever fits the
    layers in front of it to that stream needs the ReLU.

    Args:
        editor: the graph without the branches.
        before: the original.
    """
    for node in editor.nodes:
        old = before.producers.get(node.outputs[0].name) if node.outputs else None
        if node.op == "Max" and _is_relu_proto(old):
            editor.replace(node, [gs.Node("Relu", f"{node.name}_relu", inputs=[node.inputs[0]])])


def _is_relu_proto(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "Relu" and node.domain in {"", "ai.onnx"}


def _into_bias(editor: Editor, tensor: gs.Tensor, mean: Vector) -> bool:
    """Add the constant to the bias of a layer that makes `tensor`, or a summand of it."""
    maker = _maker(tensor)
    if maker is None or editor.is_output(tensor) or tensor.name in editor.captured:
        return False
    if maker.op in {"Conv", "ConvTranspose", "Gemm"}:
        bias = maker.inputs[2] if len(maker.inputs) > 2 and maker.inputs[2].name else None
        if bias is not None and not isinstance(bias, gs.Constant):
            return False
        apply_edits([Absorb(maker.name, mean)], editor)
        return True
    if maker.op == "Add":
        return any(
            _alive_only_for(editor, summand, maker) and _into_bias(editor, summand, mean)
            for summand in maker.inputs
            if not isinstance(summand, gs.Constant)
        )
    return False


def _become_maximum(editor: Editor, relu: gs.Node, floor: Vector) -> None:
    """A ReLU whose threshold is another constant than zero."""
    if not floor.any():
        return
    source = relu.inputs[0]
    constant = _constant(editor, relu.name, floor, source)
    editor.replace(relu, [gs.Node("Max", f"{relu.name}_max", inputs=[source, constant])])


def _set_floor(editor: Editor, maximum: gs.Node, floor: Vector) -> None:
    constant = _constant(editor, maximum.name, floor, maximum.inputs[0])
    editor.set_input(maximum, 1, constant)


def _pass_by(editor: Editor, add: gs.Node, relu: gs.Node | None, shortcut: gs.Tensor) -> None:
    """Let readers of the sum (and of the ReLU behind it) read the shortcut instead."""
    last = relu if relu is not None else add
    if editor.is_output(last.outputs[0]):
        editor.replace(last, [gs.Node("Identity", f"{last.name}_same", inputs=[shortcut])])
    else:
        editor.bypass(last, shortcut)


def _sole_relu(editor: Editor, add: gs.Node) -> gs.Node | None:
    output = add.outputs[0]
    if editor.is_output(output) or output.name in editor.captured or len(output.outputs) != 1:
        return None
    return output.outputs[0] if _is_relu(output.outputs[0]) else None


def _alive_only_for(editor: Editor, tensor: gs.Tensor, reader: gs.Node) -> bool:
    """Whether `reader` is the only one whose reading of `tensor` still matters."""
    if editor.is_output(tensor) or tensor.name in editor.captured:
        return False
    once = sum(node is reader for node in tensor.outputs) == 1
    return once and all(node is reader or not editor.is_alive(node) for node in tensor.outputs)


def _maker(tensor: gs.Tensor) -> gs.Node | None:
    return tensor.inputs[0] if len(tensor.inputs) == 1 else None


def _is_relu(node: gs.Node | None) -> bool:
    return node is not None and node.op == "Relu"


def _is_maximum(node: gs.Node | None, channels: int) -> bool:
    """Whether a node takes the maximum with one constant per channel, as this module makes it."""
    return (
        node is not None
        and node.op == "Max"
        and len(node.inputs) == 2
        and isinstance(node.inputs[1], gs.Constant)
        and tuple(node.inputs[1].shape)[:2] == (1, channels)
        and int(np.prod(node.inputs[1].shape)) == channels
    )


def _constant(editor: Editor, hint: str, values: Vector, like: gs.Tensor) -> gs.Constant:
    """A constant per channel, for tensors [N, C, *]."""
    dtype = np.dtype(like.dtype) if like.dtype is not None else np.dtype(np.float32)
    rank = len(like.shape) if like.shape is not None else 4
    lined = values.reshape(1, -1, *([1] * (rank - 2)))
    return editor.constant(f"{hint}_mean", lined.astype(dtype))
