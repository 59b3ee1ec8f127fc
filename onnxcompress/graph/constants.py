"""The values that Constant nodes hold, whichever of their attributes holds them."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper


def dense_constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The dense tensor that a Constant node makes, named after its output.

    Returns:
        None for any other node, and for sparse and string constants, which stay nodes.
    """
    if node.op_type != "Constant" or node.domain not in {"", "ai.onnx"} or not node.attribute:
        return None
    attribute = node.attribute[0]
    name = node.output[0]
    match attribute.name:
        case "value":
            tensor = TensorProto()
            tensor.CopyFrom(attribute.t)
            tensor.name = name
            return tensor
        case "value_float":
            return helper.make_tensor(name, TensorProto.FLOAT, [], [attribute.f])
        case "value_floats":
            values = list(attribute.floats)
            return helper.make_tensor(name, TensorProto.FLOAT, [len(values)], values)
        case "value_int":
            return helper.make_tensor(name, TensorProto.INT64, [], [attribute.i])
        case "value_ints":
            integers = list(attribute.ints)
            return helper.make_tensor(name, TensorProto.INT64, [len(integers)], integers)
    return None
