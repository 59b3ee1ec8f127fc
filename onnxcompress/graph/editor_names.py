"""Names of tensors: which are taken, and which a subgraph reads."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from onnxcompress.graph.view import subgraphs


def unique_name(hint: str, taken: set[str]) -> str:
    """A name starting with `hint` that is not taken; it is taken from then on."""
    name, number = hint, 1
    while name in taken:
        name = f"{hint}_{number}"
        number += 1
    taken.add(name)
    return name


def captured_tensors(node: gs.Node) -> list[gs.Tensor]:
    """Tensors that the subgraphs of `node` read (outer ones among them keep their identity)."""
    tensors: list[gs.Tensor] = []
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            tensors.extend(value.outputs)
            for inner in value.nodes:
                tensors.extend(inner.inputs)
                tensors.extend(captured_tensors(inner))
    return tensors


def tensor_names(graph: onnx.GraphProto) -> list[str]:
    """Every name of a tensor in a graph and its subgraphs."""
    names = [t.name for t in graph.initializer]
    names += [i.name for i in graph.input] + [o.name for o in graph.output]
    names += [t.values.name for t in graph.sparse_initializer]
    for node in graph.node:
        names += [name for name in (*node.input, *node.output) if name]
        for sub in subgraphs(node):
            names += tensor_names(sub)
    return names
