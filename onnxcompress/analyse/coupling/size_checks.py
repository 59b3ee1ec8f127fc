"""Channels stay where the sizes that count them are used in a way that does not follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np
import onnx

from onnxcompress.analyse.coupling.flow import FIXED, Flow, Ids
from onnxcompress.analyse.coupling.run_time_sizes import (
    MOVES,
    SIZE_OPERANDS,
    Element,
    Extent,
    Literal,
    Place,
    is_size_operator,
    trace_sizes,
)
from onnxcompress.analyse.coupling.shuffles import Shuffle
from onnxcompress.analyse.coupling.tracer import Tracer, attribute, describe


def refuse_sizes_that_do_not_follow(tracer: Tracer, shuffles: Mapping[str, Shuffle]) -> None:
    """Block channels whose number is used at run time in a way that does not follow."""
    replaced = {name for shuffle in shuffles.values() for name in shuffle.nodes}
    sizes = _derived(tracer)
    for node in tracer.view.model.graph.node:
        if node.name in replaced:
            continue
        operand = SIZE_OPERANDS.get(node.op_type)
        for index, name in enumerate(node.input):
            if not name or tracer.view.is_constant(name):
                continue
            flow = tracer.flow(node.output[0]) if node.output else None
            if index == operand and flow is not None:
                _check(node, name, flow, tracer)
            elif name in sizes and not _hands_on(node, sizes):
                _hold(name, f"{describe(node)} computes with its size", tracer)
    for name in (*tracer.view.outputs, *sorted(tracer.view.captured)):
        if name in sizes:
            _hold(
                name, f"'{name}', an output of the graph or read by a subgraph, is its size", tracer
            )


def _derived(tracer: Tracer) -> set[str]:
    """Tensors of sizes: what Shape gives, and what is computed from it alone."""
    found: set[str] = set()
    for node in tracer.view.model.graph.node:
        if node.op_type == "Shape" and tracer.flow(node.input[0]) is not None:
            found.add(node.output[0])
        elif is_size_operator(node) and found & set(node.input):
            # What moves or picks elements makes sizes of sizes only; arithmetic, of sizes and more.
            moves = node.op_type in MOVES and node.input[0] not in found
            if not moves and all(tracer.flow(name) is None for name in node.input if name):
                found.add(node.output[0])
    return found


def _hands_on(node: onnx.NodeProto, sizes: set[str]) -> bool:
    """Whether a reader of sizes only makes other sizes of them, which are looked at themselves."""
    return bool(node.output) and node.output[0] in sizes


def _check(node: onnx.NodeProto, name: str, flow: Flow, tracer: Tracer) -> None:
    """The sizes that a node is given have to follow along every axis."""
    elements = trace_sizes(tracer.view, name, tracer.shapes)
    if not elements:
        return
    roots = tracer.channels.roots(flow.ids)
    reason = f"{describe(node)} computes its size at run time"
    for axis, element in _by_axis(node, elements, len(flow.shape)):
        if not _follows(element, axis, flow, roots, tracer):
            tracer.block(flow, reason)
            for place in element.depends:
                _block_place(place, reason, tracer)


def _by_axis(
    node: onnx.NodeProto, elements: list[Element], rank: int
) -> Iterator[tuple[int, Element]]:
    axes = attribute(node, "axes")
    if isinstance(axes, (list, tuple)) and len(axes) == len(elements):
        yield from ((int(a) % rank, e) for a, e in zip(axes, elements, strict=True))
        return
    lead = rank - len(elements)
    yield from ((lead + at, element) for at, element in enumerate(elements) if lead + at >= 0)


def _follows(element: Element, axis: int, flow: Flow, roots: Ids, tracer: Tracer) -> bool:
    """Whether an extent comes out right whatever channels are removed."""
    mine = _counts(roots, axis, flow.shape[axis])
    if isinstance(element, Literal):
        return True
    if not isinstance(element, Extent):
        return not mine and not any(_carries(place, tracer) for place in element.depends)
    source = tracer.flow(element.tensor)
    if source is None:
        return not mine
    theirs = _counts(tracer.channels.roots(source.ids), element.axis, source.shape[element.axis])
    return {c: n * element.factor for c, n in theirs.items()} == mine


def _hold(name: str, reason: str, tracer: Tracer) -> None:
    """Block the channels that some element of a tensor of sizes counts."""
    for element in trace_sizes(tracer.view, name, tracer.shapes):
        for place in element.depends:
            _block_place(place, reason, tracer)


def _block_place(place: Place, reason: str, tracer: Tracer) -> None:
    flow = tracer.flow(place[0])
    if flow is not None and _carries(place, tracer):
        tracer.block(flow, reason)


def _carries(place: Place, tracer: Tracer) -> bool:
    """Whether channels lie along this axis of this tensor."""
    flow = tracer.flow(place[0])
    if flow is None:
        return False
    roots = tracer.channels.roots(flow.ids)
    return bool(_counts(roots, place[1], flow.shape[place[1]]))


def _counts(roots: Ids, axis: int, extent: int) -> dict[int, Fraction]:
    """How often each class stands along `axis`; empty where the axis carries none."""
    if roots.shape[axis] == 1:
        return {}
    line = np.moveaxis(roots, axis, 0).reshape(roots.shape[axis], -1)[:, 0]
    if (line == line[0]).all() and extent > 1:
        return {}
    classes, counts = np.unique(line, return_counts=True)
    return {int(c): Fraction(int(n)) for c, n in zip(classes, counts, strict=True) if c != FIXED}
