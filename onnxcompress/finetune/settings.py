"""How a network is fine-tuned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onnxcompress.errors import UsageError

_BUDGET = re.compile(r"(\d+(?:\.\d+)?)(e|m)")

PRECISIONS = ("auto", "float32", "bfloat16")
LOSSES = ("cosine", "error")
FEW = 16
"""Samples in a batch below which nothing is normalised by it."""
_STEPS = 100
"""Steps that an epoch has at least, where nothing speaks for larger ones."""
_LEAST, _MOST = 4, 64
_RATE = 4e-3


@dataclass(frozen=True)
class Effort:
    """How long training goes on: a number of epochs, or of minutes.

    Attributes:
        epochs: passes over the data, if they are the limit.
        minutes: of training, if they are the limit.
    """

    epochs: int | None = None
    minutes: float | None = None

    def share(self, number: int, count: int) -> str:
        """An equal share as text; of epochs that cannot be shared equally the last ones have more.

        Args:
            number: of the share, from 1.
            count: of shares.

        Raises:
            UsageError: there are not as many epochs.
        """
        if self.minutes is not None:
            return f"{self.minutes / count:.9f}m"
        each, more = divmod(self.epochs or 0, count)
        if not each:
            raise UsageError(f"{self.epochs} epochs cannot be shared by {count} stages")
        return f"{each + (number > count - more)}e"


def parse_effort(text: str) -> Effort:
    """`3e` is three epochs, `20m` twenty minutes.

    Raises:
        UsageError: it is neither, or nothing.
    """
    found = _BUDGET.fullmatch(text.strip())
    if found is None or float(found[1]) == 0 or (found[2] == "e" and "." in found[1]):
        raise UsageError(f"'{text}' is neither a number of epochs like 3e nor of minutes like 20m")
    if found[2] == "e":
        return Effort(epochs=int(found[1]))
    return Effort(minutes=float(found[1]))


def parse_losses(text: str) -> dict[str, str]:
    """`auto` (nothing), `cosine`, or outputs by name: `boxes=error,embedding=cosine`.

    Returns:
        One of `LOSSES` by output; a loss of all outputs under the empty name.

    Raises:
        UsageError: it is nothing of the kind.
    """
    if text == "auto":
        return {}
    found: dict[str, str] = {}
    for part in text.split(","):
        name, _, kind = part.rpartition("=")
        if kind not in LOSSES or name in found:
            raise UsageError(
                f"--loss '{text}' is none of auto, {', '.join(LOSSES)}, nor OUTPUT=cosine|error "
                "with every output once"
            )
        found[name] = kind
    return found


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of fine-tuning.

    Attributes:
        effort: how long.
        batch: samples of a step. None takes 64; where nothing is normalised by the batch, because
            the model's own is small, the student is close to its teacher, or no layer can be, a
            hundredth of the samples, as a power of two from 4.
        rate: the highest learning rate, as a share of the size of a tensor's numbers (the root of
            their mean square); the schedule rises to it and falls in a line. None takes 4e-3 for
            64 samples in a step, and as the fourth root for other numbers.
        decay: of weights (decoupled), not of biases, scales and shifts.
        labels: share of the cross entropy to true labels, where there are any.
        features: weight of the differences on the way.
        temperature: that class scores are softened by.
        losses: of outputs by name, where their kind does not say (`parse_losses`).
        augment: variations of images (`augmentation.KINDS`); None takes what fits.
        average: how much of the running average of the weights a step keeps.
        held_out: share of the data that training does not see, to choose the best epoch by.
        normalise: whether convolutions get their batch normalisation back while training.
        seed: of every random choice.
        threads: of PyTorch on the CPU.
        device: cpu or cuda.
        run: folder that keeps a checkpoint after every epoch.
        recompute: whether the way back computes again what the way there made, which takes a third
            longer and less memory; None where memory is short. Weights come out the same.
        precision: float32, or bfloat16 where PyTorch's autocast allows it (weights stay float32);
            auto takes the latter on GPUs that have it. Held-out samples are judged in float32.
    """

    effort: Effort = field(default_factory=lambda: Effort(epochs=10))
    batch: int | None = None
    rate: float | None = None
    decay: float = 1e-4
    labels: float = 0.0
    features: float = 3.0
    temperature: float = 4.0
    losses: Mapping[str, str] = field(default_factory=dict)
    augment: tuple[str, ...] | None = None
    average: float = 0.99
    held_out: float = 0.1
    normalise: bool = True
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    run: Path | None = None
    recompute: bool | None = None
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name, low, high in (
            ("batch", 1, 1 << 20),
            ("rate", 0, 10),
            ("decay", 0, 1),
            ("labels", 0, 1),
            ("features", 0, 1e6),
            ("temperature", 1e-3, 1e3),
            ("average", 0, 1),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"{name} must lie between {low:g} and {high:g}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision '{self.precision}' is none of {', '.join(PRECISIONS)}")
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out must lie between 0 and 1, not {self.held_out:g}")

    def step(self, samples: int, *, alone: bool = False) -> tuple[int, float]:
        """Samples of a step and the learning rate.

        Args:
            samples: that there are to train on.
            alone: whether none depends on others, because nothing is normalised by the batch.
        """
        batch = _MOST if self.batch is None else self.batch
        if self.batch is None and alone:
            share = max(1, samples // _STEPS)
            batch = min(_MOST, max(_LEAST, 1 << (share.bit_length() - 1)))
        return batch, _RATE * (batch / _MOST) ** 0.25 if self.rate is None else self.rate
