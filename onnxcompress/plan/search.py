"""From options to a choice: under targets, under an accuracy bound, or by the passes' own rules.

What a choice does to accuracy is not known here; it is asked through `Trial`, a call that rewrites
and evaluates on calibration inputs. Damages are what probes say that each candidate does to the
outputs (`plan/probes.py`), and are added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from onnxcompress.errors import BoundError
from onnxcompress.graph.cost import Cost
from onnxcompress.latency.table import LayerTiming
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.gate import Key, candidate_key
from onnxcompress.plan.knapsack import Solution, least_damage, most_saved

Chosen = tuple[Candidate[Any], ...]
Sites = Sequence[Sequence[Candidate[Any]]]
Damages = Sequence[Sequence[float]]
"""By site and candidate, the relative squared error of the outputs that is expected of it."""

_BISECTIONS = 7


@dataclass(frozen=True)
class Outcome:
    """What a trial found.

    Attributes:
        ok: whether the accuracy bound held on the calibration inputs.
        error: relative squared error of the outputs.
        words: the finding in one sentence.
    """

    ok: bool
    error: float
    words: str


class Trial(Protocol):
    """Rewrites the model by a choice and looks at its outputs on calibration inputs."""

    def __call__(self, chosen: Chosen) -> Outcome:
        """Try a choice."""


@dataclass(frozen=True)
class Baseline:
    """What the original costs: counted cost, size of the file, latency if it was measured."""

    cost: Cost
    file_bytes: int
    latency_ms: float | None = None

    def total(self, kind: str) -> float:
        """The original's own figure, by kind of target.

        Raises:
            BoundError: its latency was not measured.
        """
        match kind:
            case "latency":
                if self.latency_ms is None:
                    raise BoundError("a latency target needs the original's latency measured")
                return self.latency_ms
            case "macs":
                return float(self.cost.macs)
            case "params":
                return float(self.cost.params)
            case _:
                return float(self.file_bytes)


@dataclass(frozen=True)
class Prediction:
    """What one choice was expected to leave of the network, and what was measured.

    Attributes:
        expected: by kind of target, fraction of the original; from the sum of what the candidates
            save, with what earlier measurements corrected.
        measured: the same of the rewritten network.
        corrections: how many measurements the expectation was corrected by.
    """

    expected: Mapping[str, float]
    measured: Mapping[str, float]
    corrections: int


@dataclass(frozen=True)
class Choice:
    """A choice and how it was found.

    Attributes:
        chosen: the candidates.
        notes: how they were found, in words.
        meets: whether it meets the targets, as far as is known before it is measured.
        predictions: choices that were measured on the way.
    """

    chosen: Chosen
    notes: tuple[str, ...]
    meets: bool = True
    predictions: tuple[Prediction, ...] = ()


def by_rule(sites: Sites) -> Choice:
    """Take what each pass's own rule recommends; for when there is nothing to plan by."""
    barred = set(conflicts(sites))
    taken: list[int] = []
    for at, offers in enumerate(sites):
        if any(c.recommended for c in offers) and not any((i, at) in barred for i in taken):
            taken.append(at)
    chosen = tuple(c for at in taken for c in sites[at] if c.recommended)
    return Choice(chosen, ("each pass's own rule decided: no data and no target to plan by",))


def conflicts(sites: Sites, *, together: bool = False) -> list[tuple[int, int]]:
    """Pairs of sites that are not both to be rewritten.

    Two passes would change one node, or one candidate works on nodes that the other removes.

    Args:
        sites: candidates per site.
        together: whether a pass may take channels from a node that another can do with what is
            left of. Their savings overlap, which a sum does not see.
    """
    readers: dict[str, set[int]] = {}
    firm: dict[str, set[int]] = {}
    for at, offers in enumerate(sites):
        for name in {name for c in offers for name in set(c.touches) - set(c.shifts)}:
            readers.setdefault(name, set()).add(at)
        for name in {name for c in offers for name in set(c.touches) - set(c.narrows)}:
            firm.setdefault(name, set()).add(at)
    owners = [offers[0].site.pass_name for offers in sites]
    follows = [all(candidate.follows for candidate in offers) for offers in sites]

    def agree(name: str, one: int, other: int) -> bool:
        return together and any(
            follows[second] and first not in firm.get(name, ())
            for first, second in ((one, other), (other, one))
        )

    pairs = {
        (one, other)
        for name, together in readers.items()
        for one in together
        for other in together
        if one < other and owners[one] != owners[other] and not agree(name, one, other)
    }
    for at, offers in enumerate(sites):
        gone = {name for candidate in offers for name in candidate.removes}
        near = {other for name in gone for other in readers.get(name, ())} - {at}
        pairs |= {
            (min(at, other), max(at, other))
            for other in near
            if any(set(candidate.touches) <= gone for candidate in sites[other])
        }
    return sorted(pairs)


def for_targets(
    sites: Sites,
    targets: Mapping[str, float],
    baseline: Baseline,
    timings: Mapping[Key, LayerTiming],
    damages: Damages,
    *,
    demands: Mapping[str, float] | None = None,
    together: bool = False,
) -> Choice:
    """Meet every target with the least total damage.

    Args:
        sites: candidates per site.
        targets: fraction of the original that may remain, per kind.
        baseline: what the original costs.
        timings: measured layer timings; needed for a latency target.
        damages: expected error of every candidate.
        demands: per kind, the sum of savings that meets the target; as counted if left out.
        together: whether widths and ranks may meet in one layer.

    Returns:
        A choice that meets the targets; or, where none does, the one that saves the most.
    """
    saved = {kind: savings(sites, kind, timings) for kind in targets}
    totals = {kind: baseline.total(kind) for kind in targets}
    if demands is None:
        demands = {kind: totals[kind] * (1.0 - fraction) for kind, fraction in targets.items()}
    barred = conflicts(sites, together=together)
    found = least_damage(damages, saved, demands, conflicts=barred)
    if found is None:
        # Out of reach: the most that can be saved is carried out all the same, so that the
        # verdict describes a real best attempt.
        joint = [
            [sum(saved[kind][i][c] / totals[kind] for kind in targets) for c in range(len(offers))]
            for i, offers in enumerate(sites)
        ]
        most = most_saved(damages, joint, None, conflicts=barred)
        note = f"{_words(targets)} is out of reach: this saves the most{_gap(most)}"
        return Choice(_picked(sites, most), (note,), meets=False)
    note = f"least predicted damage that meets {_words(targets)}{_gap(found)}"
    return Choice(_picked(sites, found), (note,))


def within_bound(
    sites: Sites,
    trial: Trial,
    damages: Damages,
    timings: Mapping[Key, LayerTiming],
) -> tuple[Choice, float]:
    """Save the most that the accuracy bound allows, judged on the calibration inputs.

    The budget of damage is found by bisection; each step is a real rewrite and a real evaluation.

    Returns:
        The choice, and the budget of damage that it was made within.
    """
    everything = within_budget(sites, damages, timings, None)
    unit = _UNITS[_kind(sites, timings)]
    high = _spent(sites, damages, everything.chosen)
    if not everything.chosen or trial(everything.chosen).ok:
        return replace(everything, notes=(f"everything on offer saves {unit} and holds",)), high
    best, low, tried = Choice((), ()), 0.0, 1
    budget = high / 4.0
    for _ in range(_BISECTIONS):
        attempt = within_budget(sites, damages, timings, budget)
        tried += bool(attempt.chosen)
        if not attempt.chosen or trial(attempt.chosen).ok:
            low, best = budget, attempt
        else:
            high = budget
        # The bound is met over orders of magnitude of damage, so the middle is geometric.
        budget = (low * high) ** 0.5 if low > 0 else high / 8.0
    note = f"most {unit} saved within the bound, after {tried} evaluations"
    return replace(best, notes=(note,)), low


def within_budget(
    sites: Sites,
    damages: Damages,
    timings: Mapping[Key, LayerTiming],
    budget: float | None,
) -> Choice:
    """Save the most while predicted damage stays within `budget`.

    Saved milliseconds count where layers were timed, else MACs; bytes where all there is only
    changes how constants are stored.
    """
    kind = _kind(sites, timings)
    found = most_saved(
        damages,
        savings(sites, kind, timings),
        budget,
        conflicts=conflicts(sites),
    )
    limit = "any damage" if budget is None else f"a damage of {budget:.3g}"
    note = f"most {_UNITS[kind]} saved within {limit}{_gap(found)}"
    return Choice(_picked(sites, found), (note,))


_UNITS = {"latency": "milliseconds", "macs": "MACs", "size": "bytes"}


def _kind(sites: Sites, timings: Mapping[Key, LayerTiming]) -> str:
    """What is to be saved when nothing was asked for."""
    if all(candidate.stored for offers in sites for candidate in offers):
        return "size"
    return "latency" if timings else "macs"


def _spent(sites: Sites, damage: Sequence[Sequence[float]], chosen: Chosen) -> float:
    taken = {candidate_key(candidate) for candidate in chosen}
    return sum(
        value
        for offers, values in zip(sites, damage, strict=True)
        for candidate, value in zip(offers, values, strict=True)
        if candidate_key(candidate) in taken
    )


def savings(sites: Sites, kind: str, timings: Mapping[Key, LayerTiming]) -> list[list[float]]:
    """What every candidate saves by itself, in the unit of a kind of target.

    Args:
        sites: candidates per site.
        kind: latency (milliseconds), macs, params or size (bytes).
        timings: measured layer timings; what was not timed saves no time.
    """

    def one(candidate: Candidate[Any]) -> float:
        match kind:
            case "latency":
                timing = timings.get(candidate_key(candidate))
                return timing.saved_ms if timing is not None else 0.0
            case "macs":
                return float(candidate.saving.macs)
            case "params":
                return float(candidate.saving.params)
            case _:
                return float(candidate.saving.weight_bytes)

    return [[one(candidate) for candidate in offers] for offers in sites]


def _picked(sites: Sites, found: Solution) -> Chosen:
    return tuple(
        offers[index] for offers, index in zip(sites, found.picks, strict=True) if index is not None
    )


def _gap(found: Solution) -> str:
    """How near to the best the solver's answer is, in words."""
    return f" (solver's gap {found.gap:.1g})"


def _words(targets: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} <= {fraction:g}" for kind, fraction in targets.items())
