"""Collecting statistics of activations: taps as extra outputs, sums in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.activations import ChannelStatistics
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.runtime import Array, Execution, open_session

_WAVE_BYTES = 2**28
"""Taps of one wave, for one batch: more are collected in smaller batches, then in further runs."""

_VALUES_BYTES = 2**31
"""Of tensors that are handed out as they are: of fewer samples, where they are large."""

_BATCH = 16
_SMALL_BATCH = 2
"""Batches are made this small before the network is run once more: that takes as long again."""


@dataclass(frozen=True)
class CollectedActivations:
    """Statistics of one model's tensors on a random part of the calibration inputs.

    Attributes:
        model: the canonical model.
        shapes: shape of every tensor at the representative sizes, to plan memory by.
        data: the calibration inputs.
        execution: provider and threads.
        seed: which inputs are taken.
        samples: how many, at most.
    """

    model: onnx.ModelProto
    shapes: Mapping[str, tuple[int, ...]]
    data: Dataset
    execution: Execution
    seed: int
    samples: int = 256

    def __call__(
        self, axes: Mapping[str, int], model: onnx.ModelProto | None = None
    ) -> dict[str, ChannelStatistics]:
        """Statistics of tensors, over at most `samples` samples.

        Args:
            axes: the channel axis of every tensor that is wanted.
            model: a variant of the model with the same tensors; by default the model itself.

        Raises:
            ModelError: the model fails on the data.
        """
        samples = self._drawn(self.samples)
        found: dict[str, ChannelStatistics] = {}
        for wave in self._waves(list(axes)):
            found |= self._collect(model or self.model, {n: axes[n] for n in wave}, samples)
        return found

    def values(self, tensors: Sequence[str], samples: int) -> dict[str, NDArray[np.generic]]:
        """Tensors as they are, of a random few of the calibration inputs, in one run of the model.

        Raises:
            ModelError: the model fails on the data.
        """
        fitting = _VALUES_BYTES // max(1, sum(map(self._octets, tensors)))
        samples = max(1, min(samples, fitting))
        tapped = _tapped(self.model, tensors)
        found: dict[str, list[Array]] = {name: [] for name in tensors}
        with open_session(tapped, self.execution) as session:
            for feeds, _ in self._drawn(samples).batches(_SMALL_BATCH):
                answers = dict(zip(session.output_names, session.run(feeds), strict=True))
                for name, values in found.items():
                    values.append(answers[name])
        return {name: np.concatenate(values) for name, values in found.items()}

    def _drawn(self, samples: int) -> Dataset:
        unit = self.data.fixed_batch or 1
        # Whole batches, where the model insists on a number of samples.
        count = max(1, samples // unit) * unit
        order = np.random.default_rng(self.seed).permutation(len(self.data))[:count]
        return self.data.take(np.sort(order))

    def _waves(self, names: Sequence[str]) -> Iterator[list[str]]:
        wave: list[str] = []
        held = 0
        for name in names:
            octets = _SMALL_BATCH * self._octets(name)
            if wave and held + octets > _WAVE_BYTES:
                yield wave
                wave, held = [], 0
            wave.append(name)
            held += octets
        if wave:
            yield wave

    def _octets(self, name: str) -> int:
        """Of a tensor at the representative sizes, as it is summed up."""
        return 8 * prod(self.shapes.get(name, (1,)))

    def _collect(
        self, model: onnx.ModelProto, axes: Mapping[str, int], samples: Dataset
    ) -> dict[str, ChannelStatistics]:
        tapped = _tapped(model, list(axes))
        sums = {name: _Sums() for name in axes}
        fitting = _WAVE_BYTES // max(1, sum(map(self._octets, axes)))
        batch = min(_BATCH, max(_SMALL_BATCH, fitting))
        with open_session(tapped, self.execution) as session:
            for feeds, _ in samples.batches(batch):
                values = dict(zip(session.output_names, session.run(feeds), strict=True))
                for name, axis in axes.items():
                    sums[name].add(values[name], axis)
        return {name: one.statistics() for name, one in sums.items()}


def _tapped(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of the model that answers with these tensors, too."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    outputs = {output.name for output in tapped.graph.output}
    for name in tensors:
        if name not in outputs:
            tapped.graph.output.append(onnx.ValueInfoProto(name=name))
    return tapped


class _Sums:
    """Running sums of one tensor."""

    def __init__(self) -> None:
        self._total: NDArray[np.float64] | float = 0.0
        self._square: NDArray[np.float64] | float = 0.0
        self._positive: NDArray[np.float64] | float = 0.0
        self._count = 0

    def add(self, values: Array, axis: int) -> None:
        """Take in the values of one batch."""
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
        self._total = self._total + rows.sum(axis=1)
        self._square = self._square + np.square(rows).sum(axis=1)
        self._positive = self._positive + (rows > 0.0).sum(axis=1)
        self._count += rows.shape[1]

    def statistics(self) -> ChannelStatistics:
        """The averages so far."""
        parts = (np.asarray(v) / self._count for v in (self._total, self._square, self._positive))
        mean, square, positive = parts
        return ChannelStatistics(mean, square, positive, self._count)
