"""Latencies of derived models, measured where nothing else runs at the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcompress.latency.interleave import Budget
from onnxcompress.runtime import Array, Execution
from onnxcompress.verify.speed import race

BRIEF = Budget(rounds=5, seconds=0.1)
LONG = Budget()
AT_ONCE = 6
"""How many models are timed in turns with the original; more would wait too long for their turn."""


@dataclass(frozen=True)
class Timed:
    """Times a few models against the original, in turns, one session at a time.

    Attributes:
        original: serialised.
        models: serialised.
        feeds: one set of inputs for all.
        execution: provider and threads.
        seed: of the intervals.
        budget: how long to measure.
    """

    original: bytes
    models: Sequence[bytes]
    feeds: Mapping[str, Array]
    execution: Execution
    seed: int
    budget: Budget

    def __call__(self) -> list[dict[str, Any]]:
        """Per model: ratio to the original with interval, and milliseconds of both."""
        timed = race(
            [self.original, *self.models],
            self.feeds,
            self.execution,
            seed=self.seed,
            budget=self.budget,
        )
        original_ms = float(np.median(timed.entries[0].timing.round_medians))
        return [
            {
                "ratio": ratio.value,
                "ci95": [ratio.interval.low, ratio.interval.high],
                "ms": float(np.median(entry.timing.round_medians)),
                "original_ms": original_ms,
            }
            for entry, ratio in zip(timed.entries[1:], timed.ratios[1:], strict=True)
        ]
