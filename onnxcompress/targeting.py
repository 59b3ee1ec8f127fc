"""Plans that meet targets: what is left of the network is measured, not added up.

Branches are weighed along a path, on which the network is repaired after every removal; everything
else by the errors that probes expect. How much of the path a plan takes, trials decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from onnxcompress.latency.table import LayerTiming
from onnxcompress.plan.branch_path import branch_path
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.correction import Correction
from onnxcompress.plan.gate import Key
from onnxcompress.plan.measured import along_path, for_measured_targets
from onnxcompress.plan.search import (
    Choice,
    Chosen,
    Damages,
    Sites,
    conflicts,
    savings,
)
from onnxcompress.preparation import Prepared
from onnxcompress.progress import Progress
from onnxcompress.remainder import Remainder
from onnxcompress.trial import CalibrationTrial
from onnxcompress.verify.verdict import Verdict

_NOISE = 0.01
"""Fraction of the original's latency by which a plan ends below a target, because times vary."""

_FAR = 0.05
"""How far below its targets a result may end before it is planned again, with fresh timings."""


class Targeting:
    """Makes choices that meet a job's targets, and remembers what it measured and tried.

    Args:
        prepared: the job.
        remains: counts and times what is left of the network after a choice.
        trial: carries choices out, repairs them briefly, and measures what becomes of the outputs.
        judge: the outputs' error of a choice that is repaired as the result will be.
        progress: told what happens.
    """

    def __init__(
        self,
        prepared: Prepared,
        remains: Remainder,
        trial: CalibrationTrial,
        judge: Callable[[Chosen], float],
        progress: Progress,
    ) -> None:
        self._prepared, self._remains = prepared, remains
        self._trial, self._judge, self._progress = trial, judge, progress
        self._targets = prepared.config.targets
        self._margins: dict[str, float] = {"latency": _NOISE}
        self._slopes: dict[str, float] = {}
        self._misses = 0
        self._path: Chosen | None = None
        self._length: int | None = None

    def met_already(self) -> bool:
        """Whether exact rewrites, or the precision asked for, save enough by themselves."""
        return bool(self._remains.head_start) and self._enough(
            {
                kind: self._remains.baseline.total(kind) + more
                for kind, more in self._remains.head_start.items()
            }
        )

    def choice(
        self, sites: Sites, damages: Damages, timings: Mapping[Key, LayerTiming], *, by_data: bool
    ) -> Choice:
        """The least damage that meets the targets.

        Args:
            sites: candidates per site.
            damages: expected error of every candidate.
            timings: measured layer timings.
            by_data: whether there are inputs to try choices on.
        """
        branches = [at for at, offers in enumerate(sites) if any(c.removes for c in offers)]
        if not by_data or not branches:
            return self._measured_choice(sites, damages, timings)
        barred = conflicts(sites)
        place = {candidate: at for at in branches for candidate in sites[at]}

        def choose(gone: Chosen) -> Choice:
            taken = {place[branch] for branch in gone}
            excluded = set(branches) | {
                other for pair in barred for other in pair if taken & set(pair)
            }
            rest = [at for at in range(len(sites)) if at not in excluded]
            return self._measured_choice(
                [sites[at] for at in rest], [damages[at] for at in rest], timings, gone
            )

        if "latency" not in self._targets:
            # What a branch is good for is time; at equal MACs it goes where probes call it cheap.
            both = [choose(()), self._measured_choice(sites, damages, timings)]
            able = [choice for choice in both if choice.meets]
            if len(able) > 1 and any(candidate in place for candidate in able[1].chosen):
                return min(able, key=lambda choice: self._judge(choice.chosen))
            if able:
                return able[0]
        if self._path is None:
            order = self._prepared.journal.recall(
                "path", lambda: self._branches_in_order(sites, timings, branches, barred)
            )
            self._path = tuple(next(c for c in sites[at] if c.removes) for at in order)
        if self._length is not None:
            return choose(self._path[: self._length])
        self._progress.stage("weigh plans")
        found = along_path(
            self._path, choose, self._trial, self._judge, progress=self._progress.step
        )
        self._length = sum(candidate in place for candidate in found.chosen)
        return found

    def tighten(self, verdict: Verdict, chosen: Chosen, step: int) -> bool:
        """Keep farther below what was missed; False where nothing was.

        Args:
            verdict: of the last result.
            chosen: what that was made by.
            step: how often this was asked for the same verdict.
        """
        missed = {k: verdict.remaining(k) - fraction for k, fraction in self._targets.items()}
        if not any(excess > 0 for excess in missed.values()):
            return False
        if not step:
            self._remains.believe(verdict.remaining("latency"), chosen)
            self._misses += 1
        # At first new times alone may do; what is missed again is missed by more than chance.
        share = 0.5 * 1.5**step if step else float(self._misses > 1)
        for kind, excess in missed.items():
            if excess > 0:
                self._margins[kind] = self._margins.get(kind, 0.0) + share * excess
        return True

    def loosen(self, verdict: Verdict, chosen: Chosen) -> bool:
        """Whether the result ended far below every target; times are then taken afresh."""
        if any(verdict.remaining(k) > fraction - _FAR for k, fraction in self._targets.items()):
            return False
        self._remains.believe(verdict.remaining("latency"), chosen)
        self._length = None
        return bool(self._targets)

    def _measured_choice(
        self,
        sites: Sites,
        damages: Damages,
        timings: Mapping[Key, LayerTiming],
        given: Chosen = (),
    ) -> Choice:
        known = {
            kind: Correction(self._remains.head_start.get(kind, 0.0), self._slopes.get(kind, 1.0))
            for kind in self._targets
        }
        choice = for_measured_targets(
            sites,
            self._targets,
            self._remains.baseline,
            timings,
            damages,
            known=known,
            margins=self._margins,
            measure=self._remains,
            given=given,
        )
        self._slopes = {kind: correction.slope for kind, correction in known.items()}
        return choice

    def _branches_in_order(
        self,
        sites: Sites,
        timings: Mapping[Key, LayerTiming],
        branches: list[int],
        barred: list[tuple[int, int]],
    ) -> list[int]:
        """The sites of branches in the order in which they go."""
        self._progress.stage("try branches")
        candidates = [next(c for c in sites[at] if c.removes) for at in branches]
        demands = {
            kind: self._remains.baseline.total(kind) * (1.0 - fraction)
            + self._remains.head_start.get(kind, 0.0)
            for kind, fraction in self._targets.items()
        }
        wanted = {kind: demand for kind, demand in demands.items() if demand > 0.0}
        worth = np.zeros(len(candidates))
        for kind, demand in wanted.items():
            worth += np.array(savings([candidates], kind, timings)[0]) / demand / len(wanted)
        at = dict(zip(candidates, branches, strict=True))
        pairs = set(barred)

        def apart(one: Candidate[Any], other: Candidate[Any]) -> bool:
            return (min(at[one], at[other]), max(at[one], at[other])) in pairs

        path = branch_path(
            candidates,
            worth.tolist(),
            apart,
            self._trial.step,
            lambda gone: self._enough(self._remains(gone)),
            progress=self._progress.step,
        )
        return [at[branch] for branch in path]

    def _enough(self, remains: Mapping[str, float]) -> bool:
        """Whether what remains meets every target, and by as much as is kept below it."""
        return all(
            remains[kind]
            <= (fraction - self._margins.get(kind, 0.0)) * self._remains.baseline.total(kind)
            for kind, fraction in self._targets.items()
        )
