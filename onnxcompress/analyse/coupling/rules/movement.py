"""Data movement: executed on the tensors of ids and of values, by the kernel that moves the data.

Only the axes that an operator touches get their real extents first; along the others nothing
changes, and a kernel that does not look at them need not see them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnxcompress.analyse.coupling.execute import as_wide
from onnxcompress.analyse.coupling.flow import FIXED, UNKNOWN, Flow, expand, make_flow
from onnxcompress.analyse.coupling.tracer import (
    Tracer,
    attribute,
    describe,
    integer,
    operand,
)
from onnxcompress.errors import ModelError
from onnxcompress.runtime import Array


def concat(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Constants that are joined on become channels of their own, so that they can be cut, too."""
    rank = len(tracer.shape(node.output[0]))
    axis = integer(node, "axis", 1) % rank
    given = [flow for name in node.input if (flow := tracer.flow(name)) is not None]
    flows = [_part(name, axis, given, tracer) for name in node.input]
    if not any(flow.tracked for flow in flows):
        return
    _move(node, tracer, flows, [], [axis])


def _part(name: str, axis: int, given: Sequence[Flow], tracer: Tracer) -> Flow:
    flow, shape = tracer.flow(name), tracer.shape(name)
    if flow is not None:
        return flow
    ones = (1,) * len(shape)
    constant = tracer.constant(name)
    if constant is None or constant.dtype.kind != "f":
        return Flow(shape, np.full(ones, FIXED), np.full(ones, UNKNOWN))
    if given and all(axis not in flow.varying for flow in given):
        # Joined along another axis: its channels are those of the others.
        return make_flow(shape, given[0].ids, as_wide(constant))
    lined = [1] * len(shape)
    lined[axis] = shape[axis]
    return make_flow(shape, tracer.channels.fresh(shape[axis]).reshape(lined), as_wide(constant))


def moved(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Reshape, Flatten, DepthToSpace, SpaceToDepth: they look at all axes."""
    _only(node, tracer, range(len(tracer.shape(node.input[0]))))
    before, after = tracer.flow(node.input[0]), tracer.flow(node.output[0])
    if before is None or after is None or not tracer.free_batch:
        return
    if 0 in after.varying and 0 not in before.varying:
        # What meets what would depend on the number of samples.
        tracer.block(after, f"{describe(node)} mixes samples and channels")


def kept(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Transpose, Unsqueeze: they move axes and look at no extent."""
    _only(node, tracer, ())


def squeeze(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Without axes it would drop a channel axis of extent one, too."""
    if attribute(node, "axes") is None and not operand(node, 1):
        tracer.block_inputs(node, f"{describe(node)} does not say which axes it drops")
        return
    _only(node, tracer, ())


def slice_(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Cut out of the axes it names; along the channel axis with step one only."""
    flow = tracer.flow(node.input[0])
    shape = tracer.shape(node.input[0])
    axes = _sequence(node, tracer, "axes", 3)
    starts = _sequence(node, tracer, "starts", 1)
    if flow is None or starts is None:
        tracer.block_inputs(node, f"{describe(node)} decides at run time where to cut")
        return
    axes = [a % len(shape) for a in (range(len(starts)) if axes is None else axes)]
    steps = _sequence(node, tracer, "steps", 4) or [1] * len(axes)
    cut = [
        a
        for a, step in zip(axes, steps, strict=True)
        if a in flow.varying and (step != 1 or not _constant(node, tracer))
    ]
    if cut:
        tracer.block(flow, f"{describe(node)} picks channels in steps, or decides at run time")
    _only(node, tracer, axes)


def split(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Cut into parts along one axis."""
    axis = integer(node, "axis", 0) % len(tracer.shape(node.input[0]))
    flow = tracer.flow(node.input[0])
    runtime = bool(operand(node, 1)) and tracer.constant(operand(node, 1)) is None
    if flow is not None and axis in flow.varying and runtime:
        tracer.block(flow, f"{describe(node)} decides at run time where to cut")
    _only(node, tracer, [axis])


def gather(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Pick indices along one axis; along the channel axis they must be constant."""
    flow = tracer.flow(node.input[0])
    if flow is None:
        tracer.block_inputs(node, f"{describe(node)} picks by it")
        return
    axis = integer(node, "axis", 0) % len(flow.shape)
    if axis in flow.varying and tracer.constant(node.input[1]) is None:
        tracer.block(flow, f"{describe(node)} decides at run time what to pick")
    _only(node, tracer, [axis])


def depth_to_space(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Channels go in space: those that end in one output channel go together."""
    undecided = len(tracer.spread)
    moved(node, tracer)
    flow = tracer.flow(node.output[0])
    if flow is not None:
        # Which axis carries is no question here: positions in space cannot be cut.
        del tracer.spread[undecided:]
        tracer.put(node, tracer.carry(node, flow, 1))


def _only(node: onnx.NodeProto, tracer: Tracer, axes: Sequence[int]) -> None:
    """Move the one tensor of data; the other operands say where to."""
    flow = tracer.flow(node.input[0])
    tracer.block_inputs(node, f"it sets a parameter of {describe(node)}", range(1, 99))
    if flow is None:
        return
    others = [tracer.value(name) if name else None for name in node.input[1:]]
    if any(name and v is None for name, v in zip(node.input[1:], others, strict=True)):
        tracer.block(flow, f"{describe(node)} takes a parameter that is not known")
        return
    _move(node, tracer, [flow], others, axes)


def _move(
    node: onnx.NodeProto,
    tracer: Tracer,
    flows: Sequence[Flow],
    others: Sequence[Array | None],
    axes: Sequence[int],
) -> None:
    shapes = [flow.shape for flow in flows]
    try:
        ids = tracer.runner.run(
            node, [*_spread([f.ids.astype(np.float64) for f in flows], shapes, axes), *others]
        )
        values = tracer.runner.run(
            node, [*_spread([f.values for f in flows], shapes, axes), *others]
        )
    except ModelError as error:
        for flow in flows:
            tracer.block(flow, f"{describe(node)} cannot be followed: {error}")
        return
    outputs = [index for index, name in enumerate(node.output) if name]
    for output, channel, value in zip(outputs, ids, values, strict=True):
        shape = tracer.shape(node.output[output])
        tracer.put(node, make_flow(shape, channel, as_wide(value)), output)


def _spread(
    arrays: Sequence[Array], shapes: Sequence[tuple[int, ...]], axes: Sequence[int]
) -> list[Array]:
    """Give the axes that the kernel looks at, or along which some operand changes, real extents."""
    wanted = set(axes) | {a for one in arrays for a in range(one.ndim) if one.shape[a] > 1}
    return [expand(one, shape, wanted) for one, shape in zip(arrays, shapes, strict=True)]


def _constant(node: onnx.NodeProto, tracer: Tracer) -> bool:
    return all(tracer.constant(name) is not None for name in node.input[1:] if name)


def _sequence(node: onnx.NodeProto, tracer: Tracer, name: str, index: int) -> list[int] | None:
    """A list of integers that is an attribute in old opsets and an input in new ones."""
    given = attribute(node, name)
    if isinstance(given, (list, tuple)):
        return [int(v) for v in given]
    value = tracer.value(operand(node, index)) if operand(node, index) else None
    return None if value is None else [int(v) for v in np.ravel(value)]
