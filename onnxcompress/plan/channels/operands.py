"""Edits of element-wise operators and of the others whose constant operands lie along channels."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from onnxcompress.graph.edits import Cut, Edit
from onnxcompress.graph.view import attributes
from onnxcompress.plan.channels.situation import Situation


def elementwise(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """Constants are aligned with the output at their last axes."""
    lane = at.lane(node.output[0])
    if lane is None:
        return
    rank = len(at.shape(node.output[0]))
    for index, name in enumerate(node.input):
        if name and at.view.is_constant(name):
            shape = at.shape(name)
            axis = lane.axis - (rank - len(shape))
            if axis >= 0 and shape[axis] > 1:
                yield Cut(node.name, index, {axis: at.kept(node.output[0])})


def quantisation(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """Scales and zero points per axis."""
    lane = at.lane(node.output[0])
    if lane is None:
        return
    axis = attributes(node).get("axis", 1)
    rank = len(at.shape(node.output[0]))
    if not isinstance(axis, int) or axis % rank != lane.axis:
        return
    for index in range(1, len(node.input)):
        if node.input[index] and at.shape(node.input[index]) not in {(), (1,)}:
            yield Cut(node.name, index, {0: at.kept(node.output[0])})


def concat(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """Constants that are joined on lose their part of the removed channels."""
    lane = at.lane(node.output[0])
    axis = attributes(node).get("axis", 1)
    rank = len(at.shape(node.output[0]))
    constants = [name for name in node.input if at.view.is_constant(name)]
    if lane is None or not isinstance(axis, int) or not constants:
        return
    kept = at.kept(node.output[0])
    start = 0
    for index, name in enumerate(node.input):
        extent = at.shape(name)[lane.axis]
        constant = at.view.is_constant(name)
        if axis % rank != lane.axis:
            # Joined along another axis: every part holds all channels.
            if constant:
                yield Cut(node.name, index, {lane.axis: kept})
            continue
        mine = kept[(kept >= start) & (kept < start + extent)] - start
        if constant and len(mine) < extent:
            yield Cut(node.name, index, {lane.axis: mine})
        start += extent
