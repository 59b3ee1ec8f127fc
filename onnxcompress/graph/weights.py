"""Where a layer's weight comes from: an initializer, or one behind nodes that keep its layout."""

from __future__ import annotations

import onnx

from onnxcompress.graph.view import GraphView, attributes

_LAYOUT_KEPT = frozenset({"Identity", "Cast", "DequantizeLinear"})


def weight_root(view: GraphView, tensor: str) -> str | None:
    """The initializer behind `tensor`, or None if a part of it is computed from inputs.

    Between the two only Identity, Cast and DequantizeLinear (per tensor or per axis) may stand, so
    that index i along an axis means the same on both sides.
    """
    while not view.is_constant(tensor):
        node = view.producers.get(tensor)
        if node is None or node.op_type not in _LAYOUT_KEPT or node.domain not in {"", "ai.onnx"}:
            return None
        if not all(view.is_constant(name) for name in node.input[1:] if name):
            return None
        if node.op_type == "DequantizeLinear" and attributes(node).get("block_size"):
            return None
        tensor = node.input[0]
    return tensor


def chain_of(view: GraphView, tensor: str) -> list[onnx.NodeProto]:
    """The nodes between a weight's initializer and `tensor`, the one nearest to `tensor` first."""
    chain: list[onnx.NodeProto] = []
    while not view.is_constant(tensor):
        chain.append(view.producers[tensor])
        tensor = chain[-1].input[0]
    return chain
