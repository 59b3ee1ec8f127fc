"""Data from a function of the user: `module:function`, run and collected within a bound."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate.arrays import as_array, matched, one_line
from onnxcompress.errors import DataError

# What a module:function may collect when no limit is given.
MAX_COLLECTED_BYTES = 2**32


def collect(
    module: str, name: str, inputs: tuple[InputSpec, ...], where: str, limit: int | None
) -> dict[str, npt.NDArray[Any]]:
    """Run a function of the user's and join its batches, which must agree in all but size."""
    parts: list[dict[str, npt.NDArray[Any]]] = []
    samples = size = 0
    with current_directory_first(), contextlib.closing(_yielded(module, name, where)) as batches:
        for batch in batches:
            here = f"{where}: batch {len(parts)}"
            matched(batch, inputs, here)
            # A loader may refill one buffer, hence the copy.
            part = {key: np.array(as_array(value, key, here)) for key, value in batch.items()}
            lengths = {key: len(array) for key, array in part.items()}
            if len(set(lengths.values())) != 1 or 0 in lengths.values():
                raise DataError(f"{here}: needs as many samples in every array, not {lengths}")
            parts.append(part)
            kinds, first = (
                {key: f"{array.dtype}{list(array.shape[1:])}" for key, array in one.items()}
                for one in (part, parts[0])
            )
            if kinds != first:
                raise DataError(f"{here}: samples are {kinds}, but {first} in batch 0")
            samples += next(iter(lengths.values()))
            size += sum(array.nbytes for array in part.values())
            if limit is not None and samples >= limit:
                break
            if size > MAX_COLLECTED_BYTES:
                raise DataError(
                    f"{where}: yielded more than {MAX_COLLECTED_BYTES} bytes: yield fewer samples"
                )
    if not parts:
        raise DataError(f"{where}: yielded nothing: yield dicts of arrays by input name")
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _yielded(module: str, name: str, where: str) -> Generator[Mapping[str, Any]]:
    with _user_code(f"{where}: importing {module} from {Path.cwd()}"):
        function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise DataError(f"{where}: module {module} has no function {name}")
    with _user_code(f"{where}: {name}()"):
        batches = iter(function())
    end = object()
    while True:
        with _user_code(f"{where}: {name}()"):
            batch = next(batches, end)
        if batch is end:
            return
        if not isinstance(batch, Mapping):
            raise DataError(f"{where}: {name}() must yield dicts, not {type(batch).__name__}")
        yield batch


@contextlib.contextmanager
def _user_code(what: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        raise DataError(f"{what} raised {one_line(error)}") from error


@contextlib.contextmanager
def current_directory_first() -> Iterator[None]:
    """Have the current directory first on `sys.path`, as `python -m` would, and put it back."""
    saved = sys.path[:]
    sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = saved
