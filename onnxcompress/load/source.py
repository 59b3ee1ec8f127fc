"""Reading a model from wherever it is: a path, bytes, a stream, a ModelProto or a gs.Graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError

from onnxcompress.errors import ModelError
from onnxcompress.load.external import load_contained


@dataclass(frozen=True)
class Source:
    """A model as it was given, with all its data in memory.

    Attributes:
        model: the parsed model; not to be changed.
        label: what to call it in messages and reports (file name, or what kind of object).
        file_bytes: size of the file and its external data, or of the serialised object.
    """

    model: onnx.ModelProto
    label: str
    file_bytes: int


ModelSource: TypeAlias = str | Path | bytes | BinaryIO | onnx.ModelProto | gs.Graph | Source


def read_source(source: ModelSource) -> Source:
    """Read a model without trusting it.

    Raises:
        ModelError: missing or unreadable file, not an ONNX model, or external data that is
            missing, too short, or outside the model's folder.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, (onnx.ModelProto, gs.Graph)):
        graph = isinstance(source, gs.Graph)
        model = gs.export_onnx(source) if graph else source
        label = "in-memory graph" if graph else "in-memory model"
        load_contained(model, None, label)
        return Source(model, label, model.ByteSize())
    if isinstance(source, (str, Path)):
        return _read_file(Path(source))
    if not isinstance(source, bytes) and not hasattr(source, "read"):
        raise ModelError(
            f"a model is a path, bytes, a binary stream, a ModelProto or a gs.Graph, not "
            f"{type(source).__name__}"
        )
    data = source if isinstance(source, bytes) else source.read()
    label = "bytes" if isinstance(source, bytes) else "standard input"
    model = _parse(data, label)
    load_contained(model, None, label)
    return Source(model, label, len(data))


def _read_file(path: Path) -> Source:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"model file '{path}' does not exist") from error
    except IsADirectoryError as error:
        raise ModelError(f"'{path}' is a folder, not a model file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"model file '{path}' cannot be read: {reason}") from error
    size = len(data)
    model = _parse(data, str(path))
    del data
    external = load_contained(model, path.parent, str(path))
    return Source(model, path.name, size + external)


def _parse(data: bytes, label: str) -> onnx.ModelProto:
    if not data:
        raise ModelError(f"{label} is empty, not an ONNX model")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{label} is not an ONNX model, or it is truncated") from error
    if not model.HasField("graph") or not model.ir_version:
        raise ModelError(f"{label} is not an ONNX model: it has no graph or no IR version")
    if not model.opset_import:
        raise ModelError(f"{label} names no operator set (opset_import is empty)")
    return model
