"""Counting what a network costs: multiply-accumulates, parameters, bytes; per operator.

MACs are counted for Conv, ConvTranspose, Gemm, MatMul and their quantised forms; everything else
counts as free, as in the literature. Parameters are the elements of every initializer that holds
weights (floating point, or 4/8/16-bit integers), each counted once even if several nodes read it;
index and shape constants are not parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import onnx

from onnxcompress.errors import ModelError
from onnxcompress.graph.skeleton import element_count
from onnxcompress.graph.view import FLOATING_TYPES, GraphView, attributes

Shapes = dict[str, tuple[int, ...]]

_WEIGHT_TYPES = FLOATING_TYPES | {
    onnx.TensorProto.INT16,
    onnx.TensorProto.UINT16,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT4,
    onnx.TensorProto.UINT4,
}
COUNTED_OPERATORS = frozenset(
    {
        "Conv",
        "ConvInteger",
        "FusedConv",
        "QLinearConv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "MatMulInteger",
        "QLinearMatMul",
    }
)

_BITS: dict[int, int] = {
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.DOUBLE: 64,
    onnx.TensorProto.INT16: 16,
    onnx.TensorProto.UINT16: 16,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
}


@dataclass(frozen=True)
class Cost:
    """Counted cost: MACs for one run at the representative shapes, parameters, weight bytes."""

    macs: int = 0
    params: int = 0
    weight_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs,
            self.params + other.params,
            self.weight_bytes + other.weight_bytes,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.macs - other.macs,
            self.params - other.params,
            self.weight_bytes - other.weight_bytes,
        )


def node_macs(node: onnx.NodeProto, shapes: Shapes, view: GraphView) -> int:
    """Multiply-accumulates of one node at the given shapes (0 for operators that have none)."""
    if node.domain not in {"", "ai.onnx", "com.microsoft"}:
        return 0
    match node.op_type:
        case "Conv" | "ConvInteger" | "FusedConv":
            return _conv(node.output[0], node.input[1], shapes, view)
        case "QLinearConv":
            return _conv(node.output[0], node.input[3], shapes, view)
        case "ConvTranspose":
            weight = _shape(node.input[1], shapes, view)
            return prod(_shape(node.input[0], shapes, view)) * prod(weight[1:])
        case "Gemm":
            inner = _shape(node.input[0], shapes, view)
            left = inner[0] if attributes(node).get("transA", 0) else inner[-1]
            return prod(_shape(node.output[0], shapes, view)) * left
        case "MatMul" | "MatMulInteger" | "QLinearMatMul":
            return (
                prod(_shape(node.output[0], shapes, view)) * _shape(node.input[0], shapes, view)[-1]
            )
    return 0


def tensor_cost(tensor: onnx.TensorProto) -> Cost:
    """Parameters and bytes of one initializer (nothing for index and shape constants)."""
    if tensor.data_type not in _WEIGHT_TYPES:
        return Cost()
    count = element_count(tensor)
    return Cost(params=count, weight_bytes=-(-count * _BITS[tensor.data_type] // 8))


def model_cost(model: onnx.ModelProto, shapes: Shapes) -> Cost:
    """Cost of the whole network at the given shapes."""
    view = GraphView(model)
    total = Cost(macs=sum(node_macs(node, shapes, view) for node in model.graph.node))
    for tensor in model.graph.initializer:
        total += tensor_cost(tensor)
    return total


def node_cost(node: onnx.NodeProto, shapes: Shapes, view: GraphView) -> Cost:
    """Cost of one node with the initializers it reads."""
    total = Cost(macs=node_macs(node, shapes, view))
    for name in dict.fromkeys(node.input):
        if view.is_constant(name):
            total += tensor_cost(view.initializers[name])
    return total


def activation_bytes(node: onnx.NodeProto, shapes: Shapes, view: GraphView) -> int:
    """Bytes that the node reads and writes at run time besides its weights (float32 assumed)."""
    names = [n for n in (*node.input, *node.output) if n in shapes and not view.is_constant(n)]
    return 4 * sum(prod(shapes[name]) for name in names)


def _conv(output: str, weight: str, shapes: Shapes, view: GraphView) -> int:
    return prod(_shape(output, shapes, view)) * prod(_shape(weight, shapes, view)[1:])


def _shape(name: str, shapes: Shapes, view: GraphView) -> tuple[int, ...]:
    if view.is_constant(name):
        return tuple(view.initializers[name].dims)
    if name not in shapes:
        raise ModelError(f"the size of tensor '{name}' is not known: MACs cannot be counted")
    return shapes[name]
