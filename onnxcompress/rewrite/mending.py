"""Fitting a unit again: least squares of its weights and its bias."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from onnxcompress.analyse.moments import Moments
from onnxcompress.calibrate.moments import positions_per_sample
from onnxcompress.calibrate.patches import Positions, answers_at, patches_at, spatial_extents
from onnxcompress.calibrate.sums import Sums
from onnxcompress.errors import ModelError
from onnxcompress.graph.view import GraphView
from onnxcompress.numerics.data_low_rank import SWEEPS
from onnxcompress.numerics.refit import refit
from onnxcompress.rewrite.aims import Aim
from onnxcompress.rewrite.mended import EXACT, HELD_OUT, Constants, Effort, Mended
from onnxcompress.rewrite.pairs import Walks, held_out
from onnxcompress.rewrite.units import Unit

Array64 = NDArray[np.float64]

TOLERATED = 0.1
"""Share of what the best shrinkage gains on held-out samples that is given up for weights closer
to those that are there: calibration inputs are often what the network was trained on, and what is
fitted to them in the last digits does not carry over."""

_SLIGHT = 0.02
"""And never more than this share of the error that is left: what can be exact becomes exact."""


def refitted(
    unit: Unit,
    aim: Aim,
    view: GraphView,
    walks: Walks,
    seed: int,
    effort: Effort,
    root: Array64 | None = None,
) -> tuple[Mended, Constants]:
    """Least squares of a layer; factors are fitted as the layer they stand for, and factored again.

    Args:
        unit: the layer, or the factors.
        aim: what it should answer.
        view: the result.
        walks: both graphs.
        seed: which positions are looked at, and which samples are held out.
        effort: how closely.
        root: L [groups, h, h], lower triangular, where errors e of the answers count as e'L L'e;
            None for all alike. Everything below is then about L'y in place of y.

    Raises:
        ModelError: the bias is no constant, a graph fails on the data, or the moments would not fit
            into memory.
    """
    layer, last = unit.whole, unit.last
    bias = last.bias(view)
    if bias is None:
        raise ModelError("its bias is computed or fed at run time")
    prior, movable = unit.product(view), last.can_recentre(view)
    own = bias.reshape(prior.shape[:2])
    if root is not None:
        prior, own = _weighted(root, prior), _weighted(root, own[:, :, np.newaxis])[:, :, 0]
    fitted, held = _sums(unit, aim, walks, seed, effort, root)
    seen, unseen = fitted.moments(), held.moments()
    rows = fitted.rows + held.rows
    scale = unseen.variance or 1.0

    def error(matrices: Array64) -> float:
        return unseen.error(matrices, best_bias(matrices, seen) if movable else own) / scale

    def parts(moments: Moments, shrinkage: float, sweeps: int) -> list[Array64]:
        basis = moments.centred() if movable else _without_bias(moments, own)
        full = refit(basis.gram, basis.cross, prior, shrinkage)
        return unit.factors(full, _with_ridge(basis.gram, shrinkage), sweeps=sweeps)

    before = unseen.error(prior, own) / scale
    tried = [(np.inf, error(prior))]
    tried += [
        (shrinkage, error(unit.multiplied(parts(seen, shrinkage, 0))))
        for shrinkage in reversed(effort.shrinkages)
    ]
    shrinkage, after = tried[_closest([each for _, each in tried], before)]
    if before <= EXACT or after >= before:
        return Mended(last.node, "kept", before, before, np.inf, rows, layer.features), {}
    every = fitted.moments(held)
    matrices = prior
    constants: Constants = {}
    if np.isfinite(shrinkage):
        found = parts(every, shrinkage, SWEEPS)
        matrices = unit.multiplied(found)
        if root is not None:
            found[-1] = _unweighted(root, found[-1])
        for part, new in zip(unit.parts, found, strict=True):
            constants[part.node] = {1: part.stored(new, view.array(part.spec.weight))}
    if movable:
        new_bias = best_bias(matrices, every)
        if root is not None:
            new_bias = _unweighted(root, new_bias[:, :, np.newaxis])[:, :, 0]
        dtype = view.array(last.spec.weight).dtype
        constants.setdefault(last.node, {})[2] = last.stored_bias(new_bias, dtype)
    return Mended(last.node, "refit", before, after, shrinkage, rows, layer.features), constants


def best_bias(matrices: Array64, moments: Moments) -> Array64:
    """E[y] - A E[x], [groups, h]."""
    return np.asarray(moments.answer - np.einsum("ghd,gd->gh", matrices, moments.mean))


def _with_ridge(gram: Array64, shrinkage: float) -> Array64:
    """The metric [groups, d, d] to factor in, with the same pull as the fit: E|Bx|^2 + rho |B|^2.

    Where few rows were seen, what the factors do in other directions is nobody's business else.
    """
    size = gram.shape[1]
    levels = np.trace(gram, axis1=1, axis2=2)[:, np.newaxis, np.newaxis] / size
    return np.asarray(gram + shrinkage * levels * np.eye(size))


def _weighted(root: Array64, rows: Array64) -> Array64:
    """L' A, for every group; A [groups, h, columns]."""
    return np.asarray(np.swapaxes(root, 1, 2) @ rows)


def _unweighted(root: Array64, rows: Array64) -> Array64:
    """The A that `_weighted` makes `rows` of."""
    solved = [
        solve_triangular(one.T, each, lower=False) for one, each in zip(root, rows, strict=True)
    ]
    return np.stack(solved)


def _closest(errors: Sequence[float], before: float) -> int:
    """The strongest shrinkage that is about as good as the best one."""
    best = min(errors)
    allowed = best + min(TOLERATED * max(0.0, before - best), _SLIGHT * best)
    return next(at for at, error in enumerate(errors) if error <= allowed)


def _without_bias(moments: Moments, bias: Array64) -> Moments:
    """Moments of what the weights alone have to give, where the bias must stay."""
    cross = moments.cross - bias[:, :, np.newaxis] * moments.mean[:, np.newaxis]
    return Moments(moments.gram, moments.mean, cross, moments.answer, moments.energy, moments.rows)


def _sums(
    unit: Unit, aim: Aim, walks: Walks, seed: int, effort: Effort, root: Array64 | None
) -> tuple[Sums, Sums]:
    """Products of what a unit reads now with what it should answer: fitted, and held out."""
    layer = unit.whole
    each = positions_per_sample(layer, walks.feeds, effort.rows)
    chance = np.random.default_rng([seed, *layer.node.encode()])
    size = (layer.node, layer.groups, layer.outputs, layer.features)
    # Both sums, their averages, what is centred, and what is factored.
    fitted, held = Sums(*size, copies=8), Sums(*size, copies=8)
    for pair in walks.pairs(layer.input, aim):
        extents = spatial_extents(layer, pair.target.shape)
        at = Positions.draw(extents, len(pair.now), each, chance)
        answers = answers_at(layer, pair.target, at)
        answers = answers.reshape(len(answers), layer.groups, layer.outputs)
        if root is not None:
            answers = np.einsum("ngh,ghk->ngk", answers.astype(np.float64), root, optimize=True)
        patches = patches_at(layer, pair.now, at)
        away = held_out(len(pair.now), HELD_OUT, chance)[at.sample]
        fitted.add(patches[~away], answers[~away])
        held.add(patches[away], answers[away])
    return fitted, held
