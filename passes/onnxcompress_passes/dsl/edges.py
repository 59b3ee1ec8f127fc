"""Layers of edge filters: one convolution along a line, and one that adds lines up.

Where all rows of every kernel are alike, a k x k convolution is one of [1, k], followed by a
depthwise one of [k, 1] whose weights are ones; where all columns are alike, the other way around.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from onnxcompress.analyse.facts import Facts
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.spec import ConvSpec
from onnxcompress.kernels.feedback import damped
from onnxcompress.kernels.language import HORIZONTAL, VERTICAL
from onnxcompress.plan.contract import Candidate, NoCandidate, Site
from onnxcompress_passes.dsl.kernels import damage_of, metric_for, unfit
from onnxcompress_passes.dsl.setting import Sharing
from onnxcompress_passes.low_rank_pass import DATA, WEIGHTS
from onnxcompress_passes.recentred import metric_in, recentred_bias

Array = NDArray[np.float64]

ORIENTATIONS = (VERTICAL, HORIZONTAL)


def unfit_for_edges(layer: ConvSpec, facts: Facts) -> str:
    """Why a layer cannot be one of edge filters, or an empty string."""
    if len(layer.kernel) != 2 or layer.kernel[0] != layer.kernel[1]:
        return "kernels that are not square: the language has none"
    return unfit(layer, facts)


def lines_of(weight: Array, size: int, orientation: str, metric: Array | None = None) -> Array:
    """Edge filters that come closest to the kernels of a layer, [outputs, channels, k].

    Args:
        weight: [outputs, channels, k * k].
        size: k.
        orientation: vertical (all rows alike) or horizontal.
        metric: covariance of what the layer reads, [channels * k * k] squared; None weighs weights.
    """
    outputs, channels = weight.shape[:2]
    square = weight.reshape(outputs, channels, size, size)
    along = 2 if orientation == VERTICAL else 3
    if metric is None:
        return np.asarray(square.mean(axis=along))
    # Summed over what is alike, the metric is that of lines.
    table = damped(metric).reshape(channels, size, size, channels * size * size)
    half = table.sum(axis=along - 1).reshape(channels * size, channels, size, size)
    whole = half.sum(axis=along).reshape(channels * size, channels * size)
    right = half.reshape(channels * size, -1) @ weight.reshape(outputs, -1).T
    return np.asarray(cho_solve(cho_factor(whole), right).T.reshape(outputs, channels, size))


def spread(lines: Array, orientation: str) -> Array:
    """The kernels [outputs, channels, k * k] that lines stand for."""
    size = lines.shape[2]
    across = lines[:, :, np.newaxis] if orientation == VERTICAL else lines[:, :, :, np.newaxis]
    kernels = np.broadcast_to(across, (*lines.shape[:2], size, size))
    return np.asarray(kernels.reshape(*lines.shape[:2], -1))


def edge_candidates(site: Site, layer: ConvSpec, facts: Facts) -> list[Candidate[Sharing]]:
    """All kernels as edge filters of the orientation that damages less.

    Raises:
        NoCandidate: it would save nothing.
    """
    size = layer.kernel[0]
    weight = facts.view.array64(layer.weight).reshape(layer.out_channels, layer.in_channels, -1)
    metric = metric_for(site.node, facts)
    before, found = facts.cost(site.node), []
    for orientation in ORIENTATIONS:
        kernels = spread(lines_of(weight, size, orientation, metric), orientation)
        setting = Sharing(edges=orientation, metric=WEIGHTS if metric is None else DATA)
        damage = damage_of(layer, weight, kernels, metric, facts)
        after = _cost(layer, setting, before, facts)
        found.append(Candidate(site, setting, (site.node,), before, after, damage))
    best = min(found, key=lambda candidate: candidate.damage)
    if best.saving.macs <= 0:
        raise NoCandidate("lines take as many multiplications as the kernels do")
    return [best]


def split_edges(candidate: Candidate[Sharing], edit: Editor) -> None:
    """Put a convolution along lines, and one that adds lines up, where the layer stood."""
    node = edit.node(candidate.site.node)
    weight = np.asarray(node.inputs[1].values)
    name, orientation = node.name, candidate.setting.edges
    size = weight.shape[2]
    rows = weight.astype(np.float64).reshape(*weight.shape[:2], -1)
    bias = [*node.inputs[2:]]
    metric = None
    if candidate.setting.metric == DATA:
        (metric,) = metric_in(edit, name)
    lines = lines_of(rows, size, orientation, metric)
    if metric is not None:
        kernels = spread(lines, orientation)
        recentred = recentred_bias(edit, node, kernels.reshape(1, len(rows), -1))
        bias = [] if recentred is None else [recentred]
    axis = 1 if orientation == VERTICAL else 0
    extent, ones = [1, 1], [size, size]
    extent[axis], ones[axis] = size, 1
    values = lines.reshape(*lines.shape[:2], *extent).astype(weight.dtype)
    middle = edit.variable(f"{name}_lines", node.inputs[0])
    first = gs.Node(
        "Conv",
        f"{name}_lines",
        _along(node.attrs, axis) | {"kernel_shape": extent},
        inputs=[node.inputs[0], edit.constant(f"{name}_lines", values)],
        outputs=[middle],
    )
    sums = np.ones((len(rows), 1, *ones), dtype=weight.dtype)
    second = gs.Node(
        "Conv",
        f"{name}_sum",
        _along(node.attrs, 1 - axis) | {"kernel_shape": ones, "group": len(rows)},
        inputs=[middle, edit.constant(f"{name}_sum", sums), *bias],
    )
    edit.replace(node, [first, second])


def _along(attrs: dict[str, Any], axis: int) -> dict[str, Any]:
    """A layer's geometry along one axis; along the other it does nothing."""
    found: dict[str, Any] = {}
    for key, idle in (("strides", 1), ("dilations", 1), ("pads", 0)):
        if key in attrs:
            values = [int(value) for value in attrs[key]]
            found[key] = [v if at % 2 == axis else idle for at, v in enumerate(values)]
    if attrs.get("auto_pad", "NOTSET") != "NOTSET":
        found["auto_pad"] = attrs["auto_pad"]
    return found


def _cost(layer: ConvSpec, setting: Sharing, before: Cost, facts: Facts) -> Cost:
    weight, size = facts.view.array(layer.weight), layer.kernel[0]
    height, width = facts.shape(layer.output)[2:]
    batch = facts.shape(layer.output)[0]
    tall, wide = facts.shape(layer.input)[2:]
    middle = tall * width if setting.edges == VERTICAL else height * wide
    lines = size * layer.in_channels * layer.out_channels
    sums = size * layer.out_channels
    more = layer.out_channels if layer.bias is None and setting.metric == DATA else 0
    numbers = lines + sums + more
    macs = batch * (lines * middle + sums * height * width)
    params = before.params - weight.size + numbers
    octets = before.weight_bytes - weight.nbytes + numbers * weight.dtype.itemsize
    return Cost(macs, params, octets)
