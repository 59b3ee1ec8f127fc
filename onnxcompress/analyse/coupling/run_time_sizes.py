"""Sizes that the graph computes at run time: do they follow when channels are removed?

A Reshape may take its target from Shape, Gather, Concat and arithmetic. Every element of such a
vector is traced back: to a constant, which can be rewritten; to a fraction of an extent, which
follows when that tensor loses channels in the same proportion; or to something that is only known
by what it depends on, which does not follow. An extent that ends anywhere else than as a size
(as a number to compute with, as an output) holds the channels that it counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

import numpy as np
import onnx

from onnxcompress.analyse.coupling.tracer import attribute, integer
from onnxcompress.graph.view import GraphView

Place = tuple[str, int]
"""A tensor and one of its axes."""


@dataclass(frozen=True)
class Literal:
    """An element of an initializer.

    Attributes:
        value: what stands there.
    """

    value: int

    @property
    def depends(self) -> frozenset[Place]:
        """On no extent."""
        return frozenset()


@dataclass(frozen=True)
class Extent:
    """A fraction of a tensor's extent along one axis."""

    tensor: str
    axis: int
    factor: Fraction = Fraction(1)

    @property
    def depends(self) -> frozenset[Place]:
        """On that extent."""
        return frozenset({(self.tensor, self.axis)})


@dataclass(frozen=True)
class Computed:
    """An element of which only is known what it depends on."""

    depends: frozenset[Place]


Element = Literal | Extent | Computed
Shapes = Mapping[str, tuple[int, ...]]

_SAME = frozenset({"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten"})
SIZE_OPERANDS = {"Reshape": 1, "Expand": 1, "Tile": 1, "Resize": 3}
"""Operators whose output extents are given by an operand, and which one."""

MOVES = _SAME | {"Gather", "Slice"}
"""Operators that hand on elements of their first operand."""

ARITHMETIC = frozenset(
    {"Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Floor", "Ceil", "Round", "Neg", "Abs"}
    | {"Sqrt", "Pow", "Equal", "Where", "Gather", "Slice", "Concat"}
    | {"ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin"}
)
"""With `_SAME`, the operators that sizes are computed with."""


def is_size_operator(node: onnx.NodeProto) -> bool:
    """Whether what a node makes of sizes are sizes again."""
    return node.domain in {"", "ai.onnx"} and node.op_type in _SAME | ARITHMETIC


def trace_sizes(view: GraphView, tensor: str, shapes: Shapes) -> list[Element]:
    """Where every element of a small tensor of numbers comes from."""
    if view.is_constant(tensor):
        values = np.ravel(view.array(tensor))
        if values.dtype.kind in "iu":
            return [Literal(int(value)) for value in values]
        return [Computed(frozenset())] * values.size
    count = prod(shapes.get(tensor, (1,)))
    node = view.producers.get(tensor)
    if node is None or node.domain not in {"", "ai.onnx"}:
        return [Computed(frozenset())] * count
    if node.op_type == "Shape":
        rank = len(shapes[node.input[0]])
        axes = list(range(rank))[integer(node, "start", 0) : _end(node)]
        return [Extent(node.input[0], axis) for axis in axes]
    if not is_size_operator(node) or count > _LONGEST:
        return [Computed(frozenset())] * count
    parts = [trace_sizes(view, name, shapes) for name in node.input if name]
    found = _made(node, view, parts)
    if found is not None and len(found) == count:
        return found
    depends = frozenset(place for part in parts for element in part for place in element.depends)
    return [Computed(depends)] * count


_LONGEST = 64
"""Vectors of sizes are short; anything longer is data."""


def _made(
    node: onnx.NodeProto, view: GraphView, parts: Sequence[list[Element]]
) -> list[Element] | None:
    """What a node makes of traced operands, element by element; None if that cannot be said."""
    if node.op_type == "Concat":
        return [element for part in parts for element in part]
    if node.op_type in _SAME:
        return list(parts[0])
    if node.op_type in {"Gather", "Slice"}:
        return _picked(node, view, parts[0])
    if node.op_type in {"Mul", "Div"} and len(parts) == 2:
        one, other = parts
        length = max(len(one), len(other))
        if {len(one), len(other)} <= {1, length}:
            one, other = (p * length if len(p) == 1 else p for p in (one, other))
            return [_scaled(node.op_type, a, b) for a, b in zip(one, other, strict=True)]
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


def _scaled(op: str, a: Element, b: Element) -> Element:
    if isinstance(a, Literal) and isinstance(b, Extent) and op == "Mul":
        a, b = b, a
    if isinstance(a, Extent) and isinstance(b, Literal) and b.value != 0:
        factor = Fraction(b.value) if op == "Mul" else Fraction(1, b.value)
        return Extent(a.tensor, a.axis, a.factor * factor)
    return Computed(a.depends | b.depends)


def _end(node: onnx.NodeProto) -> int | None:
    value = attribute(node, "end")
    return int(value) if isinstance(value, int) else None
