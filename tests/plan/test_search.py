"""What is chosen under targets, under an accuracy bound, and by the passes' own rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from onnxcompress.errors import BoundError
from onnxcompress.graph.cost import Cost
from onnxcompress.latency.table import LayerTiming
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.gate import candidate_key
from onnxcompress.plan.probes import predicted
from onnxcompress.plan.search import (
    Baseline,
    Outcome,
    by_rule,
    conflicts,
    for_targets,
    within_bound,
    within_budget,
)

Sites = list[list[Candidate[Any]]]
BASELINE = Baseline(Cost(10_000, 5_000, 20_000), file_bytes=24_000, latency_ms=10.0)


@pytest.fixture
def sites(offer: Callable[..., Candidate[Any]]) -> Sites:
    """Three layers; what they save in MACs, parameters and bytes is not proportional."""
    return [
        [
            offer("a", 0, (0, 0, 0), 0.0),
            offer("a", 1, (300, 50, 200), 0.10, recommended=True),
            offer("a", 2, (600, 90, 360), 0.40),
        ],
        [offer("b", 1, (500, 200, 800), 0.20), offer("b", 2, (700, 250, 1000), 0.30)],
        [offer("c", 1, (100, 400, 1600), 0.05, recommended=True)],
    ]


def scaled(sites: Sites, *factors: float) -> list[list[float]]:
    """Predicted damages, where those of some layers count more."""
    return [
        [factor * damage for damage in damages]
        for damages, factor in zip(predicted(sites), factors, strict=True)
    ]


def names(chosen: tuple[Candidate[Any], ...]) -> list[str]:
    return [f"{c.site.node}{c.setting.width}" for c in chosen]


def test_by_rule_takes_what_is_recommended(sites: Sites) -> None:
    assert names(by_rule(sites).chosen) == ["a1", "c1"]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        # MACs: 1000 of 10000 must go. a1 + b2 (0.40) beats a2 + b1 (0.60).
        ({"macs": 0.9}, ["a1", "b2"]),
        ({"macs": 0.95}, ["b1"]),
        # Parameters: 400 of 5000. c1 alone.
        ({"params": 0.92}, ["c1"]),
        # Bytes: 2400 of 24000. c1 + b1.
        ({"size": 0.9}, ["b1", "c1"]),
        # Both: 900 MACs and 500 parameters; a1 + b2 + c1 saves 1100 and 700.
        ({"macs": 0.91, "params": 0.9}, ["a1", "b1", "c1"]),
    ],
)
def test_targets(sites: Sites, targets: dict[str, float], expected: list[str]) -> None:
    found = for_targets(sites, targets, BASELINE, {}, predicted(sites))
    assert names(found.chosen) == expected


def test_sensitivity_decides_where_damage_is_done(sites: Sites) -> None:
    """600 of 10000 MACs must go: b1 + c1 (0.25), or a2 (0.40) where an error in b costs more."""
    found = for_targets(sites, {"macs": 0.94}, BASELINE, {}, scaled(sites, 1, 100, 1))
    assert names(found.chosen) == ["a2"]
    found = for_targets(sites, {"macs": 0.94}, BASELINE, {}, scaled(sites, 100, 1, 1))
    assert names(found.chosen) == ["b1", "c1"]


def test_a_demand_takes_the_place_of_what_is_counted(sites: Sites) -> None:
    damages = predicted(sites)
    assert names(for_targets(sites, {"size": 0.95}, BASELINE, {}, damages).chosen) == ["c1"]
    more = for_targets(sites, {"size": 0.95}, BASELINE, {}, damages, demands={"size": 1700.0})
    assert names(more.chosen) == ["a1", "c1"]


def test_latency_counts_measured_milliseconds(sites: Sites) -> None:
    timings = {
        candidate_key(candidate): LayerTiming((5.0, 5.0, 5.0), (after, after, after))
        for candidate, after in zip(
            [c for offers in sites for c in offers], [5.0, 4.9, 4.8, 2.0, 4.0, 3.0], strict=True
        )
    }
    # 4 of 10 ms must go: only b1 (3 ms) with c1 (2 ms) get there.
    found = for_targets(sites, {"latency": 0.6}, BASELINE, timings, predicted(sites))
    assert names(found.chosen) == ["b1", "c1"]
    unmeasured = Baseline(BASELINE.cost, BASELINE.file_bytes)
    with pytest.raises(BoundError, match="latency"):
        for_targets(sites, {"latency": 0.6}, unmeasured, timings, predicted(sites))


def test_out_of_reach_still_saves_the_most(sites: Sites) -> None:
    found = for_targets(sites, {"macs": 0.1}, BASELINE, {}, predicted(sites))
    assert names(found.chosen) == ["a2", "b2", "c1"]
    assert "out of reach" in found.notes[0]


def test_budget(sites: Sites) -> None:
    damages = predicted(sites)
    assert names(within_budget(sites, damages, {}, 0.0).chosen) == []
    assert names(within_budget(sites, damages, {}, 0.31).chosen) == ["a1", "b1"]
    assert names(within_budget(sites, damages, {}, 0.36).chosen) == ["a1", "b1", "c1"]
    assert names(within_budget(sites, scaled(sites, 1, 10, 1), {}, 0.46).chosen) == ["a2", "c1"]


class Bound:
    """A trial that holds up to a total damage; counts what it was asked."""

    def __init__(self, limit: float) -> None:
        self.limit, self.asked = limit, 0

    def __call__(self, chosen: tuple[Candidate[Any], ...]) -> Outcome:
        self.asked += 1
        spent = sum(candidate.damage for candidate in chosen)
        return Outcome(spent <= self.limit, spent, "")


def ladder(offer: Callable[..., Candidate[Any]]) -> Sites:
    """40 alike layers; damages over five orders of magnitude."""
    return [
        [offer(f"n{i}", w, (100 + 20 * w, 1, 4), 1e-6 * 10**w) for w in range(6)] for i in range(40)
    ]


@pytest.mark.parametrize("limit", [1e-4, 3e-3, 0.05, 0.8])
def test_within_bound(offer: Callable[..., Candidate[Any]], limit: float) -> None:
    """What comes out holds, was tried, and uses the bound up to a factor."""
    sites, trial = ladder(offer), Bound(limit)
    choice, budget = within_bound(sites, trial, predicted(sites), {})
    spent = sum(candidate.damage for candidate in choice.chosen)
    assert spent <= limit
    assert spent <= budget * (1 + 1e-9)
    assert spent >= 0.2 * limit
    assert trial.asked <= 8
    # The budget can be tightened and still makes sense.
    assert names(within_budget(sites, predicted(sites), {}, budget).chosen) == names(choice.chosen)


def test_everything_is_taken_where_it_holds(sites: Sites) -> None:
    trial = Bound(10.0)
    choice, _ = within_bound(sites, trial, predicted(sites), {})
    assert names(choice.chosen) == ["a2", "b2", "c1"]
    assert trial.asked == 1


def test_nothing_is_taken_where_nothing_holds(sites: Sites) -> None:
    choice, budget = within_bound(sites, Bound(-1.0), predicted(sites), {})
    assert choice.chosen == ()
    assert budget >= 0.0


def test_no_sites_at_all() -> None:
    trial = Bound(1.0)
    assert within_bound([], trial, [], {})[0].chosen == ()
    assert trial.asked == 0
    assert by_rule([]).chosen == ()
    assert for_targets([], {"macs": 0.5}, BASELINE, {}, []).chosen == ()


def placed(
    made: Candidate[Any], touches: tuple[str, ...], removes: tuple[str, ...] = ()
) -> Candidate[Any]:
    return dataclasses.replace(made, touches=touches, removes=removes)


@pytest.fixture
def crowded(offer: Callable[..., Candidate[Any]]) -> Sites:
    """Groups 'a' and 'b' of one pass share node n; 'c' of another works on n, too.

    'd' removes m, on which 'e' works and nothing else; 'f' works on m and on k.
    """
    return [
        [placed(offer("a", 1, (100, 1, 4), 0.1, recommended=True), ("a", "n"))],
        [
            placed(offer("b", 0, (0, 0, 0), 0.0), ("b",)),
            placed(offer("b", 1, (200, 1, 4), 0.2, recommended=True), ("b", "n")),
        ],
        [placed(offer("n", 1, (400, 1, 4), 0.1, recommended=True, name="other"), ("n",))],
        [placed(offer("d", 1, (500, 1, 4), 0.2, recommended=True), ("d", "m"), ("m",))],
        [placed(offer("m", 1, (300, 1, 4), 0.1, recommended=True), ("m",))],
        [placed(offer("k", 1, (100, 1, 4), 0.1, recommended=True), ("m", "k"))],
    ]


def test_conflicts(crowded: Sites) -> None:
    """One pass shares nodes with itself, not with another; what is removed is not worked on."""
    assert conflicts(crowded) == [(0, 2), (1, 2), (3, 4)]
    assert conflicts(crowded[:2]) == []
    assert conflicts([]) == []


def test_choices_keep_the_peace(crowded: Sites) -> None:
    """By rule the first has it; under a target or a budget the better one does."""
    ones = predicted(crowded)
    assert names(by_rule(crowded).chosen) == ["a1", "b1", "d1", "k1"]
    # All that can be saved: n (400) beats a and b (300), and d (500) beats m (300).
    assert names(within_budget(crowded, ones, {}, None).chosen) == ["n1", "d1", "k1"]
    found = for_targets(crowded, {"macs": 0.9}, BASELINE, {}, ones)
    assert names(found.chosen) == ["n1", "d1", "k1"]
    # 700 of 10000 MACs: n and m do a damage of 0.2, and d with another does 0.3.
    found = for_targets(crowded, {"macs": 0.93}, BASELINE, {}, ones)
    assert names(found.chosen) == ["n1", "m1"]
