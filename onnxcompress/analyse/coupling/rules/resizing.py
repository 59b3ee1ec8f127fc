"""Operators that change extents: Pad, Resize, Upsample, Expand, Tile.

Along axes on which nothing changes the compact form stays as it is; along the channel axis only
what can be followed exactly is: zero channels that Pad adds, whole repetitions.
"""

from __future__ import annotations

import numpy as np
import onnx

from onnxcompress.analyse.coupling.execute import as_wide
from onnxcompress.analyse.coupling.flow import UNKNOWN, Flow, Values, expand, make_flow
from onnxcompress.analyse.coupling.tracer import Tracer, attribute, describe, operand


def pad(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Channels that padding adds are channels, too (the option-A shortcut of CIFAR ResNets)."""
    flow = tracer.flow(node.input[0])
    tracer.block_inputs(node, f"it sets a parameter of {describe(node)}", range(1, 99))
    if flow is None:
        return
    amounts, fill, mode = _padding(node, tracer, len(flow.shape))
    if amounts is None:
        tracer.block(flow, f"{describe(node)} decides at run time how much to pad")
        return
    ids, values = flow.ids, flow.values
    for axis, (before, after) in enumerate(amounts):
        if (before, after) == (0, 0):
            continue
        if axis not in flow.varying:
            if values.shape[axis] > 1:
                values = np.full([1] * values.ndim, UNKNOWN)
            if mode == "constant" and (before > 0 or after > 0):
                values = np.where(values == fill, values, UNKNOWN)
            continue
        if mode != "constant" or before < 0 or after < 0:
            tracer.block(flow, f"{describe(node)} mixes or crops channels")
            return
        if flow.varying != (axis,):
            flow = tracer.carry(node, flow, axis)
            ids, values = flow.ids, values if values.shape == flow.values.shape else flow.values
        ids = _joined(ids, axis, tracer.channels.fresh(before), tracer.channels.fresh(after))
        values = expand(values, flow.shape, [axis])
        ends = [np.full(before, fill), np.full(after, fill)]
        values = _joined(values, axis, *ends)
    tracer.put(node, make_flow(tracer.shape(node.output[0]), ids, as_wide(values)))


def resize(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Resize and Upsample leave the channel axis alone, or are barriers."""
    flow = tracer.flow(node.input[0])
    tracer.block_inputs(node, f"it sets a parameter of {describe(node)}", range(1, 99))
    if flow is None:
        return
    shape = tracer.shape(node.output[0])
    if any(shape[axis] != flow.shape[axis] for axis in flow.varying):
        tracer.block(flow, f"{describe(node)} resizes the channel axis")
        return
    mode = str(attribute(node, "mode", "nearest"))
    crops = attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize"
    values = flow.values
    if crops or mode not in {"nearest", "linear"}:
        keeps_zero = not crops or not attribute(node, "extrapolation_value", 0.0)
        values = np.where((values == 0.0) & keeps_zero, 0.0, UNKNOWN)
    tracer.put(node, make_flow(shape, flow.ids, _uniform(values, flow, shape)))


def expand_(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Repeats along axes of extent one, where nothing can change."""
    flow = tracer.flow(node.input[0])
    tracer.block_inputs(node, f"it sets a parameter of {describe(node)}", range(1, 99))
    if flow is None:
        return
    shape = tracer.shape(node.output[0])
    lead = (1,) * (len(shape) - len(flow.shape))
    tracer.put(
        node,
        make_flow(
            shape,
            flow.ids.reshape(lead + flow.ids.shape),
            flow.values.reshape(lead + flow.values.shape),
        ),
    )


def tile(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Whole repetitions along any axis."""
    flow = tracer.flow(node.input[0])
    tracer.block_inputs(node, f"it sets a parameter of {describe(node)}", range(1, 99))
    if flow is None:
        return
    shape = tracer.shape(node.output[0])
    repeats = [out // extent for out, extent in zip(shape, flow.shape, strict=True)]
    ids, values = (
        np.tile(one, [r if one.shape[a] > 1 else 1 for a, r in enumerate(repeats)])
        for one in (flow.ids, flow.values)
    )
    tracer.put(node, make_flow(shape, ids, as_wide(values)))


def _padding(
    node: onnx.NodeProto, tracer: Tracer, rank: int
) -> tuple[list[tuple[int, int]] | None, float, str]:
    """Amounts per axis (None when computed at run time), the value filled in, the mode."""
    mode = str(attribute(node, "mode", "constant"))
    given = attribute(node, "pads", attribute(node, "paddings"))
    if given is None:
        pads = tracer.constant(operand(node, 1))
        filled = tracer.constant(operand(node, 2)) if operand(node, 2) else np.zeros(())
        axes_name = operand(node, 3)
        axes = tracer.constant(axes_name) if axes_name else np.arange(rank)
        fill = UNKNOWN if filled is None else float(np.ravel(as_wide(filled))[0])
    else:
        pads, axes = np.array(given), np.arange(rank)
        value = attribute(node, "value", 0.0)
        fill = float(value) if isinstance(value, (int, float)) else UNKNOWN
    if pads is None or axes is None:
        return None, fill, mode
    amounts = [(0, 0)] * rank
    count = len(axes)
    for at, axis in enumerate(np.ravel(axes).tolist()):
        amounts[int(axis) % rank] = (int(np.ravel(pads)[at]), int(np.ravel(pads)[at + count]))
    return amounts, fill, mode


def _joined(middle: np.ndarray, axis: int, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Put lines of values before and after `middle` along one axis."""
    target = list(middle.shape)
    parts = []
    for line in (before, after):
        lined = [1] * middle.ndim
        lined[axis] = len(line)
        target[axis] = len(line)
        parts.append(np.broadcast_to(line.reshape(lined), target))
    return np.concatenate([parts[0], middle, parts[1]], axis=axis)


def _uniform(values: Values, flow: Flow, shape: tuple[int, ...]) -> Values:
    """Values after resizing: unknown where they change along an axis that is resized."""
    for axis, extent in enumerate(shape):
        if extent != flow.shape[axis] and values.shape[axis] > 1:
            head = values.take([0], axis)
            same = (values == head).all(axis=axis, keepdims=True)
            values = np.where(same, head, UNKNOWN)
    return values
