"""Trained weights back into the graph that they came from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from onnxcompress.errors import ModelError
from onnxcompress.runtime import Array


def with_weights(model: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """The very same graph with other values of some constants.

    Args:
        model: not changed.
        values: by name of an initializer or of a Constant node's output; cast to the types that
            these have.

    Raises:
        ModelError: a value is not finite, has another shape, or the graph has no such constant.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    places = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in result.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    places[node.output[0]] = attribute.t
    for name, value in values.items():
        if name not in places:
            raise ModelError(f"the graph has no constant '{name}'")
        old = places[name]
        if tuple(old.dims) != value.shape:
            raise ModelError(f"constant '{name}' is {list(old.dims)}, not {list(value.shape)}")
        new = value.astype(onnx.helper.tensor_dtype_to_np_dtype(old.data_type))
        if not np.isfinite(new.astype(np.float64)).all():
            raise ModelError(f"training left values in '{name}' that are not finite")
        old.CopyFrom(onnx.numpy_helper.from_array(new, old.name))
    return result
