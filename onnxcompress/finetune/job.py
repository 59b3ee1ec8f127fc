"""Distillation of one network into another: everything around the training."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import onnx
import torch

from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.errors import DataError, ProviderError
from onnxcompress.finetune.checkpoint import Checkpoint
from onnxcompress.finetune.judging import Judge, Score
from onnxcompress.finetune.lanes import lanes, torch_threads
from onnxcompress.finetune.prepared import prepared
from onnxcompress.finetune.settings import Settings
from onnxcompress.finetune.teacher import answering, is_single
from onnxcompress.finetune.training import Epoch, State, Training
from onnxcompress.finetune.weights import with_weights
from onnxcompress.graph.digest import model_digest
from onnxcompress.progress import Progress

_HELD_BYTES = 1 << 31


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
        start = prepared(model, teacher, rest, settings)
        aim = start.aim
        if aim.student.recompute and settings.recompute is None:
            progress.note("memory is short: the way back computes again what the way there made")
        if start.close:
            progress.note("statistics of batches would take it farther away: nothing is normalised")
        checkpoint = None
        if settings.run is not None:
            key = _key(model, teacher, data, settings)
            checkpoint = Checkpoint(settings.run, key, aim.student.device, progress)
        with ExitStack() as opened:
            side = opened.enter_context(lanes(start.at_once, settings.threads))
            # Judged by the interpreter, a student that is the teacher is at a distance of zero.
            judge = Judge(aim, held_out, start.augment, start.batch, settings.seed, side)
            if settings.device == "cpu" and is_single(teacher):
                threads = max(1, settings.threads // start.at_once)
                session = opened.enter_context(answering(teacher, aim.asked, threads))
                start = replace(start, aim=replace(aim, teacher=session))
            training = Training(start, rest, judge, settings, side, checkpoint)
            state = _run(training, progress)
    values = {name: value.cpu().numpy() for name, value in state.best.items()}
    return Distilled(
        with_weights(model, values),
        training.began_with,
        tuple(state.epochs),
        state.best_epoch,
        aim.scores is not None,
        start.normalised,
        start.augment,
        state.seconds,
        len(rest),
        len(held_out),
        start.batch,
        start.rate,
    )


def _run(training: Training, progress: Progress) -> State:
    """Train, and say what every epoch came to."""
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


def _key(
    model: onnx.ModelProto, teacher: onnx.ModelProto, data: Dataset, settings: Settings
) -> str:
    """Everything that training depends on."""
    told = {k: v for k, v in vars(settings).items() if k not in {"recompute", "run", "threads"}}
    digests = [model_digest(model), model_digest(teacher), data.fingerprint()]
    versions = [version("onnxcompress"), torch.__version__, version("pytorch-optimizer")]
    return repr([*versions, *digests, sorted(told.items())])
