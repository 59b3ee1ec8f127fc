"""A scale and a bias per channel: for layers that are not fitted, and for whoever asks for no more.

This is the recalibration that BatchNormalization would get, had the export not folded it.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.graph.view import GraphView, attributes
from onnxcompress.rewrite.aims import Aim
from onnxcompress.rewrite.mended import EXACT, HELD_OUT, Constants, Mended
from onnxcompress.rewrite.pairs import Walks, held_out
from onnxcompress.runtime import Array

Array64 = NDArray[np.float64]


def rescaled(
    node: onnx.NodeProto, aim: Aim, view: GraphView, walks: Walks, seed: int
) -> tuple[Mended, Constants]:
    """A scale and a bias for every channel that a layer makes: y = a * answer + b.

    Args:
        node: a Conv, ConvTranspose, Gemm or MatMul with constant operands.
        aim: what it should answer.
        view: the result.
        walks: both graphs.
        seed: which samples are held out.

    Raises:
        ModelError: a graph fails on the data.
    """
    chance = np.random.default_rng([seed, *node.name.encode()])
    axis = -1 if node.op_type in {"Gemm", "MatMul"} else 1
    fitted: Array64 = np.zeros((6, 1))
    held: Array64 = np.zeros((6, 1))
    for pair in walks.pairs(node.output[0], aim):
        now = pair.now.astype(np.float64)
        away = held_out(len(now), HELD_OUT, chance)
        fitted = fitted + _channel_sums(now[~away], pair.target[~away], axis)
        held = held + _channel_sums(now[away], pair.target[away], axis)
    scale, shift = _line(fitted)
    variance = _error(held, np.zeros(1), held[1] / np.maximum(held[4], 1.0)) or 1.0
    before = _error(held, np.ones(1), np.zeros(1)) / variance
    after = _error(held, scale, shift) / variance
    rows = int(fitted[4].max() + held[4].max())
    if before <= EXACT or after >= before or node.op_type == "MatMul":
        return Mended(node.name, "kept", before, before, np.inf, rows, 2), {}
    scale, shift = _line(fitted + held)
    weight = view.array(node.input[1])
    old = np.zeros(len(scale))
    if len(node.input) > 2 and node.input[2]:
        old = np.broadcast_to(view.array64(node.input[2]).ravel(), len(scale))
    beta = float(str(attributes(node).get("beta", 1.0)))
    own = {
        1: (weight.astype(np.float64) * _along_outputs(node, weight, scale)).astype(weight.dtype),
        2: (scale * old + shift / beta).astype(weight.dtype),
    }
    return Mended(node.name, "scale", before, after, 0.0, rows, 2), {node.name: own}


def _channel_sums(now: Array64, target: Array64, axis: int) -> Array64:
    """Sums of x, y, x x, x y, 1 and y y per channel, [6, channels]."""
    x = np.moveaxis(now, axis, 0).reshape(now.shape[axis], -1)
    y = np.moveaxis(target, axis, 0).reshape(now.shape[axis], -1)
    count = np.full(len(x), float(x.shape[1]))
    return np.stack([x.sum(1), y.sum(1), (x * x).sum(1), (x * y).sum(1), count, (y * y).sum(1)])


def _line(sums: Array64) -> tuple[Array64, Array64]:
    """The least-squares line per channel; channels that do not vary keep their scale."""
    count = np.maximum(sums[4], 1.0)
    mean_x, mean_y = sums[0] / count, sums[1] / count
    variance = sums[2] / count - mean_x**2
    covariance = sums[3] / count - mean_x * mean_y
    varies = variance > EXACT * np.maximum(sums[2] / count, np.finfo(np.float64).tiny)
    scale = np.where(varies, covariance / np.where(varies, variance, 1.0), 1.0)
    return scale, mean_y - scale * mean_x


def _error(sums: Array64, scale: Array64, shift: Array64) -> float:
    """Sum over channels of E(y - a x - b)^2."""
    x, y, xx, xy, count, yy = sums
    total = yy + scale**2 * xx + count * shift**2
    total = total - 2.0 * scale * xy - 2.0 * shift * y + 2.0 * scale * shift * x
    return float((total / np.maximum(count, 1.0)).sum())


def _along_outputs(node: onnx.NodeProto, weight: Array, scale: Array64) -> Array64:
    """One factor per output channel, shaped to broadcast to the stored weight."""
    if node.op_type == "Conv":
        return scale.reshape(-1, *([1] * (weight.ndim - 1)))
    if node.op_type == "ConvTranspose":
        group = int(str(attributes(node).get("group", 1)))
        rows = np.repeat(scale.reshape(group, -1), weight.shape[0] // group, axis=0)
        return rows.reshape(*rows.shape, *([1] * (weight.ndim - 2)))
    transposed = attributes(node).get("transB", 0)
    return scale.reshape(-1, 1) if transposed else scale.reshape(1, -1)
