"""Pooling over windows, and over everything."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.gradients.adjoints.separable import along
from onnxcompress.gradients.adjoints.windows import Windows, windows
from onnxcompress.gradients.known import Shape
from onnxcompress.gradients.step import Adjoint, Step


def max_pool(step: Step) -> Mapping[int, str]:
    """Every gradient goes to the element that was the largest, which the operator itself tells."""
    step.only(0)
    shape = step.shape(step.x)
    where = step.reshape(step.emit.second_output(step.node), [-1])
    # ONNX Runtime adds in single precision only, on the CPU.
    flat = step.reshape(step.emit.op("Cast", step.dy, to=onnx.TensorProto.FLOAT), [-1])
    zero = step.emit.constant(np.zeros((), dtype=np.float32))
    zeros = step.emit.op("Expand", zero, step.emit.sizes([prod(shape)]))
    added = step.emit.op("ScatterElements", zeros, where, flat, axis=0, reduction="add")
    spread = step.emit.op("Cast", added, to=step.known.types[step.x])
    if not step.attributes.get("storage_order", 0):
        return {0: step.reshape(spread, shape)}
    turned = step.reshape(spread, [*shape[:2], *shape[:1:-1]])
    order = [0, 1, *range(len(shape) - 1, 1, -1)]
    return {0: step.emit.op("Transpose", turned, perm=order)}


def average_pool(step: Step) -> Mapping[int, str]:
    """Every element of a window gets an equal share."""
    step.only(0)
    shape, result = step.shape(step.x), step.shape(step.y)
    kernel = tuple(step.attributes["kernel_shape"])
    window = windows(step.attributes, kernel, shape[2:], result[2:])
    reached = [_reached(window, a, shape[2 + a], result[2 + a]) for a in range(len(kernel))]
    padded = bool(step.attributes.get("count_include_pad", 0))
    # With padding that counts, a window that sticks out behind it counts only what lies within.
    within = [_counted(window, a, shape[2 + a], result[2 + a]) for a in range(len(kernel))]
    counts = _outer(within if padded else [each.sum(axis=1) for each in reached])
    gradient = step.op("Div", step.dy, step.array(counts[np.newaxis, np.newaxis]))
    return {0: along(step, gradient, {2 + a: matrix for a, matrix in enumerate(reached)})}


def _positions(window: Windows, axis: int, result: int) -> NDArray[np.int64]:
    """[out, kernel]: which element along an axis every part of every window lies on."""
    starts = np.arange(result)[:, np.newaxis] * window.strides[axis] - window.begins[axis]
    return np.asarray(starts + np.arange(window.kernel[axis]) * window.dilations[axis], np.int64)


def _reached(window: Windows, axis: int, extent: int, result: int) -> NDArray[np.float64]:
    """[out, in]: 1 where a window has an element."""
    at = _positions(window, axis, result)
    return np.asarray((at[:, :, np.newaxis] == np.arange(extent)).sum(axis=1), dtype=np.float64)


def _counted(window: Windows, axis: int, extent: int, result: int) -> NDArray[np.float64]:
    at = _positions(window, axis, result)
    inside = at < extent + window.ends[axis]
    return np.asarray(inside.sum(axis=1), dtype=np.float64)


def _outer(lines: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.asarray(reduce(np.multiply.outer, lines))


def global_average_pool(step: Step) -> Mapping[int, str]:
    """Every position gets an equal share."""
    step.only(0)
    shape = step.shape(step.x)
    share = step.op("Mul", step.dy, 1.0 / prod(shape[2:]))
    return {0: step.emit.op("Expand", share, step.emit.sizes(shape))}


def global_max_pool(step: Step) -> Mapping[int, str]:
    """The largest positions share the gradient."""
    step.only(0)
    return {0: shared_by_equals(step, step.dy, step.y, tuple(range(2, len(step.shape(step.x)))))}


def shared_by_equals(step: Step, gradient: str, value: str, axes: Shape) -> str:
    """Split a gradient among the elements of X that equal `value`, counted along `axes`."""
    if not axes:
        return gradient
    equal = step.emit.op("Cast", step.op("Equal", step.x, value), to=step.known.types[step.x])
    share = step.op("Div", gradient, step.total(equal, axes))
    return step.op("Mul", equal, share)


POOLING: Mapping[str, Adjoint] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
}
