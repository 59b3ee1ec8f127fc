"""Layers of edge filters: one convolution along a line, and one that adds lines up.

Where all rows of every kernel are alike, a k x k convolution is one of [1, k], followed by a
depthwise one of [k, 1] whose weights are ones; where all columns are alike, the other way around.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from onnxcompress.graph.editor import Editor
from onnxcompress.kernels.feedback import damped
from onnxcompress.kernels.language import HORIZONTAL, VERTICAL
from onnxcompress.plan.contract import Candidate, NoCandidate
from onnxcompress_passes.dsl.layers import Opened, Planned
from onnxcompress_passes.dsl.setting import Sharing

Array = NDArray[np.float64]

ORIENTATIONS = (VERTICAL, HORIZONTAL)


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


def edge_candidates(plan: Planned) -> list[Candidate[Sharing]]:
    """All kernels as edge filters of the orientation that damages less.

    Raises:
        NoCandidate: it would save nothing.
    """
    weight, layer = plan.weight, plan.layer
    size = layer.kernel[0]
    (tall, wide), (height, width) = plan.extents()
    batch = plan.positions // (height * width)
    lines, sums = size * plan.kernels, size * layer.out_channels
    found = []
    for orientation in ORIENTATIONS:
        fitted = plan.solved(("edges", orientation), partial(lines_of, weight, size, orientation))
        kernels = spread(fitted, orientation)
        middle = tall * width if orientation == VERTICAL else height * wide
        found.append(
            plan.offer(
                Sharing(edges=orientation, metric=plan.metric),
                plan.numbers(lines + sums),
                kernels,
                macs=batch * (lines * middle + sums * height * width),
            )
        )
    best = min(found, key=lambda candidate: candidate.damage)
    if best.saving.macs <= 0:
        raise NoCandidate("lines take as many multiplications as the kernels do")
    return [best]


def split_edges(candidate: Candidate[Sharing], edit: Editor) -> None:
    """Put a convolution along lines, and one that adds lines up, where the layer stood."""
    work, orientation = Opened(candidate, edit), candidate.setting.edges
    node, name, weight = work.node, work.name, work.stored
    size = weight.shape[2]
    fit = partial(lines_of, work.weight, size, orientation)
    lines = work.solved(("edges", orientation), fit)
    bias = work.bias(spread(lines, orientation))
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
    sums = np.ones((len(weight), 1, *ones), dtype=weight.dtype)
    second = gs.Node(
        "Conv",
        f"{name}_sum",
        _along(node.attrs, 1 - axis) | {"kernel_shape": ones, "group": len(weight)},
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
