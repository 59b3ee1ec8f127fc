"""Criteria that look at no data: the norm of a channel's filter, and chance.

Definitions: Molchanov et al. 2017 (arXiv 1611.06440), section 2.2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxcompress.analyse.coupling.result import Coupling, Lane
from onnxcompress.graph.view import GraphView, attributes
from onnxcompress.graph.weights import constant_values
from onnxcompress.plan.saliency.question import Array, Question

NORMS = ("l2", "l1", "min")
"""Of a filter w: sqrt(sum w^2), sum |w|, and mean w^2 (Molchanov's "minimum weight")."""


def weight(question: Question) -> dict[str, Array]:
    """The norm of every filter, over the input channels that are left."""
    gone = question.coupling.classes(question.removed)
    return {
        layer: _norms(_filters(question.facts.view, layer, question.coupling, gone), question.norm)
        for layer in question.layers
    }


def random(question: Question) -> dict[str, Array]:
    """Uniform numbers, the same for the same seed and layer."""
    return {
        layer: np.random.default_rng([question.seed, at]).random(len(question.lane(layer).classes))
        for at, layer in enumerate(question.layers)
    }


def _filters(
    view: GraphView, layer: str, coupling: Coupling, gone: frozenset[int]
) -> tuple[Array, NDArray[np.bool_]]:
    """Filters [out, weights] of a layer, and which of the weights are left."""
    node = view.nodes[layer]
    values = constant_values(view, node.input[1])
    lane = coupling.lanes.get(node.input[0])
    if node.op_type in {"Gemm", "MatMul"}:
        matrix = values if attributes(node).get("transB", 0) else values.T
        stays = _staying(lane, matrix.shape[1], gone)
        return matrix, np.broadcast_to(stays, matrix.shape)
    group = int(str(attributes(node).get("group", 1)))
    if node.op_type == "ConvTranspose":
        inner = values.shape[0] // group
        parts = values.reshape(group, inner, values.shape[1], -1).transpose(0, 2, 1, 3)
        filters = parts.reshape(group * values.shape[1], inner, -1)
    else:
        inner = values.shape[1]
        filters = values.reshape(values.shape[0], inner, -1)
    stays = _staying(lane, group * inner, gone).reshape(group, inner)
    each = np.repeat(stays, len(filters) // group, axis=0)
    whole = np.broadcast_to(each[:, :, np.newaxis], filters.shape)
    return filters.reshape(len(filters), -1), whole.reshape(len(filters), -1)


def _staying(lane: Lane | None, extent: int, gone: frozenset[int]) -> NDArray[np.bool_]:
    if lane is None or len(lane.classes) != extent:
        return np.ones(extent, dtype=bool)
    return ~np.isin(lane.classes, list(gone))


def _norms(filters: tuple[Array, NDArray[np.bool_]], norm: str) -> Array:
    weights, left = filters
    kept = np.where(left, weights, 0.0)
    match norm:
        case "l1":
            return np.asarray(np.abs(kept).sum(axis=1))
        case "l2":
            return np.asarray(np.sqrt(np.square(kept).sum(axis=1)))
        case _:
            return np.asarray(np.square(kept).sum(axis=1) / np.maximum(left.sum(axis=1), 1))
