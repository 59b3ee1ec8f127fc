"""Whether a choice saves what is asked, measured only where the sums of savings leave that open."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnxcompress.latency.table import LayerTiming
from onnxcompress.plan.correction import Correction
from onnxcompress.plan.gate import Key
from onnxcompress.plan.measured import Remains
from onnxcompress.plan.search import Baseline, Chosen, savings

_SURE = 0.1
"""How far above a limit, as a fraction of the original, a choice is expected not to be enough."""


class Enough:
    """Measures choices that grow, now and then at first, and all of them near the end.

    Args:
        limits: fraction of the original that may remain, per kind.
        baseline: what the original costs.
        head_start: per kind, how much more than the original costs what choices are carried out on.
        timings: measured layer timings; needed for a limit of latency.
        measure: carries a choice out and measures what remains.
    """

    def __init__(
        self,
        limits: Mapping[str, float],
        baseline: Baseline,
        head_start: Mapping[str, float],
        timings: Mapping[Key, LayerTiming],
        measure: Callable[[Chosen], Remains],
    ) -> None:
        self._limits, self._timings, self._measure = limits, timings, measure
        self._totals = {kind: baseline.total(kind) for kind in limits}
        self._known = {kind: Correction(head_start.get(kind, 0.0)) for kind in limits}

    def __call__(self, chosen: Chosen) -> bool:
        """Whether a choice is enough; one of 1, 2, 4, 8 ... candidates is measured in any case."""
        sums = {kind: sum(savings([chosen], kind, self._timings)[0]) for kind in self._limits}
        often = len(chosen) & (len(chosen) - 1) == 0
        if not often and any(self._expected(k, sums[k]) > self._limits[k] + _SURE for k in sums):
            return False
        remains = self._measure(chosen)
        for kind, total in sums.items():
            self._known[kind].add(total, self._totals[kind] - remains[kind])
        return all(remains[kind] <= self._limits[kind] * self._totals[kind] for kind in sums)

    def _expected(self, kind: str, total: float) -> float:
        """The fraction that remains, by what was measured so far."""
        return 1.0 - self._known[kind].saved(total) / self._totals[kind]
