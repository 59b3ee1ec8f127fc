"""Where a layer's weight comes from: an initializer, or one behind nodes that keep its layout."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

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


def constant_values(view: GraphView, tensor: str) -> NDArray[np.float64]:
    """The values of a weight in float64, as the layer that reads `tensor` sees them.

    Raises:
        ModelError: it is not a constant.
    """
    if view.is_constant(tensor) or weight_root(view, tensor) is None:
        return view.array64(tensor)
    node = view.producers[tensor]
    values = constant_values(view, node.input[0])
    if node.op_type != "DequantizeLinear":
        return values
    scale = view.array64(node.input[1])
    zero = view.array64(node.input[2]) if len(node.input) > 2 else np.zeros(())
    if scale.size > 1:
        axis = attributes(node).get("axis", 1)
        lined = [1] * values.ndim
        lined[int(axis) if isinstance(axis, int) else 1] = -1
        scale, zero = scale.reshape(lined), np.broadcast_to(zero.ravel(), scale.size).reshape(lined)
    return np.asarray((values - zero) * scale, dtype=np.float64)
