"""Checks on a model nobody has vouched for, cheap enough to run on every load and every save."""

from __future__ import annotations

from math import isfinite

import numpy as np
import onnx

from onnxcompress.errors import ModelError
from onnxcompress.graph.skeleton import element_count, skeleton
from onnxcompress.graph.view import FLOATING_TYPES, GraphView

_COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})


def check_structure(model: onnx.ModelProto) -> None:
    """Run the full ONNX checker, shape inference included, and check every tensor's size.

    Raises:
        ModelError: with the checker's reason in one line.
    """
    for tensor in model.graph.initializer:
        _check_size(tensor)
    light = skeleton(model).model
    try:
        onnx.checker.check_model(light, full_check=True)
    except Exception as error:
        raise ModelError(f"invalid model: {one_line(error)}") from error


def check_values(model: onnx.ModelProto) -> None:
    """Refuse NaN in any constant and infinities in any weight.

    Raises:
        ModelError: names the tensor and the node that reads it.
    """
    view = GraphView(model)
    for tensor in model.graph.initializer:
        if tensor.data_type not in FLOATING_TYPES or element_count(tensor) == 0:
            continue
        values = view.array(tensor.name)
        # Two reductions instead of isfinite: no temporary array, and NaN wins in both.
        low, high = float(np.min(values)), float(np.max(values))
        if isfinite(low) and isfinite(high):
            continue
        readers = [use.node for use in view.uses(tensor.name)]
        compute = [node.name for node in readers if node.op_type in _COMPUTE]
        if np.isnan(low) or np.isnan(high) or compute:
            where = (compute or [node.name for node in readers] or ["no node"])[0]
            raise ModelError(
                f"initializer '{tensor.name}' of node '{where}' contains NaN or infinite values"
            )


def _check_size(tensor: onnx.TensorProto) -> None:
    if any(dimension < 0 for dimension in tensor.dims):
        raise ModelError(f"initializer '{tensor.name}' has a negative dimension")
    if tensor.HasField("raw_data") and tensor.data_type in FLOATING_TYPES:
        size = element_count(tensor) * _item_size(tensor.data_type)
        if len(tensor.raw_data) != size:
            raise ModelError(
                f"initializer '{tensor.name}' promises {size} bytes "
                f"(shape {list(tensor.dims)}) but holds {len(tensor.raw_data)}"
            )


def _item_size(data_type: int) -> int:
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize)


def one_line(error: Exception) -> str:
    """An error message as one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__
