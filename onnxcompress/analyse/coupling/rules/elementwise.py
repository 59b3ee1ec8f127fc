"""Element-wise operators unite the ids that meet; an extent of one that broadcasts unites nothing.

A constant operand is cut along with the channels, so it unites nothing either. The values follow
by running the operator on them; what meets an unknown becomes unknown, except that zero times
anything is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.coupling.execute import as_wide
from onnxcompress.analyse.coupling.flow import FIXED, UNKNOWN, Flow, Values, make_flow
from onnxcompress.analyse.coupling.tracer import Tracer, describe
from onnxcompress.errors import ModelError
from onnxcompress.runtime import Array

UNARY = frozenset(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "Cast",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
    ]
)
BROADCASTING = frozenset(
    [
        "Add",
        "And",
        "Div",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "Mean",
        "Min",
        "Mod",
        "Mul",
        "Or",
        "PRelu",
        "Pow",
        "Sub",
        "Sum",
        "Where",
        "Xor",
    ]
)


def unary(node: onnx.NodeProto, tracer: Tracer) -> None:
    """One tensor in; parameters (bounds, ratios) are scalars."""
    flow = tracer.flow(node.input[0])
    if flow is None:
        tracer.block_inputs(node, f"it sets a parameter of {describe(node)}")
        return
    tracer.block_inputs(node, f"it sets a parameter of {describe(node)}", range(1, 99))
    tracer.block_if_used(node, flow, range(1, len(node.output)))
    if any(name and tracer.constant(name) is None for name in node.input[1:]):
        values = np.full_like(flow.values, UNKNOWN)
    elif node.op_type in {"Identity", "Dropout"}:
        values = flow.values
    else:
        parameters = [tracer.constant(name) if name else None for name in node.input[1:]]
        values = run_on_values(node, tracer, [flow.values, *parameters])
        _demand_finite(node, tracer, flow, values, np.isfinite(flow.values))
    tracer.put(node, Flow(flow.shape, flow.ids, values))


def broadcasting(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Several tensors in, aligned at their last axes; PRelu's slope is aligned the same way."""
    shape = tracer.shape(node.output[0])
    operands = [_aligned(name, tracer, len(shape)) for name in node.input]
    ids = _united(node, tracer, operands, shape)
    if not ids.any():
        return
    known = [_known(one, ids, tracer) for one in operands]
    values = _values(node, tracer, known)
    finite = np.logical_and.reduce(np.broadcast_arrays(*[np.isfinite(v) for v in known]))
    flow = make_flow(shape, ids, values)
    _demand_finite(node, tracer, flow, values, finite)
    if node.op_type == "Div":
        own = _is_own(operands[1], ids, tracer)
        below, met = np.broadcast_arrays((known[1] == 0.0) | (np.isnan(known[1]) & own), ids)
        tracer.channels.block(met[below], f"{describe(node)} divides by it")
    tracer.put(node, flow)


def _aligned(name: str, tracer: Tracer, rank: int) -> tuple[tuple[int, ...], Flow | Array | None]:
    """Shape of an operand with leading ones, and its flow, its constant values, or None."""
    shape = tracer.shape(name)
    lead = (1,) * (rank - len(shape))
    flow = tracer.flow(name)
    if flow is not None:
        flow = Flow(
            lead + shape,
            flow.ids.reshape(lead + flow.ids.shape),
            flow.values.reshape(lead + flow.values.shape),
        )
        return lead + shape, flow
    constant = tracer.constant(name)
    return lead + shape, None if constant is None else constant.reshape(lead + shape)


def _united(
    node: onnx.NodeProto,
    tracer: Tracer,
    operands: list[tuple[tuple[int, ...], Flow | Array | None]],
    shape: tuple[int, ...],
) -> NDArray[np.int64]:
    """The ids of the result, after those that meet are united."""
    flows = [one for _, one in operands if isinstance(one, Flow)]
    varying = {axis for flow in flows for axis in flow.varying}
    ids = np.full((1,) * len(shape), FIXED, dtype=np.int64)
    reason = f"{describe(node)} joins it with values that cannot be cut"
    for extents, one in operands:
        stretched = {a for a in varying if extents[a] == 1 < shape[a]}
        if isinstance(one, Flow):
            if stretched:
                # It acts on all channels of another tensor at once: no part of that goes with it.
                tracer.block(one, f"{describe(node)} spreads it over other channels")
            elif ids.any():
                both = np.broadcast_arrays(ids, one.ids)
                tracer.channels.unite(both[0], both[1], reason)
                ids = np.where(both[0] == FIXED, both[1], both[0])
            else:
                ids = one.ids
    for extents, one in operands:
        cuts = any(extents[a] > 1 for a in range(len(shape)) if ids.shape[a] > 1)
        if one is None and cuts:
            tracer.channels.block(ids, reason)
    return ids


def _known(
    operand: tuple[tuple[int, ...], Flow | Array | None], ids: NDArray[np.int64], tracer: Tracer
) -> Values:
    """The operand's values where its own channel is the one that is zero; elsewhere unknown."""
    extents, one = operand
    if one is None:
        return np.full((1,) * len(extents), UNKNOWN)
    if not isinstance(one, Flow):
        return as_wide(one)
    values = np.broadcast_arrays(one.ids, ids, one.values)[2]
    return np.where(_is_own(operand, ids, tracer), values, UNKNOWN)


def _is_own(
    operand: tuple[tuple[int, ...], Flow | Array | None], ids: NDArray[np.int64], tracer: Tracer
) -> NDArray[np.bool_]:
    """Where the operand's element is of the very channel that the result's element is of."""
    if not isinstance(operand[1], Flow):
        return np.zeros((1,) * len(operand[0]), dtype=bool)
    mine, theirs = np.broadcast_arrays(operand[1].ids, ids)
    roots = tracer.channels.roots
    return np.asarray((roots(mine) == roots(theirs)) & (mine != FIXED))


def _values(node: onnx.NodeProto, tracer: Tracer, known: list[Values]) -> Values:
    unknown = np.logical_or.reduce(np.broadcast_arrays(*[np.isnan(v) for v in known]))
    filled = [np.where(np.isnan(v), 1.0, v) for v in known]
    values = np.where(unknown, UNKNOWN, run_on_values(node, tracer, filled))
    if node.op_type in {"Mul", "And"}:
        zero = np.logical_or.reduce(np.broadcast_arrays(*[v == 0.0 for v in known]))
        values = np.where(zero, 0.0, values)
    elif node.op_type == "Div":
        # What it is divided by is taken to be anything but zero, unless it is the same channel's.
        zero = np.broadcast_arrays((known[0] == 0.0) & np.isnan(known[1]), values)[0]
        values = np.where(zero, 0.0, values)
    elif node.op_type == "PRelu":
        values = np.where(np.broadcast_arrays(known[0] == 0.0, values)[0], 0.0, values)
    return values


def run_on_values(node: onnx.NodeProto, tracer: Tracer, operands: Sequence[Array | None]) -> Values:
    """The operator on values, in the types that the model computes in.

    What is unknown in the first operand stays unknown, whatever the kernel makes of NaN.
    """
    unknown = operands[0] is not None and np.isnan(as_wide(operands[0]))
    operands = [None if v is None else _numbers(v) for v in operands]
    typed = [
        None if v is None else v.astype(_dtype(node, i, tracer)) for i, v in enumerate(operands)
    ]
    try:
        with np.errstate(all="ignore"):
            found = as_wide(tracer.runner.run(node, typed)[0])
    except ModelError:
        # No kernel for it by itself: nothing is known about the result.
        present = [v for v in operands if v is not None]
        return np.full(np.broadcast_shapes(*[v.shape for v in present]), UNKNOWN)
    return np.where(unknown, UNKNOWN, found)


def _numbers(values: Array) -> Array:
    return np.where(np.isnan(values), 0.0, values) if values.dtype.kind == "f" else values


def _dtype(node: onnx.NodeProto, index: int, tracer: Tracer) -> np.dtype[np.generic]:
    kind = tracer.types.get(node.input[index], onnx.TensorProto.FLOAT)
    if kind in {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}:
        kind = onnx.TensorProto.FLOAT
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def _demand_finite(
    node: onnx.NodeProto, tracer: Tracer, flow: Flow, values: Values, finite: NDArray[np.bool_]
) -> None:
    """Block what known, finite operands turn into infinity or NaN: a division by a channel."""
    ids, broken, came = np.broadcast_arrays(flow.ids, ~np.isfinite(values), finite)
    tracer.channels.block(
        ids[broken & came], f"{describe(node)} is not finite where the channel is zero"
    )
