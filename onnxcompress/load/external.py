"""External tensor data, accepted only from within the model's own folder.

A model file may name any path as the home of its weights. Absolute paths, `..` and symbolic links
that lead out of the folder are refused before a byte is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import uses_external_data

from onnxcompress.errors import ModelError
from onnxcompress.graph.view import subgraphs


def load_contained(model: onnx.ModelProto, folder: Path | None, label: str) -> int:
    """Load all external data of `model` in place and return the bytes read.

    Args:
        model: a freshly parsed model.
        folder: the folder of the model file; None when the model did not come from a file.
        label: the model's name for messages.

    Raises:
        ModelError: data is missing, too short, escapes the folder, or there is no folder.
    """
    total = 0
    for tensor in _tensors(model):
        if not uses_external_data(tensor):
            continue
        if folder is None:
            raise ModelError(
                f"{label} keeps tensor '{tensor.name}' in an external file, which only a model "
                "read from a path can have: give the path"
            )
        total += _load(tensor, folder)
    return total


def _load(tensor: onnx.TensorProto, folder: Path) -> int:
    location, offset, wanted = _entries(tensor)
    path = _contained(location, folder, tensor.name)
    try:
        if path.exists() and not path.is_file():
            raise ModelError(
                f"external data '{location}' of tensor '{tensor.name}' cannot be read: it is no "
                "regular file"
            )
        size = path.stat().st_size
        length = wanted if wanted is not None else size - offset
        if offset < 0 or length < 0 or offset + length > size:
            raise ModelError(
                f"external data of tensor '{tensor.name}' needs bytes {offset}..{offset + length} "
                f"of '{location}', which has {size}"
            )
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
    except FileNotFoundError as error:
        raise ModelError(
            f"external data file '{location}' of tensor '{tensor.name}' is missing from the "
            "model's folder"
        ) from error
    except OSError as error:
        raise ModelError(
            f"external data file '{location}' cannot be read: {error.strerror}"
        ) from error
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT
    return int(length)


def _entries(tensor: onnx.TensorProto) -> tuple[str, int, int | None]:
    """Location, offset and length (None: to the end of the file) as the tensor states them."""
    values = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset = int(values.get("offset", "0"))
        length = int(values["length"]) if "length" in values else None
    except ValueError as error:
        raise ModelError(
            f"external data of tensor '{tensor.name}': offset or length is no number"
        ) from error
    return values.get("location", ""), offset, length


def _contained(location: str, folder: Path, tensor: str) -> Path:
    try:
        root = folder.resolve()
        path = (root / location).resolve()
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"external data '{location}' of tensor '{tensor}' is no usable path: {error}"
        ) from error
    if not location or Path(location).is_absolute() or not path.is_relative_to(root):
        raise ModelError(
            f"external data '{location}' of tensor '{tensor}' lies outside the model's folder: "
            "refused; move it beside the model"
        )
    return path


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            yield attribute.t
        elif attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        yield from attribute.tensors
        for sparse in attribute.sparse_tensors:
            yield from (sparse.values, sparse.indices)
    for sub in subgraphs(node):
        yield from _graph_tensors(sub)
