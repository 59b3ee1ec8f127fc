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
from onnxcompress.finetune.augmentation import varied
from onnxcompress.finetune.checkpoint import Checkpoint
from onnxcompress.finetune.judging import Batch, Judge, Score, batches
from onnxcompress.finetune.lanes import Lanes
from onnxcompress.finetune.network import Values
from onnxcompress.finetune.normalisation import folded_values
from onnxcompress.finetune.objective import Objective
from onnxcompress.finetune.optimiser import Optimiser
from onnxcompress.finetune.precision import autocast, single
from onnxcompress.finetune.settings import Settings

_WARM_UP = 0.05
_SETTLES = 2 / 3
"""Share of the effort after which nothing is normalised by the batch any more: its noise would keep
weights from where they are going."""
_DISTURBED = 2.0
"""How many times farther from the teacher statistics of the batch may leave the student. What they
add is nothing to a network that has lost much, and would be all there is to one that is close."""
_LOOKED_AT = 4
"""Batches of training that this is measured on."""


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
        aim: the objective; its student is changed in place.
        data: what is trained on.
        judge: scores the student; the best epoch is chosen by it.
        augment: variations of images.
        settings: the options.
        lanes: where batches are computed; some at a time only where none moves running statistics.
        checkpoint: where training goes on from; None keeps nothing.
    """

    def __init__(
        self,
        aim: Objective,
        data: Dataset,
        judge: Judge,
        augment: tuple[str, ...],
        settings: Settings,
        lanes: Lanes,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.aim, self.data, self.judge, self.augment = aim, data, judge, augment
        self.settings, self.lanes, self.checkpoint = settings, lanes, checkpoint
        self.batch, self.rate = settings.step(len(data), data.fixed_batch)
        self.student = aim.student
        self._moved = [p for p in self.student.parameters() if p.requires_grad]
        self.optimiser = Optimiser(self._moved, settings.decay)
        self.averaged = {name: value.clone() for name, value in self.student.changing().items()}
        self.began_with = judge.score()
        self.settles = 0.0 if self._disturbed() else _SETTLES
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

    def _disturbed(self) -> bool:
        """Whether statistics of the batch move the student more than it has to learn."""
        if self.student.frozen:
            return False
        own = {name: value.clone() for name, value in self.student.changing().items()}
        generator = torch.Generator().manual_seed(self.settings.seed)
        rows = range(min(len(self.data), _LOOKED_AT * self.batch))
        far = [0.0, 0.0]
        with torch.no_grad():
            for feeds, _ in batches(self.student, self.data.take(rows), self.batch):
                feeds = varied(feeds, self.augment, generator)
                taught = self.aim.taught(feeds, features=False)
                for at, by_batch in enumerate((False, True)):
                    self.student.train(by_batch)
                    answered = self.aim.answered(feeds, features=False)
                    far[at] += float(self.aim.distance(answered, taught))
                    self.student.load_state_dict(own, strict=False)
        return far[1] > _DISTURBED * far[0]

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
            if spent >= self.settles:
                self.student.settle()
            taken = [
                (varied(feeds, self.augment, generator), labels)
                for feeds, labels in islice(left, parts)
            ]
            for loss, slopes in self.lanes.map(self._descent, taken):
                total += loss / len(taken)
                self.optimiser.add(slopes, 1 / len(taken))
            self.optimiser.step(self._rate(spent))
            self._average(number * steps + step)
            done += 1
        return total / max(1, done)

    def _descent(self, batch: Batch) -> tuple[float, Sequence[torch.Tensor | None]]:
        """The loss of a batch, and its slope in every parameter that it depends on."""
        feeds, labels = batch
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
        """The learning rate: up in a line, down as a cosine."""
        factor = min(1.0, spent / _WARM_UP + 0.01) * 0.5 * (1 + math.cos(math.pi * spent))
        return self.rate * factor

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
