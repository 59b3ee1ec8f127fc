"""Pooling, reductions and softmax: the axes they look along cannot carry channels."""

from __future__ import annotations

import numpy as np
import onnx

from onnxcompress.analyse.coupling.flow import UNKNOWN, Flow, Values, make_flow
from onnxcompress.analyse.coupling.tracer import (
    Tracer,
    attribute,
    describe,
    integer,
    operand,
)

REDUCTIONS = frozenset(
    [
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
    ]
)
POOLS = frozenset(
    ["AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"]
)
_KEEP_CONSTANTS = frozenset(
    ["ReduceMean", "ReduceMax", "ReduceMin", "MaxPool", "GlobalMaxPool"]
) | {"GlobalAveragePool"}
_LOSE_ZERO = frozenset({"ReduceLogSum", "ReduceLogSumExp"})


def pool(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Channel by channel; borders and windows show a constant unless it is zero."""
    flow = tracer.flow(node.input[0])
    if flow is None:
        return
    if len(node.output) > 1 and node.output[1]:
        tracer.block(flow, f"{describe(node)} gives positions that count channels")
        return
    flow = tracer.carry(node, flow, 1)
    values = _one_value(flow, range(2, len(flow.shape)))
    if node.op_type not in _KEEP_CONSTANTS and not _plain_average(node):
        values = np.where(values == 0.0, 0.0, UNKNOWN)
    tracer.put(node, make_flow(tracer.shape(node.output[0]), flow.ids, values))


def reduction(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Reduce over axes that carry no channels, or where every channel meets its like."""
    flow = tracer.flow(node.input[0])
    tracer.block_inputs(node, f"it sets a parameter of {describe(node)}", range(1, 99))
    if flow is None:
        return
    axes = _axes(node, tracer, len(flow.shape))
    if axes is None:
        tracer.block(flow, f"{describe(node)} decides at run time along which axes it works")
        return
    for axis in axes:
        flow = tracer.fold(node, flow, axis)
    values = _one_value(flow, axes)
    if node.op_type in _LOSE_ZERO:
        values = np.full_like(values, UNKNOWN)
    elif node.op_type not in _KEEP_CONSTANTS:
        values = np.where(values == 0.0, 0.0, UNKNOWN)
    ids = flow.ids
    if not integer(node, "keepdims", 1):
        ids, values = np.squeeze(ids, tuple(axes)), np.squeeze(values, tuple(axes))
    tracer.put(node, make_flow(tracer.shape(node.output[0]), ids, values))


def softmax(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Softmax and its like: along one axis, or (before opset 13) along all from there on."""
    flow = tracer.flow(node.input[0])
    if flow is None:
        return
    rank = len(flow.shape)
    old = tracer.view.opset() < 13
    axis = integer(node, "axis", 1 if old else -1) % rank
    for each in range(axis, rank if old else axis + 1):
        flow = tracer.fold(node, flow, each)
    # Along an axis that the softmax sums over, all positions must stay: ids are folded there.
    tracer.put(node, make_flow(flow.shape, flow.ids, np.full_like(flow.values, UNKNOWN)))


def _one_value(flow: Flow, axes: range | list[int]) -> Values:
    """The values where they do not change along `axes`, else unknown."""
    values = flow.values
    for axis in axes:
        if values.shape[axis] > 1:
            head = values.take([0], axis)
            values = np.where((values == head).all(axis=axis, keepdims=True), head, UNKNOWN)
    return values


def _plain_average(node: onnx.NodeProto) -> bool:
    """An average that divides by what it really covered keeps constants."""
    return (
        node.op_type == "AveragePool"
        and not integer(node, "count_include_pad", 0)
        and not integer(node, "ceil_mode", 0)
    )


def _axes(node: onnx.NodeProto, tracer: Tracer, rank: int) -> list[int] | None:
    """The axes reduced; None when they are computed at run time."""
    given = attribute(node, "axes")
    if isinstance(given, (list, tuple)):
        return [int(a) % rank for a in given]
    name = operand(node, 1)
    if not name:
        return [] if integer(node, "noop_with_empty_axes", 0) else list(range(rank))
    axes = tracer.constant(name)
    if axes is None:
        return None
    found = [int(a) % rank for a in np.ravel(axes)]
    if not found:
        return [] if integer(node, "noop_with_empty_axes", 0) else list(range(rank))
    return found
