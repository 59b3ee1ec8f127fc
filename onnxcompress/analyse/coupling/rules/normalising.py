"""Normalisations with constant parameters, and quantisation."""

from __future__ import annotations

import numpy as np
import onnx

from onnxcompress.analyse.coupling.execute import as_wide
from onnxcompress.analyse.coupling.flow import UNKNOWN, Flow, Values, expand, make_flow
from onnxcompress.analyse.coupling.rules.elementwise import run_on_values
from onnxcompress.analyse.coupling.tracer import (
    Tracer,
    attribute,
    describe,
    integer,
)


def batch_norm(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Y = (x - mean) / sqrt(var + epsilon) * scale + bias, channel by channel."""
    flow = _parameterised(node, tracer)
    if flow is None:
        return
    if any(node.output[1:]) or integer(node, "training_mode", 0):
        tracer.block(flow, f"{describe(node)} is in training mode")
        return
    scale, bias, mean, var = (
        _lined(as_wide(tracer.view.array(name)), flow) for name in node.input[1:5]
    )
    factor = scale / np.sqrt(var + _real(node, "epsilon", 1e-5))
    tracer.put(node, make_flow(flow.shape, flow.ids, (flow.values - mean) * factor + bias))


def instance_norm(node: onnx.NodeProto, tracer: Tracer) -> None:
    """A channel that is constant in space becomes its bias."""
    flow = _parameterised(node, tracer)
    if flow is None:
        return
    flow = tracer.carry(node, flow, 1)
    bias = _lined(as_wide(tracer.view.array(node.input[2])), flow)
    tracer.put(node, make_flow(flow.shape, flow.ids, _where_constant(flow, 2, bias)))


def group_norm(node: onnx.NodeProto, tracer: Tracer) -> None:
    """The channels of one group are normalised together, so they go together."""
    flow = _parameterised(node, tracer)
    if flow is None:
        return
    flow = tracer.carry(node, flow, 1)
    groups = integer(node, "num_groups", 1)
    line = flow.along(1).reshape(groups, -1)
    reason = f"{describe(node)} normalises it together with values that cannot be cut"
    tracer.channels.unite(np.broadcast_to(line[:, :1], line.shape), line, reason)
    bias = as_wide(tracer.view.array(node.input[2]))
    if len(bias) != flow.shape[1]:
        bias = np.repeat(bias, flow.shape[1] // len(bias))
    silent = np.nan_to_num(flow.values_along(1), nan=1.0).reshape(groups, -1) == 0.0
    quiet = np.repeat(silent.all(axis=1), line.shape[1])
    values = _lined(np.where(quiet, bias, UNKNOWN), flow)
    tracer.put(node, make_flow(flow.shape, flow.ids, values))


def layer_norm(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Normalises along all axes from `axis` on: none of them can carry channels."""
    flow = _parameterised(node, tracer)
    if flow is None:
        return
    tracer.block_if_used(node, flow, range(1, len(node.output)))
    for axis in range(integer(node, "axis", -1) % len(flow.shape), len(flow.shape)):
        flow = tracer.fold(node, flow, axis)
    tracer.put(node, make_flow(flow.shape, flow.ids, np.full_like(flow.values, UNKNOWN)))


def local_response_norm(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Looks at neighbouring channels."""
    tracer.block_inputs(node, f"{describe(node)} works across channels")


def quantisation(node: onnx.NodeProto, tracer: Tracer) -> None:
    """QuantizeLinear and DequantizeLinear, per tensor or per axis: run on the values."""
    flow = _parameterised(node, tracer)
    if flow is None:
        return
    if attribute(node, "block_size"):
        tracer.block(flow, f"{describe(node)} quantises block by block")
        return
    parameters = [tracer.view.array(name) if name else None for name in node.input[1:]]
    values = flow.values
    if parameters[0] is not None and parameters[0].size > 1:
        axis = integer(node, "axis", 1) % len(flow.shape)
        values = expand(values, flow.shape, [axis])
    values = run_on_values(node, tracer, [values, *parameters])
    tracer.put(node, make_flow(flow.shape, flow.ids, values))


def _parameterised(node: onnx.NodeProto, tracer: Tracer) -> Flow | None:
    """The flow into a node whose other operands are constants; None after blocking it."""
    flow = tracer.flow(node.input[0])
    tracer.block_inputs(node, f"it sets a parameter of {describe(node)}", range(1, 99))
    if flow is None:
        return None
    computed = [n for n in node.input[1:] if n and not tracer.view.is_constant(n)]
    if computed:
        tracer.block(flow, f"{describe(node)} takes '{computed[0]}', which is computed")
        return None
    return flow


def _lined(line: Values, flow: Flow, axis: int = 1) -> Values:
    shape = [1] * len(flow.shape)
    shape[axis] = -1
    return np.ravel(line).reshape(shape)


def _where_constant(flow: Flow, first: int, becomes: Values) -> Values:
    """`becomes` where the values do not change along the axes from `first` on, else unknown."""
    known = ~np.isnan(flow.values)
    for axis in range(first, len(flow.shape)):
        head = flow.values.take([0], axis)
        known = known & (flow.values == head)
        known = known.all(axis=axis, keepdims=True)
    return np.where(known, becomes, UNKNOWN)


def _real(node: onnx.NodeProto, name: str, default: float) -> float:
    value = attribute(node, name, default)
    return float(value) if isinstance(value, (int, float)) else default
