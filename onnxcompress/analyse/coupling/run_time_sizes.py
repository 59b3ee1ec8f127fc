"""Sizes that the graph computes at run time: do they follow when channels are removed?

A Reshape may take its target from Shape, Gather, Concat and arithmetic. Every element of such a
vector is traced back: to a constant (which can be rewritten), to an extent of some tensor times a
fraction (which follows when that tensor loses channels in the same proportion), or to nowhere
(then the channels stay).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx

from onnxcompress.analyse.coupling.flow import FIXED, Flow, Ids
from onnxcompress.analyse.coupling.shuffles import Shuffle
from onnxcompress.analyse.coupling.tracer import (
    Tracer,
    attribute,
    describe,
    integer,
    operand,
)
from onnxcompress.graph.view import GraphView


@dataclass(frozen=True)
class Literal:
    """An element of an initializer.

    Attributes:
        tensor: the initializer.
        index: flat index into it.
        value: what stands there.
    """

    tensor: str
    index: int
    value: int


@dataclass(frozen=True)
class Extent:
    """A fraction of a tensor's extent along one axis."""

    tensor: str
    axis: int
    factor: Fraction = Fraction(1)


Element = Literal | Extent | None
"""None: it is not known what the element depends on."""

_SAME = frozenset({"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten"})
SIZE_OPERANDS = {"Reshape": 1, "Expand": 1, "Tile": 1, "Resize": 3}
"""Operators whose output extents are given by an operand, and which one."""


def trace_sizes(view: GraphView, tensor: str) -> list[Element] | None:
    """Where every element of a vector of sizes comes from; None if that cannot be said at all."""
    if view.is_constant(tensor):
        values = np.ravel(view.array(tensor))
        if values.dtype.kind not in "iu":
            return None
        return [Literal(tensor, at, int(value)) for at, value in enumerate(values)]
    node = view.producers.get(tensor)
    if node is None or node.domain not in {"", "ai.onnx"}:
        return None
    if node.op_type == "Shape":
        return _shape(node, view)
    parts = [trace_sizes(view, name) for name in node.input if name]
    first = parts[0] if parts else None
    if node.op_type == "Concat":
        return None if None in parts else [e for part in parts for e in part or ()]
    if first is None:
        return None
    if node.op_type in _SAME:
        return first
    if node.op_type in {"Gather", "Slice"}:
        return _picked(node, view, first)
    if node.op_type in {"Mul", "Div"} and len(parts) == 2 and parts[1] is not None:
        return _scaled(node.op_type, first, parts[1])
    return None


def refuse_sizes_that_do_not_follow(tracer: Tracer, shuffles: Mapping[str, Shuffle]) -> None:
    """Block the channels of tensors whose extents are computed in a way that does not follow."""
    replaced = {name for shuffle in shuffles.values() for name in shuffle.nodes}
    for node in tracer.view.model.graph.node:
        if node.name in replaced:
            continue
        index = SIZE_OPERANDS.get(node.op_type)
        name = operand(node, index) if index is not None else ""
        flow = tracer.flow(node.output[0]) if node.output else None
        if not name or flow is None or tracer.view.is_constant(name):
            continue
        elements = trace_sizes(tracer.view, name)
        roots = tracer.channels.roots(flow.ids)
        if elements is None or len(elements) != len(flow.shape):
            if node.op_type in {"Reshape", "Expand"} or elements is not None:
                tracer.block(flow, f"{describe(node)} computes its size at run time")
            continue
        for axis, element in enumerate(elements):
            if not _follows(element, axis, flow, roots, tracer):
                tracer.block(flow, f"{describe(node)} computes its size at run time")
                break


def _follows(element: Element, axis: int, flow: Flow, roots: Ids, tracer: Tracer) -> bool:
    """Whether an extent comes out right whatever channels are removed."""
    mine = _counts(roots, axis, flow.shape[axis])
    if isinstance(element, Literal):
        return True
    if element is None:
        return False
    source = tracer.flow(element.tensor)
    if source is None:
        return not mine
    theirs = _counts(tracer.channels.roots(source.ids), element.axis, source.shape[element.axis])
    return {c: n * element.factor for c, n in theirs.items()} == mine


def _counts(roots: Ids, axis: int, extent: int) -> dict[int, Fraction]:
    """How often each class stands along `axis`; empty where the axis carries none."""
    if roots.shape[axis] == 1:
        return {}
    line = np.moveaxis(roots, axis, 0).reshape(roots.shape[axis], -1)[:, 0]
    if (line == line[0]).all() and extent > 1:
        return {}
    classes, counts = np.unique(line, return_counts=True)
    return {int(c): Fraction(int(n)) for c, n in zip(classes, counts, strict=True) if c != FIXED}


def _shape(node: onnx.NodeProto, view: GraphView) -> list[Element] | None:
    rank = _rank(node.input[0], view)
    if rank is None:
        return None
    axes = list(range(rank))[integer(node, "start", 0) : _end(node)]
    return [Extent(node.input[0], axis) for axis in axes]


def _end(node: onnx.NodeProto) -> int | None:
    value = attribute(node, "end")
    return int(value) if isinstance(value, int) else None


def _rank(tensor: str, view: GraphView) -> int | None:
    for value in (*view.model.graph.value_info, *view.model.graph.input, *view.model.graph.output):
        if value.name == tensor and value.type.tensor_type.HasField("shape"):
            return len(value.type.tensor_type.shape.dim)
    return None


def _picked(
    node: onnx.NodeProto, view: GraphView, elements: Sequence[Element]
) -> list[Element] | None:
    rest = [view.array(n) for n in node.input[1:] if n and view.is_constant(n)]
    if len(rest) != len([n for n in node.input[1:] if n]):
        return None
    if node.op_type == "Gather":
        return [elements[int(i)] for i in np.ravel(rest[0])]
    if not rest:
        starts, ends = attribute(node, "starts"), attribute(node, "ends")
        if not isinstance(starts, (list, tuple)) or not isinstance(ends, (list, tuple)):
            return None
        return list(elements[int(starts[0]) : int(ends[0])])
    step = int(np.ravel(rest[3])[0]) if len(rest) > 3 else 1
    return list(elements[int(np.ravel(rest[0])[0]) : int(np.ravel(rest[1])[0]) : step])


def _scaled(op: str, one: Sequence[Element], other: Sequence[Element]) -> list[Element] | None:
    if len(one) != 1 or len(other) != 1:
        return None
    a, b = one[0], other[0]
    if isinstance(a, Literal) and isinstance(b, Extent) and op == "Mul":
        a, b = b, a
    if not isinstance(a, Extent) or not isinstance(b, Literal) or b.value == 0:
        return [None]
    factor = Fraction(b.value) if op == "Mul" else Fraction(1, b.value)
    return [Extent(a.tensor, a.axis, a.factor * factor)]
