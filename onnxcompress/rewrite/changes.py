"""What differs between a rewritten graph and the original, and what that reaches."""

from __future__ import annotations

import onnx

from onnxcompress.graph.view import GraphView, captured_by


def changed_nodes(before: GraphView, after: GraphView) -> set[str]:
    """Nodes of the result that are new, differ, or read constants that differ."""
    found = set()
    for node in after.model.graph.node:
        old = before.nodes.get(node.name)
        if old is None or not _same(old, node) or _reads_others(node, before, after):
            found.add(node.name)
    return found


def reached(view: GraphView, sources: set[str]) -> set[str]:
    """These nodes, and every node that depends on one of them."""
    found = set(sources)
    tensors: set[str] = set()
    for node in view.model.graph.node:
        reads = {*node.input, *captured_by(node)}
        if node.name in found or reads & tensors:
            found.add(node.name)
            tensors.update(name for name in node.output if name)
    return found


def _reads_others(node: onnx.NodeProto, before: GraphView, after: GraphView) -> bool:
    return any(before.initializers.get(n) != after.initializers.get(n) for n in node.input)


def _same(one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
    return bool(
        one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    )
