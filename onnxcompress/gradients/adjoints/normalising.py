"""Normalisations and softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxcompress.errors import GradientError
from onnxcompress.gradients.step import Adjoint, Step


def batch_normalization(step: Step) -> Mapping[int, str]:
    """Y = scale (X - mean) / sqrt(var + eps) + B, with stored statistics."""
    step.only(0)
    if step.attributes.get("training_mode", 0):
        raise GradientError("it is in training mode")
    epsilon = float(step.attributes.get("epsilon", 1e-5))
    shape = [1, -1, *[1] * (len(step.shape(step.x)) - 2)]
    deviation = step.op("Sqrt", step.op("Add", step.node.input[4], epsilon))
    slope = step.reshape(step.op("Div", step.node.input[1], deviation), shape)
    return {0: step.op("Mul", step.dy, slope)}


def instance_normalization(step: Step) -> Mapping[int, str]:
    """Every channel of every sample has its own statistics."""
    step.only(0)
    rank = len(step.shape(step.x))
    scale = step.reshape(step.node.input[1], [1, -1, *[1] * (rank - 2)])
    epsilon = float(step.attributes.get("epsilon", 1e-5))
    gradient = step.op("Mul", step.dy, scale)
    return {0: _standardised(step, step.x, gradient, range(2, rank), epsilon)}


def layer_normalization(step: Step) -> Mapping[int, str]:
    """Statistics over the axes from `axis` on."""
    step.only(0)
    rank = len(step.shape(step.x))
    axis = int(step.attributes.get("axis", -1)) % rank
    epsilon = float(step.attributes.get("epsilon", 1e-5))
    gradient = step.op("Mul", step.dy, step.node.input[1])
    return {0: _standardised(step, step.x, gradient, range(axis, rank), epsilon)}


def group_normalization(step: Step) -> Mapping[int, str]:
    """Statistics over groups of channels; scale and bias per channel."""
    step.only(0)
    shape = step.shape(step.x)
    groups = int(step.attributes["num_groups"])
    if step.shape(step.node.input[1]) != (shape[1],):
        raise GradientError("its scale is per group, as before opset 21")
    epsilon = float(step.attributes.get("epsilon", 1e-5))
    scale = step.reshape(step.node.input[1], [1, -1, *[1] * (len(shape) - 2)])
    gradient = step.reshape(step.op("Mul", step.dy, scale), [shape[0], groups, -1])
    rows = step.reshape(step.x, [shape[0], groups, -1])
    return {0: step.reshape(_standardised(step, rows, gradient, (2,), epsilon), shape)}


def _standardised(step: Step, x: str, gradient: str, axes: Sequence[int], epsilon: float) -> str:
    """Through z = (x - mean) / s: dx = (dz - mean(dz) - z mean(dz z)) / s."""
    over = step.emit.sizes(axes)

    def mean(tensor: str) -> str:
        return step.emit.op("ReduceMean", tensor, over)

    centred = step.op("Sub", x, mean(x))
    variance = mean(step.op("Mul", centred, centred))
    deviation = step.op("Sqrt", step.op("Add", variance, epsilon))
    z = step.op("Div", centred, deviation)
    bent = step.op("Mul", z, mean(step.op("Mul", gradient, z)))
    flat = step.op("Sub", step.op("Sub", gradient, mean(gradient)), bent)
    return step.op("Div", flat, deviation)


def softmax(step: Step) -> Mapping[int, str]:
    """Y = exp(X) / sum exp(X): dX = Y (dY - sum dY Y)."""
    step.only(0)
    axis = int(step.attributes.get("axis", -1)) % len(step.shape(step.x))
    weighted = step.total(step.op("Mul", step.dy, step.y), [axis])
    return {0: step.op("Mul", step.y, step.op("Sub", step.dy, weighted))}


def log_softmax(step: Step) -> Mapping[int, str]:
    """Y = X - log sum exp(X): dX = dY - exp(Y) sum dY."""
    step.only(0)
    axis = int(step.attributes.get("axis", -1)) % len(step.shape(step.x))
    summed = step.total(step.dy, [axis])
    return {0: step.op("Sub", step.dy, step.op("Mul", step.op("Exp", step.y), summed))}


def lrn(step: Step) -> Mapping[int, str]:
    """Y = X S^-beta with S = bias + alpha / size * (sum of X^2 over neighbouring channels)."""
    step.only(0)
    shape = step.shape(step.x)
    size = int(step.attributes["size"])
    alpha = float(step.attributes.get("alpha", 1e-4)) / size
    beta = float(step.attributes.get("beta", 0.75))
    bias = float(step.attributes.get("bias", 1.0))
    below = np.arange(shape[1])[:, np.newaxis] - np.arange(shape[1])
    # Channel c sees c - floor((size - 1) / 2) to c + ceil((size - 1) / 2).
    band = (below <= (size - 1) // 2) & (-below <= size // 2)
    rows = [shape[0], shape[1], -1]
    x, dy = step.reshape(step.x, rows), step.reshape(step.dy, rows)

    def neighbours(tensor: str, matrix: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> str:
        return step.op("MatMul", step.array(matrix[np.newaxis]), tensor)

    scale = step.op("Add", step.op("Mul", neighbours(step.op("Mul", x, x), band), alpha), bias)
    own = step.op("Mul", dy, step.op("Pow", scale, -beta))
    lower = step.op("Mul", step.op("Mul", dy, x), step.op("Pow", scale, -beta - 1.0))
    others = step.op("Mul", step.op("Mul", x, neighbours(lower, band.T)), -2.0 * alpha * beta)
    return {0: step.reshape(step.op("Add", own, others), shape)}


NORMALISING: Mapping[str, Adjoint] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": log_softmax,
    "Softmax": softmax,
}
