"""Fitting one layer again: least squares of its weights, or a scale and a bias per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.linear import LinearLayer
from onnxcompress.analyse.moments import Moments
from onnxcompress.calibrate.moments import ROWS, positions_per_sample
from onnxcompress.calibrate.patches import (
    Positions,
    answers_at,
    patches_at,
    spatial_extents,
)
from onnxcompress.calibrate.sums import Sums
from onnxcompress.graph.view import GraphView, attributes
from onnxcompress.numerics.data_low_rank import SWEEPS
from onnxcompress.numerics.refit import SHRINKAGES, refit
from onnxcompress.rewrite.aims import Aim
from onnxcompress.rewrite.factored import Factored
from onnxcompress.rewrite.pairs import Walks, held_out, rows_of
from onnxcompress.runtime import Array

Array64 = NDArray[np.float64]

HELD_OUT = 0.2
"""Share of the samples that decide how far new weights are believed."""

EXACT = 1e-12
"""Relative squared error that rounding explains: there is nothing to repair."""

TOLERATED = 0.1
"""Share of what the best shrinkage gains on held-out samples that is given up for weights closer
to those that are there: calibration inputs are often what the network was trained on, and what is
fitted to them in the last digits does not carry over."""

_SLIGHT = 0.02
"""And never more than this share of the error that is left: what can be exact becomes exact."""

FEW = 5
"""Rows per unknown below which a fit is called poorly determined."""


@dataclass(frozen=True)
class Mended:
    """What repair did to one layer.

    Attributes:
        node: the layer.
        method: "refit" (least squares), "scale" (scale and bias per channel), or "kept".
        before: relative squared error of its answers on held-out samples, as it came.
        after: the same with the new weights.
        shrinkage: how strongly new weights were drawn to the old ones.
        rows: positions that were looked at.
        unknowns: per answer.
    """

    node: str
    method: str
    before: float
    after: float
    shrinkage: float
    rows: int
    unknowns: int

    @property
    def poorly_determined(self) -> bool:
        """Whether there were few rows for so many unknowns."""
        return self.before > EXACT and self.rows < FEW * self.unknowns


@dataclass(frozen=True)
class Effort:
    """How closely a layer is looked at.

    Attributes:
        rows: positions to look at, at least; wide layers see more.
        shrinkages: strengths of the pull towards the old weights to choose from.
    """

    rows: int = ROWS
    shrinkages: tuple[float, ...] = SHRINKAGES


THOROUGH = Effort()

Constants = dict[int, Array]
"""New operands of a node, by index."""


def refitted(
    layer: LinearLayer, aim: Aim, view: GraphView, walks: Walks, seed: int, effort: Effort
) -> tuple[Mended, Constants]:
    """Least squares of a layer's weights and bias.

    Raises:
        ModelError: a graph fails on the data, or the moments would not fit into memory.
    """
    weight = view.array(layer.spec.weight)
    prior, bias = layer.matrices(weight), layer.bias(view)
    fitted, held = _sums(layer, aim, view, walks, seed, effort)
    seen, unseen = fitted.moments(), held.moments()
    rows = fitted.rows + held.rows
    movable = bias is not None and layer.can_hold_bias and not aim.through
    own = np.zeros(prior.shape[:2]) if bias is None else bias.reshape(prior.shape[:2])

    def offset(matrices: Array64, moments: Moments, *, moved: bool) -> Array64:
        # Behind a factor without a bias, the last factor's bias makes up for any offset.
        return best_bias(matrices, moments) if moved or aim.through else own

    scale = unseen.variance or 1.0
    before = unseen.error(prior, offset(prior, seen, moved=False)) / scale
    centred = movable or bool(aim.through)
    basis = seen.centred() if centred else _without_bias(seen, own)
    tried = [(float("inf"), prior)]
    tried += [(s, refit(basis.gram, basis.cross, prior, s)) for s in reversed(effort.shrinkages)]
    errors = [unseen.error(m, offset(m, seen, moved=movable)) / scale for _, m in tried]
    at = _closest(errors, before)
    shrinkage, after = tried[at][0], errors[at]
    if before <= EXACT or after >= before:
        return Mended(layer.node, "kept", before, before, np.inf, rows, layer.features), {}
    every = fitted.moments(held)
    matrices = prior
    if np.isfinite(shrinkage):
        basis = every.centred() if centred else _without_bias(every, own)
        matrices = refit(basis.gram, basis.cross, prior, shrinkage)
    constants: Constants = {1: layer.stored(matrices, weight)}
    if movable:
        constants[2] = layer.stored_bias(best_bias(matrices, every), weight.dtype)
    found = Mended(layer.node, "refit", before, after, shrinkage, rows, layer.features)
    return found, constants


def refactored(
    row: Factored, aim: Aim, view: GraphView, walks: Walks, seed: int, effort: Effort
) -> tuple[Mended, dict[str, Constants]]:
    """Least squares of the layer that factors stand for, factored again.

    Returns:
        What was done, and new operands by node.

    Raises:
        ModelError: a graph fails on the data, or the moments would not fit into memory.
    """
    layer, last = row.whole, row.last
    prior, bias = row.product(view), last.bias(view)
    own = np.zeros(prior.shape[:2]) if bias is None else bias.reshape(prior.shape[:2])
    movable = bias is not None and last.can_hold_bias
    fitted, held = _sums(layer, aim, view, walks, seed, effort)
    seen, unseen = fitted.moments(), held.moments()
    rows = fitted.rows + held.rows
    basis = seen.centred() if movable else _without_bias(seen, own)
    scale = unseen.variance or 1.0
    before = unseen.error(prior, own) / scale

    def error(matrices: Array64) -> float:
        return unseen.error(matrices, best_bias(matrices, seen) if movable else own) / scale

    tried = [(float("inf"), error(prior))]
    for shrinkage in reversed(effort.shrinkages):
        full = refit(basis.gram, basis.cross, prior, shrinkage)
        parts = row.factors(full[0], basis.gram[0], sweeps=0)
        tried.append((shrinkage, error(row.multiplied(parts))))
    errors = [each for _, each in tried]
    shrinkage, after = tried[_closest(errors, before)]
    if before <= EXACT or after >= before:
        return Mended(last.node, "kept", before, before, np.inf, rows, layer.features), {}
    every = fitted.moments(held)
    matrices, constants = prior, dict[str, Constants]()
    if np.isfinite(shrinkage):
        basis = every.centred() if movable else _without_bias(every, own)
        full = refit(basis.gram, basis.cross, prior, shrinkage)
        parts = row.factors(full[0], basis.gram[0], sweeps=SWEEPS)
        matrices = row.multiplied(parts)
        layers = [part for part in (row.into, row.core, row.out) if part is not None]
        for part, new in zip(layers, parts, strict=True):
            constants[part.node] = {1: part.stored(new, view.array(part.spec.weight))}
    if movable:
        dtype = view.array(last.spec.weight).dtype
        new_bias = last.stored_bias(best_bias(matrices, every), dtype)
        constants.setdefault(last.node, {})[2] = new_bias
    found = Mended(last.node, "refit", before, after, shrinkage, rows, layer.features)
    return found, constants


def _closest(errors: Sequence[float], before: float) -> int:
    """The strongest shrinkage that is about as good as the best one."""
    best = min(errors)
    allowed = best + min(TOLERATED * max(0.0, before - best), _SLIGHT * best)
    return next(at for at, error in enumerate(errors) if error <= allowed)


def _without_bias(moments: Moments, bias: Array64) -> Moments:
    """Moments of what the weights alone have to give, where the bias must stay."""
    cross = moments.cross - bias[:, :, np.newaxis] * moments.mean[:, np.newaxis]
    return Moments(moments.gram, moments.mean, cross, moments.answer, moments.energy, moments.rows)


def best_bias(matrices: Array64, moments: Moments) -> Array64:
    """E[y] - A E[x], [groups, h]."""
    return np.asarray(moments.answer - np.einsum("ghd,gd->gh", matrices, moments.mean))


def _sums(
    layer: LinearLayer, aim: Aim, view: GraphView, walks: Walks, seed: int, effort: Effort
) -> tuple[Sums, Sums]:
    """Products of what a layer reads now with what it should answer: fitted, and held out."""
    each = positions_per_sample(layer, walks.feeds, effort.rows)
    chance = np.random.default_rng([seed, *layer.node.encode()])
    size = (layer.node, layer.groups, layer.outputs, layer.features)
    # Both sums, their averages, what is centred, and what is factored.
    fitted, held = Sums(*size, copies=8), Sums(*size, copies=8)
    back = _backwards(aim, view)
    for pair in walks.pairs(layer.input, aim):
        extents = spatial_extents(layer, pair.target.shape)
        at = Positions.draw(extents, len(pair.now), each, chance)
        rows = answers_at(layer, pair.target, at).astype(np.float64)
        if back is not None:
            rows = (rows - back[1]) @ back[0].T
        answers = rows.reshape(len(rows), layer.groups, layer.outputs)
        patches = patches_at(layer, pair.now, at)
        away = rows_of(held_out(len(pair.now), HELD_OUT, chance), at)
        fitted.add(patches[~away], answers[~away])
        held.add(patches[away], answers[away])
    return fitted, held


def _backwards(aim: Aim, view: GraphView) -> tuple[Array64, Array64] | None:
    """(P, b): the answer that a chain of pointwise layers turns into y is P (y - b)."""
    if not aim.through:
        return None
    matrix, offset = np.eye(aim.through[0].features), np.zeros(aim.through[0].features)
    for layer in aim.through:
        own = layer.matrices(view.array(layer.spec.weight))[0]
        bias = layer.bias(view)
        matrix, offset = own @ matrix, own @ offset + (0.0 if bias is None else bias)
    return np.asarray(np.linalg.pinv(matrix), dtype=np.float64), np.asarray(offset)


def rescaled(
    node: onnx.NodeProto, aim: Aim, view: GraphView, walks: Walks, seed: int
) -> tuple[Mended, Constants]:
    """A scale and a bias for every channel that a layer makes: y = a * answer + b.

    This is the recalibration that BatchNormalization would get, had the export not folded it.

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
    constants = {
        1: (weight.astype(np.float64) * _along_outputs(node, weight, scale)).astype(weight.dtype),
        2: (scale * old + shift / beta).astype(weight.dtype),
    }
    return Mended(node.name, "scale", before, after, 0.0, rows, 2), constants


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
