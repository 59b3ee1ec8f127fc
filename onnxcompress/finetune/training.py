"""The training itself: steps, running averages, and the best epoch kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch

from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.finetune.augmentation import drawn, varied
from onnxcompress.finetune.checkpoint import Checkpoint
from onnxcompress.finetune.judging import Batch, Judge, Score, batches
from onnxcompress.finetune.lanes import Lanes
from onnxcompress.finetune.network import Values
from onnxcompress.finetune.normalisation import folded_values
from onnxcompress.finetune.optimiser import Optimiser
from onnxcompress.finetune.precision import autocast, single
from onnxcompress.finetune.prepared import Prepared
from onnxcompress.finetune.settings import Settings

_WARM_UP = 0.05
_SETTLES = 2 / 3
"""Share of the effort after which nothing is normalised by the batch any more: its noise would keep
weights from where they are going."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the data: its mean loss, and the score of the averaged weights behind it."""

    loss: float
    score: Score
    seconds: float


@dataclass
class State:
    """Everything that training goes on from.

    Attributes:
        epochs: that are done.
        best: constants of the best epoch with normalisations folded in; empty before any is
            better than what training began with.
        best_distance: of the best epoch, or of the beginning.
        best_epoch: its number, from 1; 0 before any was better.
        seconds: of training.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best: Values = field(default_factory=dict)
    best_distance: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> State:
        """Put together again from plain values."""
        epochs = [Epoch(**{**one, "score": Score(**one["score"])}) for one in values["epochs"]]
        return cls(**{**values, "epochs": epochs})


class Training:
    """Trains the student of an objective; what is done is the same however often it is killed.

    Args:
        start: the objective, whose student is changed in place, and what a step is made of.
        data: what is trained on.
        judge: scores the student; the best epoch is chosen by it.
        settings: the options.
        lanes: where batches are computed; some at a time only where none moves running statistics.
        checkpoint: where training goes on from; None keeps nothing.
    """

    def __init__(
        self,
        start: Prepared,
        data: Dataset,
        judge: Judge,
        settings: Settings,
        lanes: Lanes,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.aim, self.augment = start.aim, start.augment
        self.batch, self.rate = start.batch, start.rate
        self.data, self.judge = data, judge
        self.settings, self.lanes, self.checkpoint = settings, lanes, checkpoint
        self.student = self.aim.student
        self._moved = [p for p in self.student.parameters() if p.requires_grad]
        self.optimiser = Optimiser(self._moved, settings.decay)
        self.averaged = {name: value.clone() for name, value in self.student.changing().items()}
        self.began_with = judge.score()
        self.state = State(best_distance=self.began_with.distance)
        if checkpoint is not None and (held := checkpoint.read()) is not None:
            self.student.load_state_dict(held["student"])
            self.optimiser.load(held["optimiser"])
            self.averaged = held["averaged"]
            self.state = State.of(held["state"])

    def run(self, told: Callable[[int, Epoch], None]) -> State:
        """Train until the effort is spent.

        Args:
            told: is given every epoch with its number, from 1.
        """
        while not self._done():
            begin = time.perf_counter()
            loss = self._epoch(len(self.state.epochs))
            score = self._averaged_score()
            seconds = time.perf_counter() - begin
            self.state.seconds += seconds
            self.state.epochs.append(Epoch(loss, score, seconds))
            if self.checkpoint is not None:
                self.checkpoint.write(
                    {
                        "student": self.student.state_dict(),
                        "optimiser": self.optimiser.state(),
                        "averaged": self.averaged,
                        "state": asdict(self.state),
                    }
                )
            told(len(self.state.epochs), self.state.epochs[-1])
        return self.state

    def _epoch(self, number: int) -> float:
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + number)
        order = torch.randperm(len(self.data), generator=generator).numpy()
        each = self.data.fixed_batch or self.batch
        # A small fixed batch is only a part of a step.
        parts = max(1, self.batch // each)
        steps = max(1, len(order) // (each * parts))
        left = batches(self.student, self.data.take(order), self.batch)
        total, done = 0.0, 0
        begin = time.perf_counter()
        for step in range(steps):
            spent = self._spent(number + step / steps, time.perf_counter() - begin)
            if spent >= 1:
                break
            self.student.train()
            if spent >= _SETTLES:
                self.student.settle()
            taken = [(batch, drawn(generator)) for batch in islice(left, parts)]
            for loss, slopes in self.lanes.map(self._descent, taken):
                total += loss / len(taken)
                self.optimiser.add(slopes, 1 / len(taken))
            self.optimiser.step(self._rate(spent))
            self._average(number * steps + step)
            done += 1
        return total / max(1, done)

    def _descent(
        self, taken: tuple[Batch, torch.Generator]
    ) -> tuple[float, Sequence[torch.Tensor | None]]:
        """The loss of a varied batch, and its slope in every parameter that it depends on."""
        (feeds, labels), generator = taken
        feeds = varied(feeds, self.augment, generator)
        with autocast(self.settings.precision, self.student.device):
            answered, taught = self.aim.answered(feeds), self.aim.taught(feeds)
        loss = self.aim.loss(single(answered), single(taught), labels)
        slopes = torch.autograd.grad(loss, self._moved, allow_unused=True)
        return float(loss.detach()), slopes

    def _spent(self, epochs: float, seconds: float) -> float:
        """Share of the effort that is over."""
        effort = self.settings.effort
        if effort.epochs is not None:
            return min(1.0, epochs / effort.epochs)
        return min(1.0, (self.state.seconds + seconds) / (60 * (effort.minutes or 1)))

    def _rate(self, spent: float) -> float:
        """The learning rate: up in a line, and down in one."""
        return self.rate * min(1.0, spent / _WARM_UP + 0.01) * (1 - spent)

    def _average(self, step: int) -> None:
        """The running average follows; at first faster, so that it forgets where it began."""
        keep = min(self.settings.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in self.student.changing().items():
                self.averaged[name].lerp_(value, 1 - keep)

    def _averaged_score(self) -> Score:
        """The score of the averaged weights, which are kept if no earlier ones were better."""
        own = {name: value.clone() for name, value in self.student.changing().items()}
        self.student.load_state_dict(self.averaged, strict=False)
        score = self.judge.score()
        if score.distance < self.state.best_distance:
            self.state.best = folded_values(self.student)
            self.state.best_distance = score.distance
            self.state.best_epoch = len(self.state.epochs) + 1
        self.student.load_state_dict(own, strict=False)
        return score

    def _done(self) -> bool:
        return self._spent(len(self.state.epochs), 0.0) >= 1
