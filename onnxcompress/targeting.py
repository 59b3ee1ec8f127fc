"""Plans that meet targets: what is left of the network is measured, not added up.

Branches are weighed along a path, on which the network is repaired after every removal; everything
else by the errors that probes expect. How much of the path a plan takes, trials decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from onnxcompress.branch_order import BranchOrder
from onnxcompress.latency.table import LayerTiming
from onnxcompress.margins import Margins
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.correction import Correction
from onnxcompress.plan.gate import Key
from onnxcompress.plan.measured import for_measured_targets
from onnxcompress.plan.rivals import Rival, Tournament, Way, spread
from onnxcompress.plan.search import Choice, Chosen, Damages, Sites, conflicts, savings
from onnxcompress.preparation import Prepared
from onnxcompress.progress import Progress
from onnxcompress.remainder import Remainder
from onnxcompress.trial import CalibrationTrial
from onnxcompress.verify.verdict import Verdict

_SMALL = 1e-3
"""Relative squared error of the outputs below which no other plan is worth its trial."""

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
        self._margins = Margins(self._targets)
        self._slopes: dict[tuple[str, bool, str], float] = {}
        self._order = BranchOrder(remains, trial, prepared.journal, progress)
        self._choice: Choice | None = None
        self._way: Way | None = None
        self._lean = 0
        self._reopened = False
        self._findings: tuple[str, ...] = ()
        self._seen: dict[Chosen, Rival] = {}

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
        """The least damage that meets the targets; the same until a verdict asks for another.

        Args:
            sites: candidates per site.
            damages: expected error of every candidate.
            timings: measured layer timings.
            by_data: whether there are inputs to try choices on.
        """
        if self._choice is None:
            if by_data:
                self._choice = self._tried_choice(sites, damages, timings)
            else:
                self._choice = self._measured_choice(sites, damages, timings, (), Way())
        return self._choice

    def _tried_choice(
        self, sites: Sites, damages: Damages, timings: Mapping[Key, LayerTiming]
    ) -> Choice:
        """Of the choices of several ways the one that errs least in trials."""
        branches = [at for at, offers in enumerate(sites) if any(c.removes for c in offers)]
        barred = conflicts(sites)
        rest = [at for at in range(len(sites)) if at not in branches]

        def choose(way: Way) -> Choice:
            gone = self._order.path[: way.gone]
            barring = {at for at in branches if any(c in gone for c in sites[at])}
            out = {other for pair in barred for other in pair if barring & set(pair)}
            at_hand = range(len(sites)) if way.free else [at for at in rest if at not in out]
            offers, errors = _allowed(sites, damages, at_hand, way)
            return self._measured_choice(offers, errors, timings, gone, way)

        def tournament() -> Tournament:
            return Tournament(choose, self._trial, self._judge, self._progress.step)

        if self._way is not None:
            near = tournament()
            for way in self._near(self._way):
                near.enter(way)
            self._readmit(near)
            if near.leader.choice.meets or self._reopened:
                return self._taken(near)
            # What was asked more for is out of this way's reach; another may have it.
            self._reopened = True
        every = tournament()
        first = self._first_ways(every, sites, damages, timings)
        self._progress.stage("weigh plans")
        every.expect(8)
        others = list(self._other_ways(first, sites, damages, timings, rest))
        if others and ("latency" not in self._targets or every.error(first) > _SMALL):
            for way in others:
                every.enter(way)
            if every.leader.way != first.way:
                every.beside(every.leader, len(self._order.path))
        return self._taken(every)

    def _readmit(self, tournament: Tournament) -> None:
        """Let those that lost before take part again, where they save enough for what is asked now.

        They were tried already, and what is timed afresh is cheap; a plan that is made again under
        a tighter limit may lose more than they do.
        """
        for rival in self._seen.values():
            if rival.choice.chosen and self._enough(self._remains(rival.choice.chosen)):
                tournament.admit(replace(rival, choice=replace(rival.choice, meets=True)))

    def _taken(self, tournament: Tournament) -> Choice:
        """The best choice, in whose way later ones are made; with what was found of the others."""
        winner = tournament.winner()
        self._seen.update((rival.choice.chosen, rival) for rival in tournament.every)
        self._way = winner.way
        self._findings = (*self._findings, *tournament.findings)
        return replace(winner.choice, notes=(*winner.choice.notes, *self._findings))

    def _near(self, way: Way) -> list[Way]:
        """A way, and the same with one branch more or less, where that is what is asked for."""
        gone = min(max(0, way.gone + self._lean), len(self._order.path))
        return [way] if gone == way.gone else [way, replace(way, gone=gone)]

    def _first_ways(
        self,
        tournament: Tournament,
        sites: Sites,
        damages: Damages,
        timings: Mapping[Key, LayerTiming],
    ) -> Rival:
        """How many branches go: by a path where time is asked for, else where that is cheap."""
        if not any(c.removes for offers in sites for c in offers):
            return tournament.enter(Way())
        if "latency" not in self._targets:
            # What a branch is good for is time; at equal MACs it goes where probes call it cheap.
            tournament.enter(Way())
            tournament.enter(Way(free=True))
            if tournament.leader.choice.meets:
                return tournament.leader
        self._order.extend(sites, damages, timings, self._margins.limits)
        self._progress.stage("weigh plans")
        return tournament.along_path(len(self._order.path))

    def _other_ways(
        self,
        first: Rival,
        sites: Sites,
        damages: Damages,
        timings: Mapping[Key, LayerTiming],
        rest: list[int],
    ) -> Iterator[Way]:
        """What else to try in place of what the best so far takes besides branches."""
        filling = [c for c in first.choice.chosen if not c.removes]
        if not filling:
            return
        owners = dict.fromkeys(sites[at][0].site.pass_name for at in rest)
        if len(owners) > 1 and "latency" in self._targets:
            yield from (replace(first.way, only=name) for name in owners)
        if len(owners) > 1 and ("latency" in self._targets or not first.choice.meets):
            yield replace(first.way, together=True)
        gone = self._order.path[: first.way.gone]
        demands = {
            kind: demand / self._slope(first.way, kind)
            - (sum(savings([gone], kind, timings)[0]) if gone else 0.0)
            for kind, demand in self._remains.demands(self._margins.limits).items()
        }
        places = range(len(sites)) if first.way.free else rest
        offers, errors = _allowed(sites, damages, places, Way())
        most = spread(offers, errors, demands, timings)
        expected = {
            candidate: error
            for candidates, values in zip(offers, errors, strict=True)
            for candidate, error in zip(candidates, values, strict=True)
        }
        if most is not None and any(expected[candidate] > most for candidate in filling):
            yield replace(first.way, most=most)

    def tighten(self, verdict: Verdict, chosen: Chosen, step: int) -> bool:
        """Keep farther below what was missed; False where nothing was.

        Args:
            verdict: of the last result.
            chosen: what that was made by.
            step: how often this was asked for the same verdict.
        """
        missed = self._margins.missed(verdict)
        if not missed:
            return False
        if not step:
            self._remains.believe(verdict.remaining("latency"), chosen)
        self._margins.widen(missed, step)
        self._choice, self._lean = None, 1
        return True

    def loosen(self, verdict: Verdict, chosen: Chosen) -> bool:
        """Whether the result ended far below every target; times are then taken afresh."""
        if any(verdict.remaining(k) > fraction - _FAR for k, fraction in self._targets.items()):
            return False
        self._remains.believe(verdict.remaining("latency"), chosen)
        self._choice, self._lean = None, -1
        return bool(self._targets)

    def _measured_choice(
        self,
        sites: Sites,
        damages: Damages,
        timings: Mapping[Key, LayerTiming],
        given: Chosen,
        way: Way,
    ) -> Choice:
        known = {
            kind: Correction(self._remains.head_start.get(kind, 0.0), self._slope(way, kind))
            for kind in self._targets
        }
        choice = for_measured_targets(
            sites,
            self._targets,
            self._remains.baseline,
            timings,
            damages,
            known=known,
            margins=self._margins.kept,
            measure=self._remains,
            given=given,
            together=way.together,
        )
        for kind, correction in known.items():
            self._slopes[way.only, way.together, kind] = correction.slope
        return choice

    def _slope(self, way: Way, kind: str) -> float:
        """What the network saves for a unit in sum, by what plans of the same passes did."""
        return self._slopes.get((way.only, way.together, kind), 1.0)

    def _enough(self, remains: Mapping[str, float]) -> bool:
        """Whether what remains meets every target, and by as much as is kept below it."""
        total = self._remains.baseline.total
        return all(
            remains[kind] <= limit * total(kind) for kind, limit in self._margins.limits.items()
        )


def _allowed(
    sites: Sites, damages: Damages, places: Iterable[int], way: Way
) -> tuple[list[list[Candidate[Any]]], list[list[float]]]:
    """The candidates that a way may take besides its branches, and their errors."""
    offers: list[list[Candidate[Any]]] = []
    errors: list[list[float]] = []
    for at in places:
        pairs = [
            (candidate, error)
            for candidate, error in zip(sites[at], damages[at], strict=True)
            if way.only in {"", candidate.site.pass_name}
            if way.most is None or error <= way.most
        ]
        if pairs:
            offers.append([candidate for candidate, _ in pairs])
            errors.append([error for _, error in pairs])
    return offers, errors
