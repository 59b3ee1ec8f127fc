"""Writing results: to a temporary file beside the target, then renamed; never half a file."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import onnx

from onnxcompress.errors import OutputError
from onnxcompress.report.build import json_safe

_PROTOBUF_LIMIT = 2**31 - 2**20


def model_bytes(model: onnx.ModelProto) -> bytes:
    """A model serialised so that equal models give equal bytes.

    Raises:
        OutputError: it exceeds protobuf's 2 GB.
    """
    if model.ByteSize() > _PROTOBUF_LIMIT:
        raise OutputError("the model exceeds 2 GB: use --save-as-external-data")
    return bytes(model.SerializeToString(deterministic=True))


def write_model(model: onnx.ModelProto, path: Path, *, external_data: bool = False) -> None:
    """Write a model file; with `external_data` its weights go to PATH.data beside it.

    Raises:
        OutputError: the file cannot be written; what was there before is untouched.
    """
    if not external_data:
        atomically(path, lambda file: file.write(model_bytes(model)))
        return
    data_path = path.with_name(path.name + ".data")
    with tempfile.TemporaryDirectory(dir=_folder(path)) as folder:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        target = Path(folder) / path.name
        try:
            onnx.save_model(
                copy,
                target,
                save_as_external_data=True,
                location=data_path.name,
                size_threshold=1024,
            )
            # The weights first: a model file must never point at data that is not there yet.
            made = Path(folder) / data_path.name
            if made.exists():
                made.replace(data_path)
            target.replace(path)
        except OSError as error:
            raise OutputError(f"'{path}' cannot be written: {error.strerror or error}") from error


def write_json(values: dict[str, Any], path: Path) -> None:
    """Write a report or plan.

    Raises:
        OutputError: the file cannot be written.
    """
    text = json.dumps(json_safe(values), indent=2) + "\n"
    atomically(path, lambda file: file.write(text.encode()))


def write_stream(model: onnx.ModelProto, stream: BinaryIO) -> None:
    """Write a model to a pipe.

    Raises:
        OutputError: the pipe is closed.
    """
    data = model_bytes(model)
    try:
        stream.write(data)
        stream.flush()
    except OSError as error:
        raise OutputError(f"standard output cannot be written: {error.strerror}") from error


def check_writable(path: Path) -> None:
    """Say before the work, not after it, that OUT cannot be written.

    Raises:
        OutputError: the folder is missing or not writable, or the path is a folder.
    """
    if path.is_dir():
        raise OutputError(f"'{path}' is a folder: give a file name for the result")
    folder = _folder(path)
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=".onnxcompress-")
        os.close(handle)
        Path(name).unlink()
    except OSError as error:
        raise OutputError(f"'{path}' cannot be written: {error.strerror}") from error


def make_folder(path: Path) -> None:
    """Make a folder for the journal, unless it is there.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder '{path}' cannot be made: {error.strerror}") from error


def atomically(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Fill a temporary file beside `path` and rename it; leave nothing behind on any failure.

    Raises:
        OutputError: the file cannot be written.
    """
    name = ""
    try:
        handle, name = tempfile.mkstemp(dir=_folder(path), prefix=".onnxcompress-")
        with os.fdopen(handle, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except OSError as error:
        raise OutputError(f"'{path}' cannot be written: {error.strerror or error}") from error
    finally:
        # After a successful rename the temporary name is gone already.
        if name:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()


def _folder(path: Path) -> Path:
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"'{path}' cannot be written: the folder '{folder}' does not exist")
    return folder


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
