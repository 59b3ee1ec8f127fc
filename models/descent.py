"""Training with fixed seeds: stochastic gradient descent on a cosine, for the scripts here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Descent:
    """What is the same in every training of a script.

    Attributes:
        epochs: how often every image is seen.
        batch: images in a step; divides their number.
        rate: learning rate at first; on a cosine down to 0.
        decay: weight decay.
        threads: sums are split over threads, so another number of them gives other weights.
    """

    epochs: int
    batch: int
    rate: float
    decay: float
    threads: int

    def start(self, seed: int) -> torch.Generator:
        """Fix every source of chance, before the network gets its first weights."""
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(self.threads)
        return torch.Generator().manual_seed(seed)

    def run(
        self,
        network: nn.Module,
        labels: torch.Tensor,
        answers: Callable[[torch.Tensor], torch.Tensor],
        generator: torch.Generator,
    ) -> None:
        """Train a network: Nesterov momentum 0.9, cross-entropy.

        Args:
            network: whose weights are changed.
            labels: of all images.
            answers: the network's logits for some image numbers.
            generator: of the order of the images.
        """
        optimizer = torch.optim.SGD(
            network.parameters(),
            lr=self.rate,
            momentum=0.9,
            nesterov=True,
            weight_decay=self.decay,
        )
        steps = self.epochs * (len(labels) // self.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        network.train()
        for epoch in range(self.epochs):
            total = 0.0
            order = torch.randperm(len(labels), generator=generator)
            for batch in order.view(-1, self.batch):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(answers(batch), labels[batch])
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(batch)
            mean = total / len(labels)
            print(f"epoch {epoch + 1:2d} of {self.epochs}: loss {mean:.4f}", flush=True)
        network.eval()
