"""How a student does on what training does not see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.finetune.augmentation import drawn, varied
from onnxcompress.finetune.lanes import Lanes
from onnxcompress.finetune.network import Network, Values
from onnxcompress.finetune.objective import Objective

_TAUGHT_BYTES = 1 << 28
"""Of the teacher's answers, which are the same after every epoch, that are kept at most."""
Batch = tuple[Values, "torch.Tensor | None"]


@dataclass(frozen=True)
class Score:
    """How a student does on data that training does not see.

    Attributes:
        distance: from the teacher, and from labels where these have a share.
        agreement: share of samples of the same class; for other networks the relative squared
            error.
    """

    distance: float
    agreement: float


def batches(network: Network, data: Dataset, size: int) -> Iterator[Batch]:
    """Batches of samples, and of labels where there are any, as tensors of a network's device."""
    for feeds, labels in data.batches(size):
        truth = None if labels is None else torch.from_numpy(labels).to(network.device)
        yield network.given(feeds), truth


class Judge:
    """Scores the student of an objective on samples that are held out.

    They are varied as in training, the same every time: the student may have been calibrated on
    these very samples; on their variations it was not.

    Args:
        aim: the objective.
        held_out: the samples.
        augment: variations of images.
        batch: samples that are computed together.
        seed: of the variations.
        lanes: where batches are computed.
    """

    def __init__(
        self,
        aim: Objective,
        held_out: Dataset,
        augment: tuple[str, ...],
        batch: int,
        seed: int,
        lanes: Lanes,
    ) -> None:
        self.aim, self.held_out, self.batch, self.seed = aim, held_out, batch, seed
        self.kinds = [kind for kind in augment if kind != "mixup"]
        self.lanes = lanes
        self._taught: dict[int, Values] = {}
        self._room = _TAUGHT_BYTES

    def score(self) -> Score:
        """How the student does as it is."""
        self.aim.student.eval()
        distance = agreement = 0.0
        count = 0
        for at, judged in enumerate(self.lanes.map(self._judged, enumerate(self._unseen()))):
            far, equal, number, taught = judged
            distance += far * number
            agreement += equal
            count += number
            size = sum(value.nbytes for value in taught.values())
            if at not in self._taught and size <= self._room:
                self._taught[at] = taught
                self._room -= size
        return Score(distance / count, agreement / count)

    def _unseen(self) -> Iterator[tuple[Batch, torch.Generator]]:
        """What was held out, and what varies it."""
        generator = torch.Generator().manual_seed(self.seed)
        for batch in batches(self.aim.student, self.held_out, self.batch):
            yield batch, drawn(generator)

    @torch.no_grad()
    def _judged(
        self, numbered: tuple[int, tuple[Batch, torch.Generator]]
    ) -> tuple[float, float, int, Values]:
        """Mean distance, agreement, number of the samples of a batch, and the teacher's answers."""
        at, ((feeds, labels), generator) = numbered
        feeds = varied(feeds, self.kinds, generator)
        taught = self._taught.get(at) or self.aim.taught(feeds, features=False)
        answered = self.aim.answered(feeds, features=False)
        equal, number = self.aim.agreement(answered, taught)
        return float(self.aim.aimed(answered, taught, labels)), equal, number, taught
