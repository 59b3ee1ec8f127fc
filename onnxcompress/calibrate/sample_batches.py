"""Samples in batches of one size, the last one filled up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.errors import DataError
from onnxcompress.runtime import Array

_BATCH_BYTES = 2**28
"""Of a batch's activations: the backward graph holds about three times as much."""

_BATCH = 64
_KEPT_BYTES = 2**28
"""Of samples: more than this are read from where they come from, again and again."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes:
        feeds: inputs by name, always of the same batch size.
        rows: which samples they are [batch]; the last one again and again to fill up.
        count: how many of the rows count.
    """

    feeds: Mapping[str, Array]
    rows: NDArray[np.int64]
    count: int


def batches(samples: Dataset, size: int) -> Iterator[Batch]:
    """All samples in order, in batches of `size` (or what the model insists on)."""
    at = 0
    for feeds, _ in samples.batches(size):
        count = len(next(iter(feeds.values())))
        whole = samples.fixed_batch or size
        fill = np.minimum(np.arange(whole), count - 1)
        if count < whole:
            feeds = {name: np.ascontiguousarray(value[fill]) for name, value in feeds.items()}
        yield Batch(feeds, at + fill, count)
        at += count


def batch_size(
    model: onnx.ModelProto, samples: Dataset, shapes: Shapes, limit_bytes: int, most: int
) -> int:
    """How many samples fit, when all activations of the network are alive at once.

    Args:
        model: the network.
        samples: what it will be run on.
        shapes: shape of every tensor at the representative sizes.
        limit_bytes: for all activations of one batch.
        most: never more than this.
    """
    if samples.fixed_batch is not None:
        return samples.fixed_batch
    name = next(spec.name for spec in input_specs(model))
    held = shapes[name][0]
    octets = sum(
        4 * prod(shapes[n]) for node in model.graph.node for n in node.output if n in shapes
    )
    return int(np.clip(limit_bytes * held // max(1, octets), 1, min(most, len(samples))))


def sizes_of(feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """The size of every input."""
    return {name: tuple(int(d) for d in value.shape) for name, value in feeds.items()}


def demand_one_size(batch: Batch, sizes: Shapes) -> None:
    """Refuse samples of another size than the graph was built for.

    Raises:
        DataError: they have one.
    """
    for name, size in sizes_of(batch.feeds).items():
        if size != tuple(sizes[name]):
            raise DataError(
                f"input '{name}' is of size {list(size)} after {list(sizes[name])}: gradients "
                "need samples of one size"
            )


@dataclass(frozen=True)
class DrawnSamples:
    """A random part of some data, in batches of one size.

    Attributes:
        model: the network, which may insist on a batch size.
        shapes: shape of every tensor at the representative sizes, to plan memory by.
        data: where the samples come from.
        seed: which ones are drawn.
        most: how many, at most.
    """

    model: onnx.ModelProto
    shapes: Shapes
    data: Dataset
    seed: int
    most: int

    @cached_property
    def dataset(self) -> Dataset:
        """The samples, in random order: the first few are a random part as well."""
        unit = self.data.fixed_batch or 1
        count = max(1, self.most // unit) * unit
        return self.data.take(np.random.default_rng(self.seed).permutation(len(self.data))[:count])

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self) -> Iterator[Batch]:
        """Batch by batch: kept in memory where samples are small, else read again.

        Raises:
            DataError: samples differ in size.
        """
        yield from self._kept if self._kept is not None else self._read()

    @cached_property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The size of every input of a batch."""
        return sizes_of(next(self.batches()).feeds)

    @cached_property
    def _kept(self) -> list[Batch] | None:
        first = next(self._read())
        octets = sum(value.nbytes for value in first.feeds.values()) / len(first.rows)
        return list(self._read()) if octets * len(self) <= _KEPT_BYTES else None

    def _read(self) -> Iterator[Batch]:
        size = batch_size(self.model, self.dataset, self.shapes, _BATCH_BYTES, _BATCH)
        sizes: dict[str, tuple[int, ...]] = {}
        for part in batches(self.dataset, size):
            sizes = sizes or sizes_of(part.feeds)
            demand_one_size(part, sizes)
            yield part
