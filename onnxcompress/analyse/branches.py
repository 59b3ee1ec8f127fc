"""Residual branches: what could go as a whole, leaving the shortcut.

An Add joins a branch to a shortcut. The branch is what only serves that Add; the shortcut is the
tensor from which the branch sets out, or one projection of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from onnxcompress.analyse.coupling.grouping import LAYERS
from onnxcompress.graph.view import GraphView

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


@dataclass(frozen=True)
class Branch:
    """A residual branch.

    Attributes:
        add: the Add that joins it.
        tensor: the branch's end.
        index: which input of the Add it is.
        shortcut: the other input.
        nodes: the nodes that only serve the branch, in order of execution.
        axis: the channel axis.
    """

    add: str
    tensor: str
    index: int
    shortcut: str
    nodes: tuple[str, ...]
    axis: int = 1


def residual_branches(view: GraphView, shapes: Mapping[str, tuple[int, ...]]) -> list[Branch]:
    """Every residual branch of a graph, in order of execution."""
    found = []
    for node in view.model.graph.node:
        if node.op_type != "Add" or node.domain not in {"", "ai.onnx"} or len(node.input) != 2:
            continue
        if any(name not in view.producers for name in node.input):
            continue
        sizes = [shapes.get(name) for name in node.input]
        if None in sizes or sizes[0] != sizes[1] or len(sizes[0] or ()) < 3:
            continue
        found += [branch for index in (0, 1) if (branch := _branch(view, node, index)) is not None]
    return found


def _branch(view: GraphView, add: onnx.NodeProto, index: int) -> Branch | None:
    tensor, shortcut = add.input[index], add.input[1 - index]
    if tensor == shortcut:
        return None
    nodes = _exclusive(view, add, index)
    layers = [name for name in nodes if view.nodes[name].op_type in LAYERS]
    reads = {name for node in nodes for name in view.nodes[node].input}
    # Behind a convolution axis 1 holds channels; behind a dense layer it may hold anything.
    if not layers or view.nodes[layers[-1]].op_type not in _CONVOLUTIONS:
        return None
    if not (shortcut in reads or _projects(view, add, 1 - index, reads)):
        return None
    return Branch(add.name, tensor, index, shortcut, tuple(nodes))


def _projects(view: GraphView, add: onnx.NodeProto, index: int, reads: set[str]) -> bool:
    """Whether the shortcut is one convolution, or a few free operators, of the branch's start."""
    nodes = _exclusive(view, add, index)
    layers = [name for name in nodes if view.nodes[name].op_type in LAYERS]
    inputs = {name for node in nodes for name in view.nodes[node].input}
    return len(layers) <= 1 and bool(inputs & reads - set(view.initializers))


def _exclusive(view: GraphView, reader: onnx.NodeProto, index: int) -> list[str]:
    """The nodes that only serve one input of `reader`, in order of execution."""
    visible = view.captured | set(view.outputs)
    tensor = reader.input[index]
    found: set[str] = set()
    open_ends = [tensor]
    while open_ends:
        name = open_ends.pop()
        node = view.producers.get(name)
        if node is None or node.name in found or set(node.output) & visible:
            continue
        uses = [use for output in node.output for use in view.uses(output)]
        if not all(
            use.node.name in found or (use.node.name, use.index) == (reader.name, index)
            for use in uses
        ):
            continue
        found.add(node.name)
        open_ends += [n for n in node.input if n]
        # A node that was passed over before may serve nobody else now.
        open_ends += [n for other in found for n in view.nodes[other].input if n in view.producers]
    return [node.name for node in view.model.graph.node if node.name in found]
