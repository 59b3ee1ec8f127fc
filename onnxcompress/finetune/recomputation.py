"""Steps whose results are not kept for the way back, but computed again (gradient checkpoints).

Of n steps the results of about a root of n are kept, and as many computed again at a time, which
costs another forward pass (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import isqrt
from typing import Protocol

import torch
from torch.utils.checkpoint import checkpoint

from onnxcompress.finetune.steps import Step

Values = dict[str, torch.Tensor]


class Follows(Protocol):
    """What keeps running statistics."""

    momentum: float


def in_parts(
    through: Callable[[Values, Sequence[Step]], Values],
    steps: Sequence[Step],
    values: Values,
    norms: Sequence[Follows],
) -> Values:
    """Carry out all steps.

    Args:
        through: carries out some, and says what is known behind them.
        steps: in order.
        values: what is known in front of them.
        norms: whoever keeps running statistics, which a batch must not move twice.
    """
    size = isqrt(len(steps)) + 1
    for start in range(0, len(steps), size):
        values = checkpoint(
            *(through, values, steps[start : start + size]),
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), _still(norms)),
        )
    return values


@contextmanager
def _still(norms: Sequence[Follows]) -> Iterator[None]:
    """While a batch is seen a second time, running statistics stay where they are."""
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
