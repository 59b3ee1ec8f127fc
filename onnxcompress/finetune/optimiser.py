"""Steps down the slope: SOAP, as large as the numbers that they change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_optimizer import SOAP

_TURNED = 10
"""Steps after which the axes are turned again."""
_WIDEST = 1024
"""Axes of more elements stay as they are: turning them takes longer than what it gains."""
_SMALL = 1e-2
"""Tensors of smaller numbers, zeros say, move as if these had this size."""


class Optimiser:
    """Moves parameters by Adam in the axes in which their slopes vary (Vyas et al. 2024, SOAP).

    Networks whose normalisations are folded have layers with numbers of very different size, 0.02
    to 20 in one of them: a rate that suits the ones destroys or does not move the others, so steps
    are shares of the size of a tensor.

    Args:
        parameters: what moves.
        decay: of weights, with every step, as a share of it; not of biases, scales and shifts.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float) -> None:
        self._numbers = [_without_single_axes(parameter) for parameter in parameters]
        self._soap = SOAP(
            [
                {
                    "params": [numbers],
                    "size": _size(numbers),
                    "weight_decay": decay if parameter.dim() >= 2 else 0.0,
                }
                for parameter, numbers in zip(parameters, self._numbers, strict=True)
            ],
            precondition_frequency=_TURNED,
            max_precondition_dim=_WIDEST,
        )

    def add(self, slopes: Sequence[torch.Tensor | None], share: float) -> None:
        """Take up the slopes of a part of the batch; None where it does not depend on one."""
        for numbers, slope in zip(self._numbers, slopes, strict=True):
            if slope is None:
                continue
            part = slope.reshape(numbers.shape)
            if numbers.grad is None:
                numbers.grad = share * part
            else:
                numbers.grad.add_(part, alpha=share)

    def step(self, rate: float) -> None:
        """Move by a share of every tensor's size; not where a slope is not finite."""
        for group in self._soap.param_groups:
            group["lr"] = rate * group["size"]
        slopes = [numbers.grad for numbers in self._numbers if numbers.grad is not None]
        if torch.nn.utils.get_total_norm(slopes).isfinite():
            self._soap.step()
        self._soap.zero_grad()

    def state(self) -> dict[str, Any]:
        """What it has seen, as tensors and plain values."""
        return self._soap.state_dict()

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what it had seen."""
        self._soap.load_state_dict(state)


def _without_single_axes(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    """The same numbers in the same memory.

    Axes of one element cost the optimiser time and tell it nothing.
    """
    numbers = parameter.detach()
    return torch.nn.Parameter(numbers.squeeze() if numbers.numel() > 1 else numbers)


def _size(numbers: torch.Tensor) -> float:
    """How large they are, as a root of their mean square."""
    return max(float(numbers.detach().square().mean().sqrt()), _SMALL)
