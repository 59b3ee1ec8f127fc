"""The oracle: what the loss becomes when channels are set to zero, one set after the other.

What does not depend on an ablated channel is computed once per sample and kept: only the suffix
of the graph behind it runs again (the oracle of Molchanov et al. 2017, section 2.1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.sensitivity import Ablation
from onnxcompress.calibrate.answers import tapped
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.sample_batches import Batch, batch_size, batches
from onnxcompress.calibrate.suffix import Suffix, cut_suffix
from onnxcompress.calibrate.targets import Targets
from onnxcompress.gradients.known import Known
from onnxcompress.progress import Progress
from onnxcompress.runtime import Array, Execution, Session, open_session

_KEPT_BYTES = 2**29
"""Of what is kept of one chunk of samples for all the suffixes of a wave."""

_BATCH_BYTES = 2**28
_BATCH = 64
_CHUNK = 256
Array64 = NDArray[np.float64]
Values = Mapping[str, Array]


@dataclass(frozen=True)
class _Cut:
    """Ablations that share their taps, and the suffix that they need."""

    suffix: Suffix
    taps: tuple[str, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Oracle:
    """Ablates channels of one network.

    Attributes:
        known: the network, with shapes and types at the representative sizes.
        original: the network whose answers it is held to; a variant of it may be ablated.
        taps: channel axis of every tap.
        targets: what answers are held to.
        execution: provider and threads.
        progress: told how much is done.
    """

    known: Known
    original: onnx.ModelProto
    taps: Mapping[str, int]
    targets: Targets
    execution: Execution
    progress: Progress

    def changes(self, ablations: Sequence[Ablation], samples: Dataset) -> Array64:
        """How much the mean loss grows, by ablation.

        Args:
            ablations: channels that are set to zero together, by tap.
            samples: the first of the samples that the targets belong to.

        Raises:
            ModelError: the model fails on the data.
        """
        model = self.known.view.model
        cuts = [cut for cut in self._cuts(ablations) if cut.suffix.outputs]
        size = batch_size(model, samples, self.known.shapes, _BATCH_BYTES, _BATCH)
        total = np.zeros(len(ablations))
        whole = len(ablations) * len(samples)
        # What the loss does not depend on is done already.
        done = whole - sum(len(cut.numbers) for cut in cuts) * len(samples)
        self.progress.step(done, whole)
        chunk_size = max(size, self._chunk(cuts))
        for wave in self._waves(cuts, chunk_size):
            kept = list(
                dict.fromkeys([*self._answers, *(n for c in wave for n in c.suffix.frontier)])
            )
            for chunk in _chunks(batches(samples, size), max(1, chunk_size // size)):
                values = self._values(model, kept, chunk)
                held = values
                if self.original is not model and not self.targets.answer.classes:
                    held = self._values(self.original, self._answers, chunk)
                for cut in wave:
                    with open_session(cut.suffix.model, self.execution) as session:
                        for part, value, own in zip(chunk, values, held, strict=True):
                            found = self._grown(session, cut, ablations, value, own, part)
                            total[list(cut.numbers)] += found
                    done += len(cut.numbers) * sum(part.count for part in chunk)
                    self.progress.step(done, whole)
        return total / len(samples)

    @property
    def _answers(self) -> list[str]:
        """The tensors that the loss is computed from."""
        answer = self.targets.answer
        return [answer.logits] if answer.classes else list(answer.outputs)

    def _values(
        self, model: onnx.ModelProto, names: Sequence[str], chunk: Sequence[Batch]
    ) -> list[dict[str, Array]]:
        """Tensors of a model, batch by batch."""
        with open_session(tapped(model, names), self.execution) as session:
            return [dict(zip(names, session.run(part.feeds), strict=True)) for part in chunk]

    def _cuts(self, ablations: Sequence[Ablation]) -> list[_Cut]:
        """Ablations with the same taps together, in order of execution."""
        by_taps: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, ablation in enumerate(ablations):
            by_taps[tuple(ablation)].append(number)
        return [
            _Cut(
                cut_suffix(self.known, {t: self.taps[t] for t in taps}, self._answers),
                taps,
                tuple(numbers),
            )
            for taps, numbers in by_taps.items()
        ]

    def _octets(self, tensors: Collection[str]) -> int:
        """Bytes of some tensors for one sample, with its inputs and answers."""
        names = {*tensors, *self._answers, *self.known.view.inputs}
        return sum(
            self.known.dtype(name).itemsize * prod(self.known.shapes[name][1:]) for name in names
        )

    def _chunk(self, cuts: Sequence[_Cut]) -> int:
        """How many samples' frontiers fit into memory, of the cut that needs most."""
        most = max((self._octets(cut.suffix.frontier) for cut in cuts), default=1)
        return min(_CHUNK, _KEPT_BYTES // max(1, most))

    def _waves(self, cuts: Sequence[_Cut], samples: int) -> Iterator[list[_Cut]]:
        """Cuts whose frontiers fit into memory together."""
        wave: list[_Cut] = []
        names: set[str] = set()
        for cut in cuts:
            more = names.union(cut.suffix.frontier)
            if wave and self._octets(more) * samples > _KEPT_BYTES:
                yield wave
                wave, more = [], set(cut.suffix.frontier)
            wave.append(cut)
            names = more
        if wave:
            yield wave

    def _grown(
        self,
        session: Session,
        cut: _Cut,
        ablations: Sequence[Ablation],
        values: Values,
        held: Values,
        part: Batch,
    ) -> Array64:
        """The sum over a batch of what every ablation of a cut adds to the loss."""
        before = {name: values[name] for name in self._answers}
        base = self.targets.losses(before, part.rows, held)[: part.count]
        masks = cut.suffix.masks
        feeds: dict[str, Array] = {
            name: values[name] if name in values else part.feeds[name]
            for name in session.input_names
            if name not in masks.values()
        }
        # Channels are zeroed in place and put back: these copies are this cut's own.
        feeds |= {tap: np.array(feeds[tap]) for tap in cut.taps if tap not in masks}
        grown = np.zeros(len(cut.numbers))
        for at, number in enumerate(cut.numbers):
            saved: dict[str, Array] = {}
            for tap, channels in ablations[number].items():
                chosen = _along(self.taps[tap], channels)
                if tap in masks:
                    mask = np.ones(
                        _lined(self.known.shapes[tap], self.taps[tap]), cut.suffix.dtypes[tap]
                    )
                    mask[chosen] = 0.0
                    feeds[masks[tap]] = mask
                else:
                    saved[tap] = feeds[tap][chosen]
                    feeds[tap][chosen] = 0.0
            # Channels that were zero already change nothing, to the last bit.
            if masks or any(some.any() for some in saved.values()):
                outputs = dict(zip(session.output_names, session.run(feeds), strict=True))
                losses = self.targets.losses({**before, **outputs}, part.rows, held)
                grown[at] = (losses[: part.count] - base).sum()
            for tap, some in saved.items():
                feeds[tap][_along(self.taps[tap], ablations[number][tap])] = some
        return grown


def _chunks(parts: Iterator[Batch], count: int) -> Iterator[list[Batch]]:
    while chunk := list(islice(parts, count)):
        yield chunk


def _along(axis: int, indices: Sequence[int]) -> Any:
    """An index that takes some positions along an axis."""
    return (*[slice(None)] * axis, list(indices))


def _lined(shape: tuple[int, ...], axis: int) -> list[int]:
    return [extent if a == axis else 1 for a, extent in enumerate(shape)]
