"""From the text of `--data` or `--eval`, or from arrays in memory, to a dataset that fits."""

from __future__ import annotations

import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate.arrays import check_limit, dataset_from_arrays, matched, one_line
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.function import collect
from onnxcompress.calibrate.images import open_folder
from onnxcompress.calibrate.preprocess import Preprocess
from onnxcompress.errors import DataError

FORMS = "a .npz, a .npy, a folder of images or of one folder per class, or module:function"
_FUNCTION = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")
_UNREADABLE = (
    OSError,
    ValueError,  # also for pickled arrays, which are refused
    EOFError,
    KeyError,
    TypeError,
    SyntaxError,
    MemoryError,
    RuntimeError,  # encrypted archives, unknown compression
    OverflowError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def load_dataset(
    text: str,
    inputs: Sequence[InputSpec],
    *,
    preprocess: Preprocess | None = None,
    purpose: str = "--data",
    limit: int | None = None,
) -> Dataset:
    """Open the data that a SPEC names, for the inputs of a model.

    A `.npz` is decompressed once, here, and kept in its own type; a `.npy` is memory-mapped;
    images are decoded batch by batch. `module:function` is imported and run with the current
    directory first on `sys.path`; the function takes no arguments and yields dicts of arrays,
    each a batch. A generator cannot be rewound, so its batches are collected: up to `limit`
    samples, and never more than `MAX_COLLECTED_BYTES`.

    Args:
        text: A `.npz` (keys: input names, or `x` when there is one input; labels in `y`), a
            `.npy`, a folder of images or of one folder per class, or `module:function`.
        inputs: The inputs of the model.
        preprocess: For uint8 images.
        purpose: The option that named the data, for messages.
        limit: Take at most this many samples: the first ones, or for a folder ones spread evenly.

    Returns:
        The dataset; its first sample has been checked against the inputs.

    Raises:
        UsageError: The limit is not positive.
        DataError: The data is missing, unreadable, or does not fit the inputs.
    """
    where, specs, path = f"{purpose} {text}", tuple(inputs), Path(text)
    check_limit(limit)
    try:
        is_folder, exists = path.is_dir() and text != "", path.exists() and text != ""
    except OSError as error:
        raise DataError(f"{where}: cannot look there ({error.strerror})") from error
    if is_folder:
        try:
            samples = open_folder(path, specs, preprocess=preprocess, limit=limit)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        return Dataset.over(samples, specs, source=text, purpose=purpose, preprocess=preprocess)
    function = _FUNCTION.fullmatch(text)
    arrays: Mapping[str, npt.NDArray[Any]] | npt.NDArray[Any]
    if exists and path.suffix.lower() == ".npz":
        arrays = _read_npz(path, specs, where)
    elif exists and path.suffix.lower() == ".npy":
        arrays = _read_npy(path, where)
    elif function and not exists:
        arrays = collect(function[1], function[2], specs, where, limit)
    else:
        problem = "not a form of data that is known" if exists else "there is no such file"
        raise DataError(f"{where}: {problem}: give {FORMS}")
    return dataset_from_arrays(
        arrays, specs, preprocess=preprocess, purpose=purpose, source=text, limit=limit
    )


def _read_npz(path: Path, inputs: tuple[InputSpec, ...], where: str) -> dict[str, npt.NDArray[Any]]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{where}: holds a single array: rename it to .npy")
        with archive:
            matched(archive.files, inputs, where)
            return {key: archive[key] for key in archive.files}
    except DataError:
        raise
    except _UNREADABLE as error:
        raise _unreadable(where, error) from error


def _read_npy(path: Path, where: str) -> npt.NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise _unreadable(where, error) from error
    if isinstance(array, np.ndarray):
        return array
    array.close()
    raise DataError(f"{where}: holds several arrays: rename it to .npz")


def _unreadable(where: str, error: BaseException) -> DataError:
    reason = one_line(error)
    if "pickle" in reason or "Python objects" in reason:
        return DataError(f"{where}: pickled objects are refused, or the file is not NumPy's")
    return DataError(f"{where}: cannot read it: {reason}")
