"""What a training begins with: both networks, what is compared, and what a step is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import onnx
import torch

from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.finetune.augmentation import fitting, varied
from onnxcompress.finetune.memory import is_short, step_bytes
from onnxcompress.finetune.network import Network, Values
from onnxcompress.finetune.normalisation import normalise
from onnxcompress.finetune.objective import Mixture, Objective, objective
from onnxcompress.finetune.settings import FEW, Settings

_MEASURED = 8
"""Batches that deviations are taken on, at most,"""
_COMPUTED = 1 << 33
"""of so many bytes of tensors,"""
_LOOKED_AT = 4
"""and that it is measured on how far statistics of the batch take a student from its teacher."""
_DISTURBED = 2.0
"""How many times farther they may take it. What they add is nothing to a network that has lost
much, and would be all there is to learn to one that is close."""


@dataclass(frozen=True)
class Prepared:
    """Everything but the training itself.

    Attributes:
        aim: the objective, of a student that is normalised by batches or frozen.
        augment: variations of images.
        normalised: how many convolutions were normalised.
        close: whether the student is too close to its teacher for statistics of batches.
        batch: samples of a step.
        rate: the highest learning rate.
        at_once: parts of a step that are computed at the same time.
    """

    aim: Objective
    augment: tuple[str, ...]
    normalised: int
    close: bool
    batch: int
    rate: float
    at_once: int


def prepared(
    model: onnx.ModelProto, teacher: onnx.ModelProto, data: Dataset, settings: Settings
) -> Prepared:
    """Take both networks up, and find out what suits them.

    Args:
        model: the student.
        teacher: what it is held to.
        data: what is trained on.
        settings: the options.

    Raises:
        UnsupportedError: an operator of either is not known in training.
    """
    device = torch.device(settings.device)
    student, master = Network(model).to(device), Network(teacher).to(device).eval()
    master.requires_grad_(False)
    one = data.take(range(data.fixed_batch or 1))
    first = student.given(next(one.batches(1))[0])
    augment = settings.augment
    if augment is None:
        augment = fitting(tuple(x.shape) for x in first.values())
    mixture = Mixture(
        labels=settings.labels,
        features=settings.features,
        temperature=settings.temperature,
        losses=settings.losses,
    )
    aim = objective(
        student, master, (model, teacher), (student.shapes(first), master.shapes(first)), mixture
    )
    batch, _ = settings.step(len(data))

    def few(count: int) -> Iterator[Values]:
        """Some inputs, the same every time."""
        return (student.given(feeds) for feeds, _ in islice(data.batches(batch), count))

    needed = step_bytes(student.shapes(first), 1 if data.fixed_batch else batch)
    measured = max(1, min(_MEASURED, _COMPUTED // needed))
    aim.measure(few(measured))
    # Of a few samples alone, statistics say little: those that are there stay.
    student.frozen = (data.fixed_batch or batch) < FEW
    count = 0
    if settings.normalise and not student.frozen:
        count = normalise(student, few(measured))
    looked_at = few(min(_LOOKED_AT, measured))
    close = not student.frozen and _is_disturbed(aim, looked_at, augment, settings.seed)
    if close:
        student, count = Network(model).to(device), 0
        aim = replace(aim, student=student)
    student.frozen = student.frozen or close or not (count or student.running)
    batch, rate = settings.step(len(data), alone=student.frozen)
    needed = step_bytes(student.shapes(first), 1 if data.fixed_batch else batch)
    short = is_short(needed, device) if settings.recompute is None else settings.recompute
    student.recompute = short
    at_once = 1
    if device.type == "cpu" and student.frozen and data.fixed_batch and not short:
        most = min(settings.threads, max(1, batch // data.fixed_batch))
        at_once = 1 if is_short(most * needed, device) else most
    return Prepared(aim, augment, count, close, batch, rate, at_once)


def _is_disturbed(
    aim: Objective, inputs: Iterable[Values], augment: tuple[str, ...], seed: int
) -> bool:
    """Whether statistics of the batch move the student more than it has to learn."""
    own = {name: value.clone() for name, value in aim.student.changing().items()}
    generator = torch.Generator().manual_seed(seed)
    far = [0.0, 0.0]
    with torch.no_grad():
        for feeds in inputs:
            feeds = varied(feeds, augment, generator)
            taught = aim.taught(feeds, features=False)
            for at, by_batch in enumerate((False, True)):
                aim.student.train(by_batch)
                answered = aim.answered(feeds, features=False)
                far[at] += float(aim.distance(answered, taught))
                aim.student.load_state_dict(own, strict=False)
    return far[1] > _DISTURBED * far[0]
