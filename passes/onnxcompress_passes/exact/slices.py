"""Slice and Pad nodes read as what they do to each axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxcompress.graph.cost import Shapes
from onnxcompress.graph.view import GraphView, attributes
from onnxcompress_passes.exact.finding import given, is_kind, numbers


@dataclass(frozen=True)
class Grid:
    """Every `step`-th index of an axis from `start` on, `count` of them."""

    start: int = 0
    step: int = 1
    count: int = 0

    def then(self, other: Grid) -> Grid:
        """The grid of a grid."""
        return Grid(self.start + other.start * self.step, self.step * other.step, other.count)


def grids(node: onnx.NodeProto, view: GraphView, shapes: Shapes) -> Mapping[int, Grid] | None:
    """What a Slice keeps, by axis; None where that is not known before it runs, or runs backwards.

    `count` is taken from the shapes; without shapes (to apply what was found) it is 0.
    """
    starts, ends = numbers(node, 1, "starts", view), numbers(node, 2, "ends", view)
    if starts is None or ends is None:
        return None
    axes = numbers(node, 3, "axes", view) if _has(node, 3, "axes") else list(range(len(starts)))
    steps = numbers(node, 4, "steps", view) if _has(node, 4, "steps") else [1] * len(starts)
    if axes is None or steps is None:
        return None
    shape, result = shapes.get(node.input[0]), shapes.get(node.output[0])
    found = {}
    for axis, start, step in zip(axes, starts, steps, strict=True):
        if step < 1 or axis < 0 or start < 0:
            return None
        count = result[axis] if shape is not None and result is not None else 0
        if shape is not None and start >= shape[axis]:
            return None
        found[axis] = Grid(start, step, count)
    return found


@dataclass(frozen=True)
class Margins:
    """Zeros around a tensor, by axis."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]


def margins(node: onnx.NodeProto, view: GraphView) -> Margins | None:
    """What a Pad adds; None where it is not known, or no zeros."""
    values = attributes(node)
    if values.get("mode", "constant") != "constant" or given(node, 3):
        return None
    if given(node, 2):
        if not view.is_constant(node.input[2]) or view.array(node.input[2]).any():
            return None
    elif values.get("value", 0.0) != 0.0:
        return None
    pads = numbers(node, 1, "pads", view)
    if pads is None or min(pads, default=0) < 0:
        return None
    half = len(pads) // 2
    return Margins(tuple(pads[:half]), tuple(pads[half:]))


def chain(first: onnx.NodeProto, view: GraphView, kinds: Sequence[str]) -> list[onnx.NodeProto]:
    """A node and those behind it of some kinds, as long as each is the only reader of the last."""
    found = [first]
    while True:
        use = view.sole_use(found[-1].output[0])
        if use is None or use.index or not is_kind(use.node, *kinds):
            return found
        found.append(use.node)


def continues(node: onnx.NodeProto, view: GraphView, kinds: Sequence[str]) -> bool:
    """Whether a node belongs to the chain of the node in front of it."""
    before = view.producers.get(node.input[0])
    return before is not None and is_kind(before, *kinds) and bool(view.sole_use(node.input[0]))


def _has(node: onnx.NodeProto, index: int, name: str) -> bool:
    return given(node, index) or any(a.name == name for a in node.attribute)
