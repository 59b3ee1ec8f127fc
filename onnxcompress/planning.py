"""The planner: options, gate, sensitivities and choice for one job, with what it learns on the way.

Choices are made on the calibration inputs only. The verdict may send the planner back with a
tighter bound, because networks know their training images by heart and lose less on them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from onnxcompress.analyse.facts import Facts, Need
from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.analyse.sizes import random_feeds
from onnxcompress.calibrate.inputs import Inputs
from onnxcompress.config import Config
from onnxcompress.errors import ModelError
from onnxcompress.graph.cost import Cost, model_cost
from onnxcompress.graph.digest import model_digest
from onnxcompress.graph.memo import Memo
from onnxcompress.latency.interleave import interleaved
from onnxcompress.latency.table import LatencyTable, LayerTiming, default_table_path
from onnxcompress.load.source import Source
from onnxcompress.plan.channels.known import remember_coupling
from onnxcompress.plan.contract import Candidate, Pass
from onnxcompress.plan.counted import for_counted_targets, with_or_without_branches
from onnxcompress.plan.gate import Key, gate
from onnxcompress.plan.known_moments import layer_moments, linear_among, remember_facts
from onnxcompress.plan.options import Options, collect, with_savings
from onnxcompress.plan.plan import Plan, described, read_plan
from onnxcompress.plan.probes import expected_errors, predicted
from onnxcompress.plan.reasons import left_alone
from onnxcompress.plan.replay import check_fits, needing_data
from onnxcompress.plan.search import (
    Baseline,
    Choice,
    Chosen,
    Damages,
    Sites,
    by_rule,
    for_targets,
    within_bound,
    within_budget,
)
from onnxcompress.progress import Progress
from onnxcompress.rewrite.manager import Rewritten, rewrite
from onnxcompress.rewrite.mender import Mender
from onnxcompress.rewrite.repair import Repaired
from onnxcompress.trial import CalibrationTrial
from onnxcompress.verify.accuracy import Bounds
from onnxcompress.verify.verdict import Verdict

_TIGHTEN = 0.4
_STEPS = 20
_UNGATED = "latency gate off: no rewrite was timed, and the result may be slower than the original"


class Planner:
    """Makes plans for one job; remembers timings, sensitivities, and how tight the bound is."""

    def __init__(
        self,
        facts: Facts,
        inputs: Inputs,
        config: Config,
        source: Source,
        progress: Progress,
    ) -> None:
        self._facts, self._inputs, self._config = facts, inputs, config
        self._source, self._progress = source, progress
        self._budget: float | None = None
        self._last: tuple[Candidate[Any], ...] = ()
        self._slack: dict[str, float] = {}
        self._damages: Damages | None = None
        self._options: Options | None = None
        self._baseline: Baseline | None = None
        self.timings: dict[Key, LayerTiming] = {}
        path = config.run / "latency.json" if config.run is not None else default_table_path()
        self.memo = Memo()
        self._table = LatencyTable(path, config.execution)
        self._replay: Plan | None = None
        owners: Sequence[Pass[Any]] = config.passes
        if config.plan is not None:
            self._replay, owners = read_plan(config.plan)
        self._owners = owners
        self.passes = {owner.name: owner for owner in owners}
        if self._replay is not None:
            check_fits(self._replay, facts, self.passes, has_data=inputs.calibration is not None)
            if self._replay.model_digest != model_digest(facts.model):
                progress.note("the plan was made for other weights of this architecture")
        self.mender = Mender(
            facts,
            inputs.calibration,
            self.passes,
            self.memo,
            config.execution,
            config.seed,
            config.repair,
            config.samples,
            progress,
        )
        self._trial = CalibrationTrial(
            facts.model,
            facts.total().macs,
            inputs.calibration,
            self.passes,
            self.memo,
            config,
            self.mender,
        )
        remember_facts(facts, self.memo)

    @property
    def bounds(self) -> Bounds:
        """What the result must satisfy: as asked, else as the replayed plan was asked."""
        config, replay = self._config, self._replay
        targets, gate = config.targets, config.gated
        if replay is not None and not targets:
            targets = replay.targets
            gate = replay.gate if config.gate is None else config.gate
        return Bounds(config.max_drop, config.min_snr, config.confidence, targets, gate)

    def plan(self) -> Plan:
        """A plan under everything learned so far."""
        if self._replay is not None:
            self._remember_coupling()
            needy = needing_data(self._replay, self.passes)
            # In one go: by itself, each would have the network walked over again.
            layer_moments(self._facts, linear_among(self._facts, needy))
            return self._replay
        options = self._offers()
        choice = self._choose(options)
        self._last = choice.chosen
        return Plan(
            model_digest=model_digest(self._facts.model),
            passes=described(self._owners),
            chosen=choice.chosen,
            refusals=(
                *options.refusals,
                *left_alone(options, choice.chosen, self._why_left()),
            ),
            targets=self._config.targets,
            gate=self._config.gated,
            notes=(*choice.notes, *(() if self._config.gated else (_UNGATED,))),
        )

    def repaired(self, rewritten: Rewritten) -> Repaired | None:
        """The rewritten model repaired; None where there is nothing to repair or nothing gained."""
        found = self.mender(rewritten.model, rewritten.applied)
        if found is None:
            return None
        before, after = (self._trial.error(m) for m in (rewritten.model, found.model))
        if after <= before:
            for words in found.shortages():
                self._progress.note(words)
            return found
        self._progress.note(
            f"repair is left out: the outputs' error would rise from {before:.3g} to {after:.3g}"
        )
        return None

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
        missed = {}
        for kind, fraction in self._config.targets.items():
            excess = verdict.remaining(kind) - fraction
            if excess > 0 and kind in {"latency", "size"}:
                total = self._measured_baseline().latency_ms if kind == "latency" else None
                missed[kind] = excess * (total or float(verdict.before.file_bytes))
        # A little more than was missing at first, then ever more, until another choice results.
        for step in range(_STEPS):
            for kind, excess in missed.items():
                self._slack[kind] = self._slack.get(kind, 0.0) + 1.25 * excess * 1.5**step
            if missed and self._choose(self._offers()).chosen != self._last:
                return True
        return False

    def _offers(self) -> Options:
        """Candidates per site, timed when the gate is on; collected once."""
        if self._options is not None:
            return self._options
        options = collect(self._facts, self._owners)
        self._remember_coupling()
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
            options, self.timings = gated.options, dict(gated.timings)
            for note in self._table.notes:
                self._progress.note(note)
        elif self._config.targets or self._plans_by_data():
            options = with_savings(options)
        self._options = options
        return options

    def _choose(self, options: Options) -> Choice:
        sites = options.sites
        if self._config.targets:
            return self._for_targets(options, self._expected(options))
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

    def _for_targets(self, options: Options, damages: Damages) -> Choice:
        """The least damage that meets the targets."""
        targets, baseline = self._config.targets, self._measured_baseline()
        if not any(self.passes[o[0].site.pass_name].works_together for o in options.sites):
            return for_targets(
                options.sites, targets, baseline, self.timings, damages, slack=self._slack
            )

        def choose(sites: Sites, weighed: Damages) -> Choice:
            return for_counted_targets(
                sites, targets, baseline, self.timings, weighed, slack=self._slack, count=self._cost
            )

        if not self._plans_by_data():
            return choose(options.sites, damages)
        return with_or_without_branches(options.sites, damages, choose, self._trial)

    def _cost(self, chosen: Chosen) -> Cost:
        """What the network costs after a choice, counted."""
        model = rewrite(self._facts.model, chosen, self.passes, memo=self.memo).model
        return model_cost(model, shapes_for(model, self._facts.sizes))

    def _expected(self, options: Options) -> Damages:
        """What every candidate is expected to do to the outputs; probed once."""
        if self._damages is None:
            self._damages = predicted(options.sites)
            if self._plans_by_data():
                self._progress.stage("probe layers")
                self._damages = expected_errors(
                    options.sites, self._trial, progress=self._progress.step
                )
                self._progress.stage("plan")
        return self._damages

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

    def _measured_baseline(self) -> Baseline:
        if self._baseline is None:
            latency = None
            if "latency" in self._config.targets:
                self._progress.stage("measure the original")
                feeds = random_feeds(self._source.model, self._facts.sizes, seed=self._config.seed)
                latency = interleaved([self._source.model], feeds, self._config.execution)[0].p50
            self._baseline = Baseline(self._facts.total(), self._source.file_bytes, latency)
        return self._baseline
