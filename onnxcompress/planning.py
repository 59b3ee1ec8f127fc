"""The planner: options, gate, sensitivities and choice for one job, with what it learns on the way.

Choices are made on the calibration inputs only. The verdict may send the planner back with a
tighter bound, because networks know their training images by heart and lose less on them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx

from onnxcompress.analyse.facts import Need
from onnxcompress.errors import ModelError
from onnxcompress.graph.digest import model_digest
from onnxcompress.journal import RecordedHours
from onnxcompress.latency.interleave import QuietHours
from onnxcompress.latency.table import LatencyTable, LayerTiming
from onnxcompress.plan.channels.known import remember_coupling
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.gate import Key, gate
from onnxcompress.plan.known_moments import layer_moments, linear_among
from onnxcompress.plan.options import Options, collect, with_savings
from onnxcompress.plan.plan import Plan, described
from onnxcompress.plan.probes import expected_errors, predicted
from onnxcompress.plan.reasons import left_alone
from onnxcompress.plan.replay import check_fits, needing_data
from onnxcompress.plan.search import (
    Choice,
    Damages,
    Prediction,
    Sites,
    by_rule,
    within_bound,
    within_budget,
)
from onnxcompress.plan.stored import read_options, stored_options
from onnxcompress.preparation import Prepared
from onnxcompress.progress import Progress
from onnxcompress.rewrite.manager import Rewritten
from onnxcompress.rewrite.repair import Repaired
from onnxcompress.targeting import Targeting
from onnxcompress.verify.accuracy import Bounds
from onnxcompress.verify.verdict import Verdict
from onnxcompress.workbench import Workbench

_TIGHTEN = 0.4
_STEPS = 20
_UNGATED = "latency gate off: no rewrite was timed, and the result may be slower than the original"


class Planner:
    """Makes plans for one job; remembers timings, sensitivities, and how tight the bound is."""

    def __init__(self, prepared: Prepared, progress: Progress) -> None:
        facts, inputs, config = prepared.facts, prepared.inputs, prepared.config
        self._prepared, self._progress = prepared, progress
        self._facts, self._inputs, self._config = facts, inputs, config
        self._budget: float | None = None
        self._last: tuple[Candidate[Any], ...] = ()
        self._damages: Damages | None = None
        self._options: Options | None = None
        self._predictions: list[Prediction] = []
        self.timings: dict[Key, LayerTiming] = {}
        self._table = LatencyTable(config.latency_table, config.execution)
        self._replay = prepared.replay
        self._digest = model_digest(prepared.original.model)
        self._owners = [owner for owner in prepared.passes if not owner.goes_first]
        bench = Workbench.of(prepared, progress)
        self.passes, self.memo = bench.passes, bench.memo
        if self._replay is not None:
            check_fits(self._replay, facts, self.passes, has_data=inputs.calibration is not None)
            if self._replay.model_digest != self._digest:
                progress.note("the plan was made for other weights of this architecture")
        self.mender, self.conversion = bench.mender, bench.conversion
        self._trial, self._remains, self._repairs = bench.trial, bench.remains, bench.repairs()
        self._targeting = Targeting(
            prepared, self._remains, self._trial, self._repairs.error, progress
        )

    @property
    def bounds(self) -> Bounds:
        """What the result must satisfy: as asked, else as the replayed plan was asked."""
        config, replay = self._config, self._replay
        targets, gate = config.targets, config.gated
        if replay is not None and not targets:
            targets = replay.targets
            gate = replay.gate if config.gate is None else config.gate
        return Bounds(config.max_drop, config.min_snr, config.confidence, targets, gate)

    @property
    def lossless_ratio(self) -> float | None:
        """Latency over the original's before any lossy rewrite, where that was measured."""
        return self._remains.lossless_ratio if self._replay is None else None

    def hours(self, attempt: int) -> QuietHours:
        """When to time the result of an attempt."""
        return RecordedHours(self._remains.quiet, self._prepared.journal, f"verdict {attempt}")

    def plan(self) -> Plan:
        """A plan under everything learned so far."""
        if self._replay is not None:
            self._remember_coupling()
            needy = needing_data(self._replay, self.passes)
            # In one go: by itself, each would have the network walked over again.
            layer_moments(self._facts, linear_among(self._facts, needy))
            precision = self.conversion.precision if self.conversion is not None else None
            return replace(self._replay, then=precision)
        options = self._offers()
        choice = self._choose(options)
        self._last = choice.chosen
        return Plan(
            model_digest=self._digest,
            passes=described(self._prepared.passes),
            chosen=choice.chosen,
            first=self._prepared.groundwork.rounds,
            refusals=(
                *self._prepared.groundwork.refusals,
                *options.refusals,
                *left_alone(options, choice.chosen, self._why_left()),
            ),
            targets=self._config.targets,
            gate=self._config.gated,
            notes=(*choice.notes, *(() if self._config.gated else (_UNGATED,))),
            predictions=tuple(self._predictions),
            then=self._config.then,
        )

    def repaired(self, rewritten: Rewritten) -> Repaired | None:
        """The rewritten model repaired; None where there is nothing to repair or nothing gained."""
        return self._repairs(rewritten)

    def error(self, model: onnx.ModelProto) -> float:
        """Relative squared error of a result's outputs on calibration inputs; 0 without any."""
        return self._trial.error(model) if self._plans_by_data() else 0.0

    def tighten_accuracy(self) -> bool:
        """Spend less damage next time; False when there is nothing left to give up."""
        if self._replay is not None or self._budget is None or self._config.targets:
            return False
        options = self._offers()
        damages = self._expected(options)
        for _ in range(_STEPS):
            self._budget *= _TIGHTEN
            chosen = within_budget(options.sites, damages, self.timings, self._budget).chosen
            if chosen != self._last:
                return bool(chosen)
        return False

    def tighten_targets(self, verdict: Verdict) -> bool:
        """Save more next time, by what was missing; False when no other plan can help."""
        if self._replay is not None or not verdict.accuracy.ok:
            return False
        # A little more than was missing at first, then ever more, until another choice results.
        for step in range(_STEPS):
            if not self._targeting.tighten(verdict, self._last, step):
                return False
            if self._choose(self._offers()).chosen != self._last:
                return True
        return False

    def loosen_targets(self, verdict: Verdict) -> bool:
        """Whether the result saved far more than was asked and another plan may lose less."""
        if self._replay is not None or not self._targeting.loosen(verdict, self._last):
            return False
        return self._choose(self._offers()).chosen != self._last

    def _offers(self) -> Options:
        """Candidates per site, timed when the gate is on; collected once, where any are needed."""
        if self._options is not None:
            return self._options
        if self._met_already():
            return Options((), ())
        self._remember_coupling()
        found = self._prepared.journal.recall("options", self._collected)
        self._options, self.timings = read_options(found, self.passes)
        return self._options

    def _collected(self) -> dict[str, Any]:
        """Candidates per site and their timings, as plain values."""
        options = collect(self._facts, self._owners)
        timings: Mapping[Key, LayerTiming] = {}
        if self._config.gated:
            self._progress.stage("measure layers")
            gated = gate(
                options,
                self._facts,
                self.passes,
                self._table,
                memo=self.memo,
                progress=self._progress.step,
            )
            options, timings = gated.options, gated.timings
            for note in self._table.notes:
                self._progress.note(note)
        elif self._config.targets or self._plans_by_data():
            options = with_savings(options)
        return stored_options(options, timings)

    def _choose(self, options: Options) -> Choice:
        sites = options.sites
        if self._config.targets:
            if self._met_already():
                return Choice((), ("the targets are met without a lossy rewrite",))
            choice = self._targeting.choice(
                sites,
                self._expected(options),
                self.timings,
                by_data=self._plans_by_data(),
            )
            self._predictions += [p for p in choice.predictions if p not in self._predictions]
            return choice
        if not self._plans_by_data():
            return by_rule(sites)
        # A single candidate per site (explicit ranks) that costs nothing needs no weighing.
        if all(c.damage <= 0 for offers in sites for c in offers):
            return by_rule(sites)
        damages = self._expected(options)
        if self._budget is not None:
            return within_budget(sites, damages, self.timings, self._budget)
        choice, self._budget = within_bound(sites, self._trial, damages, self.timings)
        return choice

    def _met_already(self) -> bool:
        """Whether targets are asked for, and met before any lossy rewrite."""
        return bool(self._config.targets) and self._targeting.met_already()

    def _expected(self, options: Options) -> Damages:
        """What every candidate is expected to do to the outputs; probed once."""
        if self._damages is None:
            self._damages = predicted(options.sites)
            if self._plans_by_data():
                self._progress.stage("probe layers")
                self._damages = self._prepared.journal.recall(
                    "probes", lambda: self._probed(options.sites)
                )
                self._progress.stage("plan")
        return self._damages

    def _probed(self, sites: Sites) -> list[list[float]]:
        with self._trial.probing() as probe:
            return expected_errors(sites, probe, progress=self._progress.step)

    def _plans_by_data(self) -> bool:
        return self._inputs.calibration is not None

    def _why_left(self) -> str:
        """Why a site without a chosen candidate stays as it is."""
        if self._config.targets:
            return "not chosen: what is needed is saved with less damage elsewhere"
        if self._plans_by_data():
            return "the accuracy bound is spent where it saves more"
        return "the pass's own rule recommends nothing cheaper here"

    def _remember_coupling(self) -> None:
        """Editors of this job need not find the coupling again."""
        if any(Need.COUPLING in owner.needs for owner in self._owners):
            with contextlib.suppress(ModelError):
                remember_coupling(self._facts, self.memo)
