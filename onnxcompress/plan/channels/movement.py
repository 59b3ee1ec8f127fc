"""Edits of data movement: sizes, bounds, indices and amounts that count channels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import onnx

from onnxcompress.analyse.coupling.result import Lane
from onnxcompress.analyse.coupling.run_time_sizes import SIZE_OPERANDS, Literal, trace_sizes
from onnxcompress.graph.edits import (
    Edit,
    Indices,
    Patch,
    Permute,
    Replace,
    SetAttributes,
)
from onnxcompress.graph.view import attributes
from onnxcompress.plan.channels.situation import Situation


def split(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """Sizes of the parts along the channel axis."""
    lane = at.lane(node.input[0])
    axis = _axis(node, at, 0)
    if lane is None or lane.axis != axis:
        return
    kept = at.kept(node.input[0])
    bounds = np.cumsum([0, *(at.shape(name)[axis] for name in node.output)])
    sizes = [int(((kept >= a) & (kept < b)).sum()) for a, b in pairwise(bounds)]
    if at.view.opset() < 13:
        yield SetAttributes(node.name, {"split": sizes})
        return
    yield Replace(node.name, 1, np.array(sizes, dtype=np.int64))
    if "num_outputs" in attributes(node):
        yield SetAttributes(node.name, {"num_outputs": None})


def slice_(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """Bounds along the channel axis count the channels that stay in front of them."""
    lane = at.lane(node.input[0])
    if lane is None:
        return
    given = attributes(node)
    if "starts" in given:
        starts, ends = _list(given["starts"]), _list(given["ends"])
        axes = _list(given["axes"]) if "axes" in given else list(range(len(starts)))
    else:
        first, last = at.integers(node, 1), at.integers(node, 2)
        if first is None or last is None:
            # Bounds that are computed at run time were only let through on other axes.
            return
        starts, ends = first, last
        axes = at.integers(node, 3) or list(range(len(starts)))
    rank = len(at.shape(node.input[0]))
    place = [a % rank for a in axes]
    if lane.axis not in place:
        return
    at_axis = place.index(lane.axis)
    kept, extent = at.kept(node.input[0]), len(lane.classes)
    for bounds in (starts, ends):
        bounds[at_axis] = int((kept < _clamped(bounds[at_axis], extent)).sum())
    if "starts" in given:
        yield SetAttributes(node.name, {"starts": starts, "ends": ends})
        return
    for index, bounds in ((1, starts), (2, ends)):
        dtype = at.view.array(node.input[index]).dtype
        yield Replace(node.name, index, np.array(bounds, dtype=dtype))


def gather(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """Indices of channels: those that stay, counted among those that stay."""
    lane = at.lane(node.input[0])
    axis = _axis(node, at, 0)
    if lane is None or lane.axis != axis:
        return
    stored = at.view.array(node.input[1])
    indices = stored.astype(np.int64)
    extent = len(lane.classes)
    place = np.full(extent, -1, dtype=np.int64)
    kept = at.kept(node.input[0])
    place[kept] = np.arange(len(kept))
    chosen = np.where(indices < 0, indices + extent, indices)
    after = at.lane(node.output[0])
    if after is not None and indices.ndim:
        chosen = chosen.take(at.kept(node.output[0]), after.axis - axis)
    yield Replace(node.name, 1, place[chosen].astype(stored.dtype))


def pad(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """Amounts along the channel axis count the added channels that stay."""
    lane = at.lane(node.output[0])
    if lane is None:
        return
    given = attributes(node)
    rank = len(at.shape(node.output[0]))
    axes = at.integers(node, 3) or list(range(rank))
    place = [a % rank for a in axes]
    name = next((n for n in ("pads", "paddings") if n in given), None)
    pads = _list(given[name]) if name else at.integers(node, 1)
    if lane.axis not in place or pads is None:
        return
    first = place.index(lane.axis)
    last = first + len(place)
    before, after = pads[first], pads[last]
    if (before, after) == (0, 0):
        return
    kept, extent = at.kept(node.output[0]), len(lane.classes)
    pads[first] = int((kept < before).sum())
    pads[last] = int((kept >= extent - after).sum())
    if name:
        yield SetAttributes(node.name, {name: pads})
    else:
        yield Replace(node.name, 1, np.array(pads, dtype=np.int64))


def sized(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """Reshape, Expand, Resize: the extent of the channel axis where it is written down."""
    index = SIZE_OPERANDS[node.op_type]
    lane = at.lane(node.output[0])
    if lane is None or len(node.input) <= index or not node.input[index]:
        return
    elements = trace_sizes(at.view, node.input[index], at.coupling.shapes)
    position = _position(node, at, lane, len(elements))
    element = elements[position] if 0 <= position < len(elements) else None
    leave = {"Reshape": {-1}, "Expand": {1}}.get(node.op_type, set())
    if not isinstance(element, Literal) or element.value in leave or node.op_type == "Tile":
        return
    width = len(at.kept(node.output[0]))
    constant = at.integers(node, index)
    if constant is None:
        yield Patch(node.name, index, {position: width}, len(elements))
        return
    constant[position] = width
    yield Replace(node.name, index, np.array(constant, dtype=np.int64))


def shuffle(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """A channel shuffle as one Gather of the channels that stay."""
    whole = at.coupling.shuffles[node.name]
    lane = at.lane(whole.source)
    after = at.lane(whole.target)
    if lane is None or after is None:
        return
    kept = at.kept(whole.source)
    place = np.full(len(lane.classes), -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    order: Indices = place[np.array(whole.order)[at.kept(whole.target)]]
    yield Permute(whole.nodes, whole.axis, order)


def _position(node: onnx.NodeProto, at: Situation, lane: Lane, length: int) -> int:
    """Where the channel axis stands in the vector of sizes."""
    axes = attributes(node).get("axes")
    rank = len(at.shape(node.output[0]))
    if node.op_type == "Resize" and isinstance(axes, (list, tuple)):
        place = [int(a) % rank for a in axes]
        return place.index(lane.axis) if lane.axis in place else -1
    return lane.axis - (rank - length)


def _axis(node: onnx.NodeProto, at: Situation, default: int) -> int:
    axis = attributes(node).get("axis", default)
    return int(axis) % len(at.shape(node.input[0])) if isinstance(axis, int) else default


def _clamped(bound: int, extent: int) -> int:
    return min(max(bound + extent if bound < 0 else bound, 0), extent)


def _list(value: object) -> list[int]:
    return [int(v) for v in value] if isinstance(value, (list, tuple)) else []
