"""Where samples come from: the protocol, and samples held in arrays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate.preprocess import Preprocess
from onnxcompress.errors import DataError

NEEDS_PREPROCESS = (
    "uint8 images need --preprocess to become the floating input of this model, for example "
    "--preprocess layout=nchw,scale=1/255,mean=[.485,.456,.406],std=[.229,.224,.225]"
)


_HASH_BYTES = 2**24


class Samples(Protocol):
    """Where samples come from; rows are numbered from 0."""

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """The label of every sample, when there are labels."""

    def __len__(self) -> int:
        """Count the samples."""

    def read(self, rows: npt.NDArray[np.int64]) -> Mapping[str, npt.NDArray[Any]]:
        """Return these rows for every input name, in the model's element types."""

    def content(self) -> Iterator[bytes]:
        """Yield every byte that the samples and labels depend on, in a fixed order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ArraySamples:
    """Samples held in arrays (or memory-mapped files), converted row by row.

    Attributes:
        arrays: For each input, by name: [N, ...] in the type the data came in.
        inputs: The inputs of the model.
        labels: [N], label offset already added.
        preprocess: For uint8 arrays.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    inputs: tuple[InputSpec, ...]
    labels: npt.NDArray[np.int64] | None = None
    preprocess: Preprocess | None = None

    @property
    def images(self) -> list[str]:
        """Inputs whose data is images to preprocess.

        uint8 data for a floating input always is. For a uint8 input of rank 4 it passes straight,
        unless something is asked of the pixels.
        """
        asked = self.preprocess is not None and not self.preprocess.only_labels
        return [
            spec.name
            for spec in self.inputs
            if self.arrays[spec.name].dtype == np.uint8
            and (spec.dtype.kind == "f" or (asked and spec.dtype == "u1" and len(spec.shape) == 4))
        ]

    def __len__(self) -> int:
        return len(self.arrays[self.inputs[0].name])

    def read(self, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """Return these rows for every input, in the model's element types.

        Raises:
            DataError: The type of the data does not convert without loss of meaning.
        """
        return {spec.name: self._converted(spec, rows) for spec in self.inputs}

    def content(self) -> Iterator[bytes]:
        """Yield type, shape and bytes of every array, a bounded block at a time."""
        named = [*sorted(self.arrays.items())]
        if self.labels is not None:
            named.append(("labels", self.labels))
        for name, array in named:
            yield json.dumps([name, array.dtype.str, array.shape]).encode()
            step = max(1, _HASH_BYTES // max(1, array[0].nbytes))
            for start in range(0, len(array), step):
                yield array[start : start + step].tobytes()

    def _converted(self, spec: InputSpec, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        raw, want = self.arrays[spec.name][rows], spec.dtype
        if spec.name in self.images:
            if self.preprocess is None:
                raise DataError(f"input {spec.name!r}: {NEEDS_PREPROCESS}")
            settings = self.preprocess.for_channels(image_channels(spec, self.preprocess))
            names = [f"input {spec.name!r}"] * len(raw)
            return settings.apply(raw, dtype=want, names=names)
        if raw.dtype == want:
            return raw
        if raw.dtype.kind == want.kind == "f":
            with np.errstate(over="ignore"):  # the finite check of the batch reports it
                return raw.astype(want)
        if raw.dtype.kind in "iu" and want.kind in "iu":
            cast = raw.astype(want)
            if np.array_equal(cast, raw):
                return cast
        raise DataError(
            f"input {spec.name!r}: the model takes {want}, the data is {raw.dtype} and does not "
            f"convert safely: store it as {want}"
        )


def image_channels(spec: InputSpec, preprocess: Preprocess) -> int | None:
    """Return the channel dimension of an image input [N,C,H,W] or [N,H,W,C], if it is fixed."""
    if len(spec.shape) != 4:
        return None
    return spec.fixed(1 if preprocess.layout == "nchw" else 3)
