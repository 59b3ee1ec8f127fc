"""Whole-network latency, original against candidate, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcompress.latency.interleave import Budget, Loadable, QuietHours, Timing, interleaved
from onnxcompress.runtime import Array, Execution
from onnxcompress.verify.bootstrap import bootstrap_ratio, bootstrap_statistic
from onnxcompress.verify.intervals import Estimate


@dataclass(frozen=True)
class Latency:
    """Latency of one model in milliseconds, measured interleaved with others."""

    timing: Timing
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """p50, p95, the 95 % interval of the p50 (bootstrap over rounds), and the run count."""
        samples = self.timing.samples
        # Runs of one round share that round's conditions, so whole rounds are resampled.
        interval = bootstrap_statistic(self.timing.round_medians, "median", seed=self.seed)
        return {
            "p50": self.timing.p50,
            "p95": self.timing.p95,
            "ci95": [interval.low, interval.high],
            "runs": len(samples),
        }


@dataclass(frozen=True)
class Race:
    """Several models timed against the first of them."""

    entries: tuple[Latency, ...]
    ratios: tuple[Estimate, ...]
    """Candidate over first, median over rounds with interval; the first one's own is exactly 1."""


def race(
    models: Sequence[Loadable],
    feeds: Sequence[Mapping[str, Array]] | Mapping[str, Array],
    execution: Execution,
    *,
    seed: int,
    budget: Budget | None = None,
    quiet: QuietHours | None = None,
    limit: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Race:
    """Time models in alternating rounds, one live session at a time.

    Args:
        models: what to time; the first one is the reference.
        feeds: one set of inputs for all models, or one for each.
        execution: provider, threads.
        seed: of the bootstrap.
        budget: how long to measure.
        quiet: what is known of the reference's times on a quiet machine.
        limit: ratio of the last model above which the measurement is doubted, and taken again.
        progress: called with (rounds done, rounds in all).
    """

    def take() -> list[Timing]:
        return interleaved(models, feeds, execution, budget=budget, progress=progress)

    def doubt(timings: list[Timing]) -> bool:
        ratio = np.median(timings[-1].round_medians / timings[0].round_medians)
        return limit is not None and bool(ratio > limit)

    timings = (quiet or QuietHours()).measure(take, doubt)
    first = timings[0].round_medians
    ratios = tuple(bootstrap_ratio(first, t.round_medians, seed=seed) for t in timings)
    return Race(tuple(Latency(timing, seed) for timing in timings), ratios)
