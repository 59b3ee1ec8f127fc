"""From the text of `--data` or `--eval`, or from arrays in memory, to a dataset that fits."""

from __future__ import annotations

import contextlib
import importlib
import re
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate.dataset import ArraySamples, Dataset
from onnxcompress.calibrate.images import open_folder
from onnxcompress.calibrate.preprocess import Preprocess
from onnxcompress.errors import DataError, UsageError

FORMS = "a .npz, a .npy, a folder of images or of one folder per class, or module:function"
# What a module:function may collect when no limit is given.
MAX_COLLECTED_BYTES = 2**32
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
    _check_limit(limit)
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
        arrays = _collect(function[1], function[2], specs, where, limit)
    else:
        problem = "not a form of data that is known" if exists else "there is no such file"
        raise DataError(f"{where}: {problem}: give {FORMS}")
    return dataset_from_arrays(
        arrays, specs, preprocess=preprocess, purpose=purpose, source=text, limit=limit
    )


def dataset_from_arrays(
    arrays: Mapping[str, npt.ArrayLike] | npt.NDArray[Any] | Dataset,
    inputs: Sequence[InputSpec],
    *,
    preprocess: Preprocess | None = None,
    purpose: str = "data",
    source: str = "arrays in memory",
    limit: int | None = None,
) -> Dataset:
    """Make a dataset of arrays in memory; they are not copied, so leave them unchanged.

    Args:
        arrays: Arrays [N, ...] by input name (or `x` when there is one input), with labels [N]
            in `y` if there are any; or the one array of the one input; or a dataset, which is
            fitted to these inputs and otherwise kept.
        inputs: The inputs of the model.
        preprocess: For uint8 images; a dataset brings its own.
        purpose: The argument that named the data, for messages.
        source: What to call the data.
        limit: Take at most the first this many samples.

    Returns:
        The dataset; its first sample has been checked against the inputs.

    Raises:
        UsageError: The limit is not positive, or preprocessing is given for a dataset.
        DataError: The arrays do not fit the inputs.
    """
    where, specs = f"{purpose} {source}", tuple(inputs)
    _check_limit(limit)
    if isinstance(arrays, Dataset):
        return _refitted(arrays, specs, preprocess, limit)
    if not isinstance(arrays, Mapping):
        if len(specs) != 1:
            names = ", ".join(repr(spec.name) for spec in specs)
            raise DataError(f"{where}: one array, but the model takes {names}: give a .npz")
        arrays = {specs[0].name: arrays}
    fields, labels_key = _matched(arrays, specs, where)
    data = {name: _array(arrays[key], key, where) for name, key in fields.items()}
    labels = None if labels_key is None else _array(arrays[labels_key], labels_key, where)
    counts = {key: len(data[name]) for name, key in fields.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{key!r} has {count}" for key, count in counts.items())
        raise DataError(f"{where}: the numbers of samples differ: {found}")
    count = next(iter(counts.values()))
    settings = preprocess or Preprocess()
    if labels is not None:
        labels = _labels(labels, count, settings.label_offset, where)[:limit]
    samples = ArraySamples(
        arrays={name: _first(array, limit) for name, array in data.items()},
        inputs=specs,
        labels=labels,
        preprocess=preprocess,
    )
    if not samples.images and not settings.only_labels:
        found = ", ".join(f"{name!r} {array.dtype}" for name, array in data.items())
        raise DataError(
            f"{where}: --preprocess is for uint8 images, but the data is {found}: leave it out"
        )
    return Dataset.over(samples, specs, source=source, purpose=purpose, preprocess=preprocess)


def _refitted(
    dataset: Dataset,
    specs: tuple[InputSpec, ...],
    preprocess: Preprocess | None,
    limit: int | None,
) -> Dataset:
    if preprocess is not None:
        raise UsageError("a Dataset brings its own preprocessing: give preprocess when loading it")
    if dataset.inputs != specs:
        have, want = (
            ", ".join(f"{spec.name!r} {spec.dtype}{list(spec.shape)}" for spec in side)
            for side in (dataset.inputs, specs)
        )
        raise DataError(
            f"{dataset.purpose} {dataset.source}: made for the inputs {have}, but the model takes "
            f"{want}: load it for this model"
        )
    return dataset if limit is None else dataset.take(np.arange(min(limit, len(dataset))))


def _matched(
    keys: Iterable[str], inputs: tuple[InputSpec, ...], where: str
) -> tuple[dict[str, str], str | None]:
    """Match keys to inputs: (input name to key, key of the labels)."""
    names, left = [spec.name for spec in inputs], list(keys)
    alias = len(names) == 1 and "x" in left and (names[0] not in left or names[0] == "y")
    fields = {names[0]: "x"} if alias else {name: name for name in names if name in left}
    unknown = [key for key in left if key not in fields.values()]
    labels = "y" if "y" in unknown else None
    unknown = [key for key in unknown if key != "y"]
    missing = [name for name in names if name not in fields]
    if missing or unknown:
        hint = " (or 'x' for the only input)" if len(names) == 1 else ""
        raise DataError(
            f"{where}: missing inputs: {missing}; unknown keys: {unknown}; the model takes "
            f"{names}{hint}, and 'y' may hold labels"
        )
    return fields, labels


def _array(value: npt.ArrayLike, key: str, where: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{where}: {key!r} is not an array: {_one_line(error)}") from error
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: {key!r} must be an array of numbers, batch first, not {array.dtype} of "
            f"shape {list(array.shape)}"
        )
    return array


def _first(array: npt.NDArray[Any], limit: int | None) -> npt.NDArray[Any]:
    if limit is None or limit >= len(array):
        return array
    return array[:limit].copy()  # lets the rest go


def _labels(values: npt.NDArray[Any], count: int, offset: int, where: str) -> npt.NDArray[np.int64]:
    if values.dtype.kind not in "iu" or values.shape not in ((len(values),), (len(values), 1)):
        raise DataError(
            f"{where}: labels must be integers of shape [{count}], not {values.dtype} of shape "
            f"{list(values.shape)}"
        )
    if len(values) != count:
        raise DataError(f"{where}: {len(values)} labels for {count} samples")
    labels = values.reshape(-1).astype(np.int64) + offset
    if count and labels.min() < 0:
        raise DataError(f"{where}: a label is {labels.min()}: labels count from 0")
    return labels


def _read_npz(path: Path, inputs: tuple[InputSpec, ...], where: str) -> dict[str, npt.NDArray[Any]]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{where}: holds a single array: rename it to .npy")
        with archive:
            _matched(archive.files, inputs, where)
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
    reason = _one_line(error)
    if "pickle" in reason or "Python objects" in reason:
        return DataError(f"{where}: pickled objects are refused, or the file is not NumPy's")
    return DataError(f"{where}: cannot read it: {reason}")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _collect(
    module: str, name: str, inputs: tuple[InputSpec, ...], where: str, limit: int | None
) -> dict[str, npt.NDArray[Any]]:
    """Run a function of the user's and join its batches, which must agree in all but size."""
    parts: list[dict[str, npt.NDArray[Any]]] = []
    samples = size = 0
    with _current_directory_first(), contextlib.closing(_yielded(module, name, where)) as batches:
        for batch in batches:
            here = f"{where}: batch {len(parts)}"
            _matched(batch, inputs, here)
            # A loader may refill one buffer, hence the copy.
            part = {key: np.array(_array(value, key, here)) for key, value in batch.items()}
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
        raise DataError(f"{what} raised {_one_line(error)}") from error


@contextlib.contextmanager
def _current_directory_first() -> Iterator[None]:
    saved = sys.path[:]
    sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = saved


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"the limit must be at least 1 sample, not {limit}")
