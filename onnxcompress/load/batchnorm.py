"""BatchNormalization folded into its neighbour, exactly.

With f = scale / sqrt(var + epsilon) and s = bias - mean * f, inference-mode BatchNormalization is
the per-channel map y = f x + s.

After a layer:   f (W x + b) + s = (f W) x + (f b + s), always.
Before a layer:  W (f x + s) + b = (W f) x + (b + W s). For a convolution the second term is the
same at every position only where no zero padding is mixed in, so a padded one is left alone
unless s = 0.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxcompress.graph.editor import Editor

Array = NDArray[np.float64]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})


def fold_batchnorm(editor: Editor) -> int:
    """Fold every BatchNormalization that can be folded exactly; return how many were."""
    total = 0
    # One that was folded may leave another beside a layer.
    while folded := _fold_once(editor):
        total += folded
    return total


def _fold_once(editor: Editor) -> int:
    folded = 0
    for node in editor.nodes:
        if node.op != "BatchNormalization" or not (_is_onnx(node) and _is_inference(node)):
            continue
        factor, shift = _affine(node)
        if not (np.isfinite(factor).all() and np.isfinite(shift).all()):
            continue
        before = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
        if (
            before is not None
            and before.op in _LAYERS
            and _is_onnx(before)
            and _only_reader(editor, node.inputs[0], node)
            and _fold_after(editor, before, factor, shift)
        ):
            editor.take_over_output(before, node)
            folded += 1
            continue
        after = node.outputs[0].outputs[0] if node.outputs[0].outputs else None
        if (
            after is not None
            and after.op in _LAYERS
            and _is_onnx(after)
            and after.inputs[0] is node.outputs[0]
            and _only_reader(editor, node.outputs[0], after)
            and _fold_before(editor, after, factor, shift)
        ):
            editor.bypass(node, node.inputs[0])
            folded += 1
    return folded


def _is_onnx(node: gs.Node) -> bool:
    return node.domain in {None, "", "ai.onnx"}


def _is_inference(node: gs.Node) -> bool:
    """One output, inference mode, per-channel statistics, all parameters constant."""
    return (
        len([t for t in node.outputs if t.name]) == 1
        and not node.attrs.get("training_mode", 0)
        and node.attrs.get("spatial", 1) == 1
        and all(isinstance(t, gs.Constant) for t in node.inputs[1:5])
    )


def _affine(node: gs.Node) -> tuple[Array, Array]:
    scale, bias, mean, variance = (np.asarray(t.values, np.float64) for t in node.inputs[1:5])
    # A negative variance gives NaN, with which nothing is folded.
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = scale / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    return factor, bias - mean * factor


def _only_reader(editor: Editor, tensor: gs.Tensor, reader: gs.Node) -> bool:
    readers = list(tensor.outputs)
    return len(readers) == 1 and readers[0] is reader and not editor.is_output(tensor)


def _fold_after(editor: Editor, layer: gs.Node, factor: Array, shift: Array) -> bool:
    if not isinstance(layer.inputs[1], gs.Constant):
        return False
    weight = np.asarray(layer.inputs[1].values, np.float64)
    group = int(layer.attrs.get("group", 1))
    if layer.op == "Conv":
        scaled = weight * _column(factor, weight.ndim)
    elif layer.op == "ConvTranspose":
        # Weight [C_in, M / group, *k]: output channel g * M/group + j sits in block g, column j.
        blocks = weight.reshape(group, -1, *weight.shape[1:])
        per_block = factor.reshape(group, 1, -1, *([1] * (weight.ndim - 2)))
        scaled = (blocks * per_block).reshape(weight.shape)
    else:
        scaled = weight * (factor[:, None] if layer.attrs.get("transB", 0) else factor[None, :])
    bias = _bias(layer, len(factor))
    if bias is None:
        return False
    return _write(editor, layer, scaled, factor * bias + shift)


def _fold_before(editor: Editor, layer: gs.Node, factor: Array, shift: Array) -> bool:
    if not isinstance(layer.inputs[1], gs.Constant):
        return False
    weight = np.asarray(layer.inputs[1].values, np.float64)
    constant_shift = not np.any(shift)
    if layer.op == "Conv":
        if not constant_shift and _is_padded(layer):
            return False
        group = int(layer.attrs.get("group", 1))
        # Weight [M, C / group, *k]: row o of group g sees channels g * C/group + i.
        shape = (group, 1, -1, *([1] * (weight.ndim - 2)))
        blocks = weight.reshape(group, -1, *weight.shape[1:])
        scaled = (blocks * factor.reshape(shape)).reshape(weight.shape)
        added = (blocks * shift.reshape(shape)).reshape(len(weight), -1).sum(axis=1)
    elif layer.op == "ConvTranspose":
        # Every output position sums another set of taps: only a pure scale is exact.
        if not constant_shift:
            return False
        scaled = weight * _column(factor, weight.ndim)
        added = np.zeros(weight.shape[1] * int(layer.attrs.get("group", 1)))
    else:
        if layer.attrs.get("transA", 0):
            return False
        matrix = weight.T if layer.attrs.get("transB", 0) else weight
        scaled = factor[:, None] * matrix
        added = float(layer.attrs.get("alpha", 1.0)) * (shift @ matrix)
        scaled = scaled.T if layer.attrs.get("transB", 0) else scaled
    bias = _bias(layer, len(added))
    if bias is None:
        return False
    return _write(editor, layer, scaled, bias + added)


def _bias(layer: gs.Node, channels: int) -> Array | None:
    """The layer's bias per output channel, beta included; None if it is not one value each."""
    if len(layer.inputs) < 3 or not layer.inputs[2].name:
        return np.zeros(channels)
    if not isinstance(layer.inputs[2], gs.Constant):
        return None
    bias = np.asarray(layer.inputs[2].values, np.float64) * float(layer.attrs.get("beta", 1.0))
    if bias.size != 1 and (bias.size, bias.shape[-1]) != (channels, channels):
        return None
    return np.broadcast_to(bias.reshape(-1), (channels,)).copy()


def _write(editor: Editor, layer: gs.Node, weight: Array, bias: Array) -> bool:
    """Give the layer new constants, in the dtype of its old weight, unless they overflow there."""
    old = layer.inputs[1]
    dtype = old.values.dtype
    with np.errstate(over="ignore"):
        weight_cast, bias_cast = weight.astype(dtype), bias.astype(dtype)
    if not (np.isfinite(weight_cast).all() and np.isfinite(bias_cast).all()):
        return False
    editor.set_input(layer, 1, editor.constant(f"{old.name}_folded", weight_cast))
    hint = layer.inputs[2].name if len(layer.inputs) > 2 and layer.inputs[2].name else layer.name
    editor.set_input(layer, 2, editor.constant(f"{hint}_bias_folded", bias_cast))
    if layer.op == "Gemm" and layer.attrs.get("beta", 1.0) != 1.0:
        editor.set_attributes(layer, {"beta": None})
    return True


def _is_padded(layer: gs.Node) -> bool:
    if layer.attrs.get("auto_pad", "NOTSET") not in {"NOTSET", "VALID", ""}:
        return True
    return any(layer.attrs.get("pads", []))


def _column(values: Array, ndim: int) -> Array:
    return values.reshape(-1, *([1] * (ndim - 1)))
