"""Distillation of one network into another: everything around the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from typing import Any

import onnx
import torch

from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.errors import DataError, ProviderError
from onnxcompress.finetune.augmentation import fitting
from onnxcompress.finetune.checkpoint import Checkpoint
from onnxcompress.finetune.judging import Judge, Score
from onnxcompress.finetune.lanes import lanes, torch_threads
from onnxcompress.finetune.memory import is_short, step_bytes
from onnxcompress.finetune.network import Network
from onnxcompress.finetune.normalisation import normalise
from onnxcompress.finetune.objective import Mixture, Objective, objective
from onnxcompress.finetune.settings import FEW, Settings
from onnxcompress.finetune.teacher import answering, is_single
from onnxcompress.finetune.training import Epoch, State, Training
from onnxcompress.finetune.weights import with_weights
from onnxcompress.graph.digest import model_digest
from onnxcompress.progress import Progress

_HELD_BYTES = 1 << 31
_MEASURED = 8
"""Batches that deviations are taken on."""


@dataclass(frozen=True)
class Distilled:
    """What fine-tuning came to.

    Attributes:
        model: the student with its new weights, or as it was where none were better.
        before: the student's score on what was held out, before.
        epochs: what every epoch came to.
        best_epoch: the one whose averaged weights were kept; 0 where none was better.
        classes: whether scores count equal classes (else relative squared errors).
        normalised: how many convolutions were normalised while training.
        augment: variations of the images.
        seconds: of training.
        trained: how many samples were trained on.
        held_out: how many were not.
        batch: samples of a step.
        rate: the highest learning rate.
    """

    model: onnx.ModelProto
    before: Score
    epochs: tuple[Epoch, ...]
    best_epoch: int
    classes: bool
    normalised: int
    augment: tuple[str, ...]
    seconds: float
    trained: int
    held_out: int
    batch: int
    rate: float

    @property
    def improved(self) -> bool:
        """Whether the weights are new ones."""
        return self.best_epoch > 0

    @property
    def after(self) -> Score:
        """The score of the weights that were kept."""
        return self.epochs[self.best_epoch - 1].score if self.improved else self.before

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the report."""
        return {
            "improved": self.improved,
            "best_epoch": self.best_epoch,
            "distance": [self.before.distance, self.after.distance],
            "agreement" if self.classes else "relative_error": [
                self.before.agreement,
                self.after.agreement,
            ],
            "epochs": [
                {
                    "loss": epoch.loss,
                    "distance": epoch.score.distance,
                    "agreement" if self.classes else "relative_error": epoch.score.agreement,
                    "seconds": epoch.seconds,
                }
                for epoch in self.epochs
            ],
            "normalised": self.normalised,
            "augment": list(self.augment),
            "seconds": self.seconds,
            "samples": self.trained,
            "held_out": self.held_out,
            "batch": self.batch,
            "rate": self.rate,
        }


def distil(
    model: onnx.ModelProto,
    teacher: onnx.ModelProto,
    data: Dataset,
    settings: Settings,
    progress: Progress,
) -> Distilled:
    """Train a model towards a teacher's answers; never worse than it was on what was held out.

    Args:
        model: the student; not changed.
        teacher: a network of the same inputs and outputs.
        data: inputs of both; labels are used where the settings give them a share.
        settings: how.
        progress: told what every epoch came to.

    Raises:
        UnsupportedError: an operator of either is not known in training.
        DataError: there is too little data.
        ProviderError: the device is not there.
    """
    if settings.labels and data.labels is None:
        raise DataError(f"{data.purpose} {data.source} has no labels to train on: leave out labels")
    check_device(settings.device)
    with torch_threads(settings.threads):
        rest, held_out = data.held(_HELD_BYTES).split(settings.held_out, settings.seed)
        aim, first, count, at_once = _prepared(model, teacher, rest, settings)
        if aim.student.recompute and settings.recompute is None:
            progress.note("memory is short: the way back computes again what the way there made")
        augment = fitting(first) if settings.augment is None else settings.augment
        checkpoint = None
        if settings.run is not None:
            key = _key(model, teacher, data, settings)
            checkpoint = Checkpoint(settings.run, key, aim.student.device, progress)
        with ExitStack() as opened:
            side = opened.enter_context(lanes(at_once, settings.threads))
            batch, _ = settings.step(len(rest), rest.fixed_batch)
            # Judged by the interpreter, a student that is the teacher is at a distance of zero.
            judge = Judge(aim, held_out, augment, batch, settings.seed, side)
            if settings.device == "cpu" and is_single(teacher):
                threads = max(1, settings.threads // at_once)
                session = opened.enter_context(answering(teacher, aim.asked, threads))
                aim = replace(aim, teacher=session)
            training = Training(aim, rest, judge, augment, settings, side, checkpoint)
            state = _run(training, progress)
    values = {name: value.cpu().numpy() for name, value in state.best.items()}
    return Distilled(
        with_weights(model, values),
        training.began_with,
        tuple(state.epochs),
        state.best_epoch,
        aim.scores is not None,
        count,
        augment,
        state.seconds,
        len(rest),
        len(held_out),
        training.batch,
        training.rate,
    )


def _run(training: Training, progress: Progress) -> State:
    """Train, and say what every epoch came to."""
    if not training.settles:
        progress.note("statistics of batches would take it farther away: running ones normalise")
    if training.state.epochs:
        progress.note(f"going on behind epoch {len(training.state.epochs)}")
    word = "agreement" if training.aim.scores else "relative error"
    epochs = training.settings.effort.epochs

    def told(number: int, epoch: Epoch) -> None:
        score = epoch.score
        if epochs is not None:
            progress.step(number, epochs)
        progress.note(
            f"epoch {number}: loss {epoch.loss:.4g}, held out {score.distance:.4g} (before "
            f"{training.began_with.distance:.4g}), {word} {score.agreement:.4g}, "
            f"{epoch.seconds:.0f} s"
        )

    return training.run(told)


def check_device(device: str) -> None:
    """Say before the work that there is nothing to train on.

    Raises:
        ProviderError: PyTorch has no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ProviderError(
            "PyTorch sees no CUDA device: train on the CPU, or install its CUDA build"
        )


def _prepared(
    model: onnx.ModelProto, teacher: onnx.ModelProto, data: Dataset, settings: Settings
) -> tuple[Objective, list[tuple[int, ...]], int, int]:
    """The objective, shapes of inputs, normalised convolutions, and batches to compute at once."""
    device = torch.device(settings.device)
    student, master = Network(model).to(device), Network(teacher).to(device).eval()
    master.requires_grad_(False)

    batch, _ = settings.step(len(data), data.fixed_batch)

    def few() -> Iterator[dict[str, torch.Tensor]]:
        """Some inputs, the same every time."""
        return (student.given(feeds) for feeds, _ in islice(data.batches(batch), _MEASURED))

    one = data.take(range(data.fixed_batch or 1))
    first = student.given(next(one.batches(1))[0])
    mixture = Mixture(
        labels=settings.labels,
        features=settings.features,
        temperature=settings.temperature,
        losses=settings.losses,
    )
    aim = objective(
        student, master, (model, teacher), (student.shapes(first), master.shapes(first)), mixture
    )
    aim.measure(few())
    # Of a few samples alone, statistics say little: those that are there stay.
    student.frozen = (data.fixed_batch or batch) < FEW
    count = normalise(student, few()) if settings.normalise and not student.frozen else 0
    needed = step_bytes(student.shapes(first), 1 if data.fixed_batch else batch)
    short = is_short(needed, device) if settings.recompute is None else settings.recompute
    student.recompute = short
    at_once = 1
    if device.type == "cpu" and student.frozen and data.fixed_batch and not short:
        most = min(settings.threads, max(1, batch // data.fixed_batch))
        at_once = 1 if is_short(most * needed, device) else most
    return aim, [tuple(x.shape) for x in first.values()], count, at_once


def _key(
    model: onnx.ModelProto, teacher: onnx.ModelProto, data: Dataset, settings: Settings
) -> str:
    """Everything that training depends on."""
    told = {k: v for k, v in vars(settings).items() if k not in {"recompute", "run", "threads"}}
    digests = [model_digest(model), model_digest(teacher), data.fingerprint()]
    versions = [version("onnxcompress"), torch.__version__, version("pytorch-optimizer")]
    return repr([*versions, *digests, sorted(told.items())])
