"""Layers with weights: they end the channels that flow in, and give new ones to what flows out."""

from __future__ import annotations

import numpy as np
import onnx

from onnxcompress.analyse.coupling.flow import FIXED, UNKNOWN, Ids, Values
from onnxcompress.analyse.coupling.tracer import (
    GroupedLayer,
    Tracer,
    attribute,
    describe,
    integer,
    operand,
)
from onnxcompress.graph.weights import weight_root


def conv(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Convolution, plain, grouped or depthwise: W [out, in / group, *k]."""
    _convolution(node, tracer, border=_has_padding(node))


def conv_transpose(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Transposed convolution, W [in, out / group, *k]: it shows a constant's phases and borders."""
    _convolution(node, tracer, border=True)


def _convolution(node: onnx.NodeProto, tracer: Tracer, *, border: bool) -> None:
    if not _has_weights(node, tracer):
        return
    group = integer(node, "group", 1)
    ids, values = _entering(node, tracer, axis=1)
    outputs = tracer.produce(node, 1)
    _tie(node, tracer, ids, outputs)
    if group == 1:
        absorb(node, tracer, ids, values, border=border)
        return
    inputs, results = ids.reshape(group, -1), outputs.reshape(group, -1)
    layer = GroupedLayer(node.name, inputs, results, values.reshape(group, -1), border)
    tracer.grouped.append(layer)


def gemm(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Dense layer alpha A B + beta C with a constant B."""
    if integer(node, "transA", 0):
        tracer.refuse(node, "its left operand is transposed")
        return
    if _has_weights(node, tracer):
        _dense(node, tracer)


def matmul(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Product with a constant matrix on the right; anything else is a barrier."""
    if not _has_weights(node, tracer):
        return
    if len(tracer.shape(operand(node, 1))) != 2 or len(tracer.shape(operand(node, 0))) < 2:
        tracer.refuse(node, "its right operand is not a matrix")
        return
    _dense(node, tracer)


def _dense(node: onnx.NodeProto, tracer: Tracer) -> None:
    axis = len(tracer.shape(node.output[0])) - 1
    ids, values = _entering(node, tracer, axis=axis)
    outputs = tracer.produce(node, axis)
    _tie(node, tracer, ids, outputs)
    absorb(node, tracer, ids, values, border=False)


def _has_weights(node: onnx.NodeProto, tracer: Tracer) -> bool:
    """Whether weight and bias are constants that can be cut; refuses the node otherwise."""
    for name in node.input[1:]:
        if name and weight_root(tracer.view, name) is None:
            what = "multiplies" if node.op_type == "MatMul" else "has weights"
            tracer.refuse(node, f"it {what} {name!r}, which is computed or fed at run time")
            return False
    return True


def _entering(node: onnx.NodeProto, tracer: Tracer, axis: int) -> tuple[Ids, Values]:
    """Ids and values of the channels that flow in along `axis`; fixed where none do."""
    extent = tracer.shape(node.input[0])[axis]
    flow = tracer.flow(node.input[0])
    if flow is None:
        return np.full(extent, FIXED, dtype=np.int64), np.full(extent, UNKNOWN)
    flow = tracer.carry(node, flow, axis)
    return flow.along(axis), flow.values_along(axis)


def absorb(node: onnx.NodeProto, tracer: Tracer, ids: Ids, values: Values, *, border: bool) -> None:
    """Block the channels whose remains a bias cannot take."""
    tracer.channels.block(
        ids[np.isnan(values)],
        f"when it is zero, what reaches {describe(node)} is not a constant",
    )
    bias = operand(node, 2) if node.op_type != "MatMul" else ""
    if bias and not tracer.view.is_constant(bias):
        tracer.channels.block(
            ids[np.nan_to_num(values) != 0.0],
            f"when it is zero, a constant is left that the bias of {describe(node)} cannot take",
        )
    if border:
        tracer.channels.block(
            ids[np.nan_to_num(values) != 0.0],
            f"when it is zero, {describe(node)} sees a constant that its borders would show",
        )


def _tie(node: onnx.NodeProto, tracer: Tracer, inputs: Ids, outputs: Ids) -> None:
    """Layers that share a weight keep sharing it: their channels go together."""
    root = weight_root(tracer.view, node.input[1])
    key = (root, node.op_type, integer(node, "transB", 0), integer(node, "group", 1))
    first = tracer.tied.setdefault(key, (node.name, inputs, outputs))
    if first[0] == node.name:
        return
    reason = f"{describe(node)} shares its weight with '{first[0]}', whose input cannot be cut"
    for mine, theirs in ((inputs, first[1]), (outputs, first[2])):
        if mine.shape == theirs.shape:
            tracer.channels.unite(mine, theirs, reason)


def _has_padding(node: onnx.NodeProto) -> bool:
    pads = attribute(node, "pads", ())
    automatic = str(attribute(node, "auto_pad", "NOTSET"))
    padded = any(pads) if isinstance(pads, (list, tuple)) else False
    return padded or automatic.startswith("SAME")
