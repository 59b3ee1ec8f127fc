"""Sample inputs that fit a model: a lazy view of rows, delivered in batches and checked.

What holds for every `Dataset` d: `len(d)`, `d.labels` and the concatenation of `d.batches(n)`
count the same samples in the same order, whatever n is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate.array_samples import ArraySamples, Samples
from onnxcompress.calibrate.preprocess import Preprocess
from onnxcompress.errors import DataError, UsageError

_HELD_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Rows of samples, in order, that fit the inputs of a model.

    Where the model has a fixed batch dimension B, only whole batches exist: the last
    `len(rows) % B` rows are left out of length, labels and batches, and counted in `dropped`.

    Attributes:
        inputs: The inputs of the model.
        samples: Where the rows come from.
        rows: Row numbers, in order.
        source: The SPEC as the user wrote it.
        purpose: The option that named it, for messages.
        preprocess: What was asked for uint8 images.
        dropped: How many rows were left out because of a fixed batch dimension.

    Raises:
        DataError: There is no sample, not even one whole batch, or the inputs' fixed batch
            dimensions differ.
    """

    inputs: tuple[InputSpec, ...]
    samples: Samples
    rows: npt.NDArray[np.int64]
    source: str
    purpose: str = "--data"
    preprocess: Preprocess | None = None
    dropped: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        given, batch = len(self.rows), self.fixed_batch or 1
        if given < batch:
            have = f"{given} samples" if given else "no sample"
            raise self._error(f"holds {have}: the model needs at least {batch}")
        object.__setattr__(self, "dropped", given % batch)
        object.__setattr__(self, "rows", self.rows[: given - given % batch])

    @classmethod
    def over(
        cls,
        samples: Samples,
        inputs: tuple[InputSpec, ...],
        *,
        source: str,
        purpose: str = "--data",
        preprocess: Preprocess | None = None,
    ) -> Dataset:
        """Take every sample, and check with the first one that types and shapes fit the model.

        Raises:
            DataError: They do not.
        """
        dataset = cls(
            inputs=inputs,
            samples=samples,
            rows=np.arange(len(samples)),
            source=source,
            purpose=purpose,
            preprocess=preprocess,
        )
        dataset._read(dataset.rows[:1])
        return dataset

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model insists on, or None when it is free."""
        sizes = {spec.name: spec.fixed(0) for spec in self.inputs if spec.shape}
        fixed = {size for size in sizes.values() if size is not None}
        if len(sizes) < len(self.inputs) or len(fixed) > 1:
            raise self._error(
                "the model's inputs need one common batch dimension, but they are "
                + ", ".join(f"{spec.name!r} {list(spec.shape)}" for spec in self.inputs)
            )
        return fixed.pop() if fixed else None

    @property
    def labels(self) -> npt.NDArray[np.int64] | None:
        """Labels [N] in the order of the batches, or None."""
        labels = self.samples.labels
        return None if labels is None else labels[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, batch_size: int
    ) -> Iterator[tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.int64] | None]]:
        """Deliver the samples in order, decoded and converted batch by batch.

        Args:
            batch_size: Samples in a batch; the last may be short. A fixed batch dimension of the
                model overrides it.

        Returns:
            An iterator over (feeds by input name, labels or None).

        Raises:
            UsageError: The batch size is not positive.
            DataError: While iterating: a sample is unreadable, does not fit, or has NaN or Inf.
        """
        if batch_size < 1:
            raise UsageError(f"the batch size must be at least 1, not {batch_size}")
        return self._batches(self.fixed_batch or batch_size)

    def take(self, indices: npt.ArrayLike) -> Dataset:
        """View some samples of this dataset, in the order given; nothing is read.

        Args:
            indices: Positions in this dataset, from 0; repetitions are allowed.

        Raises:
            UsageError: An index is not an integer or out of range.
            DataError: Nothing is taken, or less than a fixed batch.
        """
        wanted = np.asarray(indices)
        if wanted.ndim != 1 or (wanted.size and wanted.dtype.kind not in "iu"):
            raise UsageError("take() needs a list of integer positions")
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise UsageError(f"take() needs positions from 0 to {len(self) - 1}")
        return replace(self, rows=self.rows[wanted.astype(np.int64)])

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Hold out a random part; both parts keep the order of this dataset.

        Args:
            fraction: Share to hold out, between 0 and 1; at least one sample (or fixed batch)
                ends on either side.
            seed: The same seed gives the same split.

        Returns:
            (rest, held out).

        Raises:
            UsageError: The fraction is not between 0 and 1.
            DataError: There are fewer than two samples (or fixed batches).
        """
        if not 0 < fraction < 1:
            raise UsageError(f"the fraction to hold out must be between 0 and 1, not {fraction}")
        unit = self.fixed_batch or 1
        units = len(self) // unit
        if units < 2:
            raise self._error(f"{len(self)} samples cannot be split in two: give more")
        held = unit * min(max(1, round(fraction * units)), units - 1)
        order = np.random.default_rng(seed).permutation(len(self))
        return self.take(np.sort(order[held:])), self.take(np.sort(order[:held]))

    def held(self, most_bytes: int) -> Dataset:
        """The same samples, decoded once; this very dataset where they take more memory than that.

        Args:
            most_bytes: of all inputs together, as the model takes them.

        Raises:
            DataError: A sample is unreadable, does not fit, or has NaN or Inf.
        """
        each = sum(feed.nbytes for feed in self._read(self.rows[:1]).values())
        if each * len(self) > most_bytes:
            return self
        batches = [feeds for feeds, _ in self._batches(self.fixed_batch or _HELD_AT_ONCE)]
        names = [spec.name for spec in self.inputs]
        arrays = {name: np.concatenate([feeds[name] for feeds in batches]) for name in names}
        samples = ArraySamples(arrays=arrays, inputs=self.inputs, labels=self.labels)
        return replace(self, samples=samples, rows=np.arange(len(self)), preprocess=None)

    def fingerprint(self) -> str:
        """Return the SHA-256 of SPEC, preprocessing, choice of rows and every byte of content."""
        settings = self.preprocess.to_dict() if self.preprocess else None
        header = json.dumps([self.source, settings, len(self)], sort_keys=True)
        digest = hashlib.sha256(header.encode())
        digest.update(self.rows.astype("<i8").tobytes())
        for block in self.samples.content():
            digest.update(block)
        return digest.hexdigest()

    def _batches(
        self, size: int
    ) -> Iterator[tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.int64] | None]]:
        labels = self.labels
        for start in range(0, len(self), size):
            rows = self.rows[start : start + size]
            feeds = self._read(rows)
            for name, feed in feeds.items():
                self._check_finite(name, feed, rows)
            yield feeds, None if labels is None else labels[start : start + size]

    def _read(self, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        try:
            feeds = dict(self.samples.read(rows))
        except DataError as error:
            raise self._error(str(error)) from error
        for spec in self.inputs:
            self._check_fit(spec, feeds[spec.name].shape)
        return feeds

    def _check_fit(self, spec: InputSpec, shape: tuple[int, ...]) -> None:
        wanted = f"[{', '.join(str(size or '?') for size in spec.shape)}]"
        if len(shape) != len(spec.shape):
            raise self._error(
                f"input {spec.name!r} has rank {len(spec.shape)} {wanted}, the data has rank "
                f"{len(shape)} (a batch of {list(shape)}): reshape it, batch first"
            )
        for axis in range(1, len(shape)):
            if spec.fixed(axis) not in (None, shape[axis]):
                raise self._error(
                    f"input {spec.name!r} {wanted} wants {spec.fixed(axis)} on axis {axis}, the "
                    f"data has {shape[axis]}: change the data or the preprocessing"
                )

    def _check_finite(self, name: str, feed: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> None:
        if feed.dtype.kind != "f" or np.isfinite(feed).all():
            return
        finite = np.isfinite(feed).reshape(len(rows), -1).all(axis=1)
        worst = rows[int(np.argmin(finite))]
        raise self._error(f"sample {worst} of input {name!r} has NaN or Inf: remove or repair it")

    def _error(self, problem: str) -> DataError:
        return DataError(f"{self.purpose} {self.source}: {problem}")
