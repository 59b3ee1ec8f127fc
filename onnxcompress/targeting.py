"""Plans that meet targets: what is left of the network is measured, not added up.

Branches are weighed along a path, on which the network is repaired after every removal; everything
else by the errors that probes expect. How much of the path a plan takes, trials decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.analyse.sizes import random_feeds
from onnxcompress.graph.cost import model_cost
from onnxcompress.graph.memo import Memo
from onnxcompress.journal import choice_name
from onnxcompress.latency.interleave import Budget, QuietHours, Timing, interleaved
from onnxcompress.latency.table import LayerTiming
from onnxcompress.plan.branch_path import branch_path
from onnxcompress.plan.contract import Candidate, Pass
from onnxcompress.plan.correction import Correction
from onnxcompress.plan.gate import Key
from onnxcompress.plan.measured import along_path, for_measured_targets
from onnxcompress.plan.search import (
    Baseline,
    Choice,
    Chosen,
    Damages,
    Sites,
    conflicts,
    savings,
)
from onnxcompress.preparation import Prepared
from onnxcompress.progress import Progress
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.rewrite.precision import Conversion
from onnxcompress.trial import CalibrationTrial
from onnxcompress.verify.verdict import Verdict

_NOISE = 0.01
"""Fraction of the original's latency by which a plan ends below a target, because times vary."""

_BRIEF = Budget(rounds=5, seconds=0.1)
"""How long a plan's whole network is timed; the verdict takes longer."""

_FAR = 0.05
"""How far below its targets a result may end before it is planned again, with fresh timings."""


class Targeting:
    """Makes choices that meet a job's targets, and remembers what it measured and tried.

    Args:
        prepared: the job.
        passes: the passes by name.
        memo: results shared by the editors of the job.
        trial: carries choices out and measures what becomes of the outputs.
        progress: told what happens.
        conversion: what becomes of a result's precision; targets hold for what comes out.
    """

    def __init__(
        self,
        prepared: Prepared,
        passes: Mapping[str, Pass[Any]],
        memo: Memo,
        trial: CalibrationTrial,
        progress: Progress,
        conversion: Conversion | None = None,
    ) -> None:
        self._prepared, self._passes, self._memo = prepared, passes, memo
        self._conversion = conversion
        self._trial, self._progress = trial, progress
        self._targets = prepared.config.targets
        self._margins: dict[str, float] = {"latency": _NOISE}
        self._measured: dict[Chosen, dict[str, float]] = {}
        self._slopes: dict[str, float] = {}
        self._epoch, self._misses = 0, 0
        self._path: Chosen | None = None
        self._length: int | None = None
        self.quiet = QuietHours()

    def met_already(self) -> bool:
        """Whether exact rewrites, or the precision asked for, save enough by themselves."""
        return bool(self._head_start) and self._enough(
            {kind: self._baseline.total(kind) + more for kind, more in self._head_start.items()}
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
                return min(able, key=lambda choice: self._trial(choice.chosen).error)
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
        found = along_path(self._path, choose, self._trial, progress=self._progress.step)
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
            self._believe(verdict, chosen)
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
        self._believe(verdict, chosen)
        self._length = None
        return bool(self._targets)

    def _believe(self, verdict: Verdict, chosen: Chosen) -> None:
        """Forget times that were taken under other conditions than the verdict's."""
        if "latency" in self._targets:
            figures = self._measured.get(chosen)
            self._measured.clear()
            self._epoch += 1
            self.__dict__.pop("_head_start", None)
            if figures is not None:
                total = self._baseline.total("latency")
                self._measured[chosen] = figures | {"latency": verdict.remaining("latency") * total}

    def _measured_choice(
        self,
        sites: Sites,
        damages: Damages,
        timings: Mapping[Key, LayerTiming],
        given: Chosen = (),
    ) -> Choice:
        known = {
            kind: Correction(self._head_start.get(kind, 0.0), self._slopes.get(kind, 1.0))
            for kind in self._targets
        }
        choice = for_measured_targets(
            sites,
            self._targets,
            self._baseline,
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
            kind: self._baseline.total(kind) * (1.0 - fraction) + self._head_start.get(kind, 0.0)
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
            remains[kind] <= (fraction - self._margins.get(kind, 0.0)) * self._baseline.total(kind)
            for kind, fraction in self._targets.items()
        )

    def _remains(self, chosen: Chosen) -> dict[str, float]:
        """What is left of the network after a choice, measured: milliseconds, MACs, bytes, ..."""
        if chosen not in self._measured:
            self._measured[chosen] = self._prepared.journal.recall(
                f"figures {self._epoch} {choice_name(chosen)}", lambda: self._counted(chosen)
            )
        return self._measured[chosen]

    def _counted(self, chosen: Chosen) -> dict[str, float]:
        model = self._prepared.facts.model
        model = rewrite(model, chosen, self._passes, memo=self._memo).model
        return self._figures(self._trial.mender.unfitted(model, chosen))

    def _figures(self, model: onnx.ModelProto) -> dict[str, float]:
        prepared = self._prepared
        if self._conversion is not None:
            model = self._conversion(model, briefly=True)
        cost = model_cost(model, shapes_for(model, prepared.facts.sizes))
        found = {"macs": float(cost.macs), "params": float(cost.params)}
        found["size"] = float(model.ByteSize())
        if "latency" in self._targets:
            pair = self._timed([prepared.source.model, model], _BRIEF)
            ratio = float(np.median(pair[1] / pair[0]))
            found["latency"] = ratio * self._baseline.total("latency")
        return found

    def _timed(
        self, models: list[onnx.ModelProto], budget: Budget | None = None
    ) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
        """Milliseconds of every round, model by model."""
        prepared = self._prepared
        seed, sizes = prepared.config.seed, prepared.facts.sizes
        feeds = random_feeds(prepared.source.model, sizes, seed=seed)

        def take() -> list[Timing]:
            return interleaved(models, feeds, prepared.config.execution, budget=budget)

        return [timing.round_medians for timing in self.quiet.measure(take)]

    @cached_property
    def _baseline(self) -> Baseline:
        """What the original costs, before exact rewrites."""
        original, latency = self._prepared.source, None
        if "latency" in self._targets:
            latency = self._prepared.journal.recall(
                "latency of the original",
                lambda: float(np.median(self._timed([original.model])[0])),
            )
        return Baseline(self._prepared.original.total(), original.file_bytes, latency)

    @cached_property
    def _head_start(self) -> dict[str, float]:
        """How much more than the original the network costs that candidates are weighed on."""
        if not self._prepared.groundwork.rounds and self._conversion is None:
            return {}
        figures = self._prepared.journal.recall(
            f"figures {self._epoch} of the groundwork",
            lambda: self._figures(self._prepared.facts.model),
        )
        return {kind: figures[kind] - self._baseline.total(kind) for kind in self._targets}
