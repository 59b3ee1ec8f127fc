"""External tensor data, accepted only from within the model's own folder.

A model file may name any path as the home of its weights. Absolute paths, `..` and symbolic links
that lead out of the folder are refused before a byte is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

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
    for tensor in _tensors(model.graph):
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
    info = ExternalDataInfo(tensor)
    path = _contained(info.location, folder, tensor.name)
    offset = info.offset or 0
    try:
        size = path.stat().st_size
        length = info.length if info.length is not None else size - offset
        if offset < 0 or length < 0 or offset + length > size:
            raise ModelError(
                f"external data of tensor '{tensor.name}' needs bytes {offset}..{offset + length} "
                f"of '{info.location}', which has {size}"
            )
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
    except FileNotFoundError as error:
        raise ModelError(
            f"external data file '{info.location}' of tensor '{tensor.name}' is missing from the "
            "model's folder"
        ) from error
    except OSError as error:
        raise ModelError(
            f"external data file '{info.location}' cannot be read: {error.strerror}"
        ) from error
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.DEFAULT
    return int(length)


def _contained(location: str, folder: Path, tensor: str) -> Path:
    root = folder.resolve()
    path = (root / location).resolve()
    if not location or Path(location).is_absolute() or not path.is_relative_to(root):
        raise ModelError(
            f"external data '{location}' of tensor '{tensor}' lies outside the model's folder: "
            "refused; move it beside the model"
        )
    return path


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
        for sub in subgraphs(node):
            yield from _tensors(sub)
