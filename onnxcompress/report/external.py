"""External tensor data: a model's large weights laid out in a file of their own."""

from __future__ import annotations

import onnx
from onnx.external_data_helper import set_external_data

from onnxcompress.graph.skeleton import element_count

_SMALLEST = 1024
"""Bytes below which a tensor stays in the model file: shapes and scalars are read there."""

_PAGE = 4096
"""Offsets are multiples of a page, so that a reader may map the file into memory."""


def split_weights(
    model: onnx.ModelProto, location: str
) -> tuple[onnx.ModelProto, list[tuple[int, bytes]]]:
    """Take the large weights out of a model.

    Args:
        model: not changed.
        location: name of the data file, as the model will refer to it.

    Returns:
        The model with references, and what the data file holds: bytes of padding, then bytes.
    """
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    parts: list[tuple[int, bytes]] = []
    offset = 0
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.STRING or element_count(tensor) == 0:
            continue
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(
                onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name)
            )
        octets = tensor.raw_data
        if len(octets) < _SMALLEST:
            continue
        padding = -offset % _PAGE
        offset += padding
        set_external_data(tensor, location, offset, len(octets))
        tensor.ClearField("raw_data")
        parts.append((padding, octets))
        offset += len(octets)
    return graph, parts
