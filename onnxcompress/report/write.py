"""Writing results: all files of a job to temporary ones first, then renamed; never half a file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import onnx

from onnxcompress.errors import OutputError
from onnxcompress.report.build import json_safe
from onnxcompress.report.external import split_weights

_PROTOBUF_LIMIT = 2**31 - 2**20

_PREFIX = ".onnxcompress-"

Fill = Callable[[BinaryIO], object]
Job = tuple[Path, Fill]
"""A file and what fills it."""


def model_bytes(model: onnx.ModelProto) -> bytes:
    """A model serialised so that equal models give equal bytes.

    Raises:
        OutputError: it exceeds protobuf's 2 GB.
    """
    if model.ByteSize() > _PROTOBUF_LIMIT:
        raise OutputError("the model exceeds 2 GB: use --save-as-external-data")
    return bytes(model.SerializeToString(deterministic=True))


def data_path(path: Path) -> Path:
    """Where the weights of a model file go when they are saved as external data."""
    return path.with_name(path.name + ".data")


def model_jobs(model: onnx.ModelProto, path: Path, *, external_data: bool = False) -> list[Job]:
    """The files that hold a model: one, or with `external_data` the weights and then the graph."""
    if not external_data:
        return [(path, lambda file: file.write(model_bytes(model)))]
    graph, weights = split_weights(model, data_path(path).name)
    if not weights:
        return [(path, lambda file: file.write(model_bytes(model)))]

    def fill(file: BinaryIO) -> None:
        for padding, octets in weights:
            file.write(bytes(padding))
            file.write(octets)

    # The weights first: a model file must never point at data that is not there yet.
    return [(data_path(path), fill), (path, lambda file: file.write(model_bytes(graph)))]


def json_job(values: dict[str, Any], path: Path) -> Job:
    """A report or plan file."""
    text = json.dumps(json_safe(values), indent=2) + "\n"
    return path, lambda file: file.write(text.encode())


def write_model(model: onnx.ModelProto, path: Path, *, external_data: bool = False) -> None:
    """Write a model file; with `external_data` its weights go to PATH.data beside it.

    Raises:
        OutputError: a file cannot be written; what was there before is untouched.
    """
    commit(model_jobs(model, path, external_data=external_data))


def write_json(values: dict[str, Any], path: Path) -> None:
    """Write a report or plan.

    Raises:
        OutputError: the file cannot be written.
    """
    commit([json_job(values, path)])


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


def commit(jobs: Sequence[Job]) -> None:
    """Fill a temporary file beside every path, then rename them all, in order.

    Nothing is renamed before everything is on the disk. If a rename fails, the ones before it are
    taken back: old files never end up beside new ones. Nothing temporary stays behind.

    Raises:
        OutputError: a file cannot be written.
    """
    if not jobs:
        return
    made: list[tuple[Path, Path]] = []
    path = Path()
    with tempfile.TemporaryDirectory(dir=_folder(jobs[0][0]), prefix=_PREFIX) as kept:
        try:
            for path, fill in jobs:
                handle, name = tempfile.mkstemp(dir=_folder(path), prefix=_PREFIX)
                made.append((Path(name), path))
                with os.fdopen(handle, "wb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).chmod(0o666 & ~_umask())
            _rename_all(made, Path(kept))
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"'{path}' cannot be written: {error.strerror or error}") from error
        finally:
            for temporary, _ in made:
                # After its rename a temporary name is gone already.
                with contextlib.suppress(OSError):
                    temporary.unlink()


def _rename_all(made: Sequence[tuple[Path, Path]], kept: Path) -> None:
    """Rename every temporary file to its path, or leave all paths as they were."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for number, (temporary, path) in enumerate(made):
            old = None
            if path.exists() and len(made) > 1:
                old = kept / str(number)
                # A link where the file system has them: weights may be gigabytes.
                try:
                    os.link(path, old)
                except OSError:
                    shutil.copy2(path, old)
            temporary.replace(path)
            done.append((path, old))
    except BaseException:
        for path, old in reversed(done):
            if old is not None:
                old.replace(path)
            else:
                path.unlink()
        raise


def check_writable(path: Path) -> None:
    """Say before the work, not after it, that a result cannot be written.

    Raises:
        OutputError: the path is a folder or a device, its folder is missing or not writable, or
            its name is impossible.
    """
    try:
        if path.is_dir() or not path.name:
            raise OutputError(f"'{path}' is a folder: give a file name for the result")
        if path.exists() and not path.is_file():
            raise OutputError(f"'{path}' is no regular file: give another name for the result")
        handle, name = tempfile.mkstemp(dir=_folder(path), prefix=_PREFIX)
        os.close(handle)
        Path(name).unlink()
    except OutputError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"'{path}' cannot be written: {reason}") from error


def make_folder(path: Path) -> None:
    """Make a folder for the journal, unless it is there.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder '{path}' cannot be made: {error.strerror}") from error


def _folder(path: Path) -> Path:
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"'{path}' cannot be written: the folder '{folder}' does not exist")
    return folder


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
