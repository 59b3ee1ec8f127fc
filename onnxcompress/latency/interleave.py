"""Interleaved timing: rounds alternate between the models, one live session at a time.

Two live ONNX Runtime sessions disturb each other through their spinning thread pools, so every
visit makes its session, warms it up, times it, and gives it back. The order turns around from
round to round, so that a drift of the machine's speed falls on all models alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.errors import UsageError
from onnxcompress.runtime import Array, Execution, open_session

Loadable = onnx.ModelProto | bytes | Path


@dataclass(frozen=True)
class Budget:
    """How long to measure.

    Attributes:
        rounds: visits to each model.
        seconds: time spent on counted runs per visit.
        min_runs: counted runs per visit at least.
        warmup_runs: runs before counting at each visit, at least; and a third of `seconds`.
    """

    rounds: int = 8
    seconds: float = 0.25
    min_runs: int = 5
    warmup_runs: int = 3

    def __post_init__(self) -> None:
        if not 0.0 <= self.seconds < 3600.0:
            raise UsageError(f"--seconds per round must lie between 0 and 3600, not {self.seconds}")


PATIENCE = 4
_QUIET = 1.1
"""How often a measurement is taken at most, and how much slower than the quietest it may be."""

_DOUBTFUL = 3
"""How often it is taken where it is doubted."""

LAYER_BUDGET = Budget(rounds=7, seconds=0.02, min_runs=7, warmup_runs=3)


@dataclass(frozen=True)
class Timing:
    """Raw samples of one model: milliseconds per run, one tuple per round."""

    rounds: tuple[tuple[float, ...], ...]

    @property
    def samples(self) -> NDArray[np.float64]:
        """All samples in the order they were taken."""
        return np.array([ms for one in self.rounds for ms in one])

    @property
    def round_medians(self) -> NDArray[np.float64]:
        """The median of each round; round i of two models were measured side by side."""
        return np.array([float(np.median(one)) for one in self.rounds])

    @property
    def p50(self) -> float:
        """Median over all samples, in milliseconds."""
        return float(np.median(self.samples))

    @property
    def p95(self) -> float:
        """95th percentile over all samples, in milliseconds."""
        return float(np.percentile(self.samples, 95))


def interleaved(
    models: Sequence[Loadable],
    feeds: Sequence[Mapping[str, Array]] | Mapping[str, Array],
    execution: Execution,
    *,
    budget: Budget | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Time several models against each other.

    Args:
        models: what to time; a ModelProto is serialised once.
        feeds: one set of inputs for all models, or one for each.
        execution: provider, threads.
        budget: how long to measure.
        progress: called with (rounds done, rounds in all).

    Returns:
        One Timing per model, in the order given.
    """
    budget = budget or Budget()
    each = [feeds] * len(models) if isinstance(feeds, Mapping) else list(feeds)
    # Over 2 GB a ModelProto cannot be serialised: it stays what it is, and open_session copes.
    loadable = [
        m.SerializeToString() if isinstance(m, onnx.ModelProto) and m.ByteSize() < 2**30 else m
        for m in models
    ]
    rounds: list[list[tuple[float, ...]]] = [[] for _ in models]
    for number in range(budget.rounds):
        order = range(len(models)) if number % 2 == 0 else range(len(models) - 1, -1, -1)
        for index in order:
            with open_session(loadable[index], execution) as session:
                rounds[index].append(_visit(session.runner(each[index]), budget))
        if progress is not None:
            progress(number + 1, budget.rounds)
    return [Timing(tuple(one)) for one in rounds]


class QuietHours:
    """Measurements that were taken while the machine had time for them.

    What else runs on a machine slows a large network down more than a small one, and moves ratios.
    The first model is the same in every measurement and tells: where it took clearly longer than in
    its best hour, the measurement is taken again, a few times, and the quietest counts. A machine
    that does not come to rest has become slower: from then on, that is what is called quiet.
    """

    def __init__(self) -> None:
        self.best = float("inf")
        """Median of the first model's round medians in the quietest measurement, milliseconds."""

    def measure(
        self,
        take: Callable[[], list[Timing]],
        doubt: Callable[[list[Timing]], bool] | None = None,
        *,
        patience: int = PATIENCE,
    ) -> list[Timing]:
        """The quietest of a few measurements.

        Args:
            take: measures; the first of its timings is the one that is always the same model's.
            patience: how many at most.
            doubt: whether so much depends on a measurement that two more are taken; which of them
                counts, the first model decides all the same.
        """
        found: list[list[Timing]] = []
        for number in range(1, patience + 1):
            found.append(take())
            taken = _middle(found[-1][0])
            self.best = min(self.best, taken)
            doubtful = doubt is not None and number < _DOUBTFUL and doubt(found[-1])
            if taken <= _QUIET * self.best and not doubtful:
                break
        else:
            self.best = min(_middle(timings[0]) for timings in found)
        return min(found, key=lambda timings: _middle(timings[0]))


def _middle(timing: Timing) -> float:
    return float(np.median(timing.round_medians))


def _visit(run: Callable[[], None], budget: Budget) -> tuple[float, ...]:
    _repeat(run, budget.seconds / 3, budget.warmup_runs)
    return tuple(_repeat(run, budget.seconds, budget.min_runs))


def _repeat(run: Callable[[], None], seconds: float, min_runs: int) -> list[float]:
    """Run for `seconds`, and `min_runs` times at least; milliseconds of each run."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        run()
        stop = time.perf_counter()
        samples.append((stop - start) * 1e3)
        if stop >= end and len(samples) >= min_runs:
            return samples
