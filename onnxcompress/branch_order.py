"""The order in which branches go from one job's network: found once, continued if more is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxcompress.journal import Journal
from onnxcompress.latency.table import LayerTiming
from onnxcompress.plan.branch_path import branch_path
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.enough import Enough
from onnxcompress.plan.gate import Key
from onnxcompress.plan.search import Chosen, Damages, Sites, conflicts, savings
from onnxcompress.progress import Progress
from onnxcompress.remainder import Remainder
from onnxcompress.trial import CalibrationTrial

_AHEAD = 0.06
"""How far beyond what is asked the path goes, as a fraction of the original: a verdict may ask for
more, and one branch more mostly costs less than what ranks and widths make of the difference."""


class BranchOrder:
    """Finds the path.

    Args:
        remains: counts and times what is left of the network after a choice.
        trial: repairs the network after some branches, and measures the outputs.
        journal: keeps the path.
        progress: told how many branches are gone.
    """

    def __init__(
        self,
        remains: Remainder,
        trial: CalibrationTrial,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self._remains, self._trial = remains, trial
        self._journal, self._progress = journal, progress
        self._found = 0
        self.path: Chosen = ()

    def extend(
        self,
        sites: Sites,
        damages: Damages,
        timings: Mapping[Key, LayerTiming],
        limits: Mapping[str, float],
    ) -> None:
        """Go on until somewhat more is saved than asked.

        Args:
            sites: candidates per site.
            damages: expected error of every candidate.
            timings: measured layer timings.
            limits: fraction of the original that may remain, per kind.
        """
        self._found += 1
        self._progress.stage("try branches")
        at = {c: place for place, offers in enumerate(sites) for c in offers if c.removes}
        barred = {frozenset(pair) for pair in conflicts(sites)}
        enough = Enough(
            {kind: limit - _AHEAD for kind, limit in limits.items()},
            self._remains.baseline,
            self._remains.head_start,
            timings,
            self._remains,
        )

        def found() -> list[int]:
            path = branch_path(
                list(at),
                self._worth(list(at), timings, limits),
                [damages[place][sites[place].index(c)] for c, place in at.items()],
                lambda one, other: frozenset((at[one], at[other])) in barred,
                self._trial.step,
                enough,
                start=self.path,
                progress=self._progress.step,
            )
            return [at[branch] for branch in path]

        order = self._journal.recall(f"path {self._found}", found)
        self.path = tuple(next(c for c in sites[place] if c.removes) for place in order)

    def _worth(
        self,
        branches: list[Candidate[Any]],
        timings: Mapping[Key, LayerTiming],
        limits: Mapping[str, float],
    ) -> list[float]:
        """What each branch saves of what is to be saved."""
        wanted = self._remains.demands(limits)
        worth = np.zeros(len(branches))
        for kind, demand in wanted.items():
            if demand > 0.0:
                worth += np.array(savings([branches], kind, timings)[0]) / demand
        return list(map(float, worth))
