"""Arrays in memory as a dataset that fits a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate.array_samples import ArraySamples
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.preprocess import Preprocess
from onnxcompress.errors import DataError, UsageError


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
    check_limit(limit)
    if isinstance(arrays, Dataset):
        return _refitted(arrays, specs, preprocess, limit)
    if not isinstance(arrays, Mapping):
        if len(specs) != 1:
            names = ", ".join(repr(spec.name) for spec in specs)
            raise DataError(f"{where}: one array, but the model takes {names}: give a .npz")
        arrays = {specs[0].name: arrays}
    fields, labels_key = matched(arrays, specs, where)
    data = {name: as_array(arrays[key], key, where) for name, key in fields.items()}
    labels = None if labels_key is None else as_array(arrays[labels_key], labels_key, where)
    counts = {key: len(data[name]) for name, key in fields.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{key!r} has {count}" for key, count in counts.items())
        raise DataError(f"{where}: the numbers of samples differ: {found}")
    count = next(iter(counts.values()))
    settings = preprocess or Preprocess()
    if labels is not None:
        labels = read_labels(labels, count, settings.label_offset, where)[:limit]
    samples = ArraySamples(
        arrays={name: first_rows(array, limit) for name, array in data.items()},
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


def matched(
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


def as_array(value: npt.ArrayLike, key: str, where: str) -> npt.NDArray[Any]:
    """The value as an array of numbers, batch first, or a DataError."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{where}: {key!r} is not an array: {one_line(error)}") from error
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: {key!r} must be an array of numbers, batch first, not {array.dtype} of "
            f"shape {list(array.shape)}"
        )
    return array


def first_rows(array: npt.NDArray[Any], limit: int | None) -> npt.NDArray[Any]:
    """The first `limit` rows, or all."""
    if limit is None or limit >= len(array):
        return array
    return array[:limit].copy()  # lets the rest go


def read_labels(
    values: npt.NDArray[Any], count: int, offset: int, where: str
) -> npt.NDArray[np.int64]:
    """Labels as class indices [count] with the offset added, or a DataError."""
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


def check_limit(limit: int | None) -> None:
    """Refuse a limit below one sample."""
    if limit is not None and limit < 1:
        raise UsageError(f"the limit must be at least 1 sample, not {limit}")


def one_line(error: BaseException) -> str:
    """An error's type and message in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
