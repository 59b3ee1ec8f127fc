"""Targets met by measuring: savings that do not add up, and coarse choices that save too much."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from onnxcompress.graph.cost import Cost
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.measured import for_measured_targets, with_or_without_branches
from onnxcompress.plan.probes import predicted
from onnxcompress.plan.search import Baseline, Choice, Outcome

Offer = Callable[..., Candidate[Any]]
Sites = list[list[Candidate[Any]]]
BASELINE = Baseline(Cost(10_000, 5_000, 20_000), file_bytes=24_000)


def names(chosen: Sequence[Candidate[Any]]) -> list[str]:
    return [f"{c.site.node}{c.setting.width}" for c in chosen]


def measured(
    sites: Sites, target: float, *, share: float = 1.0, margin: float = 0.0, start: float = 0.0
) -> tuple[Choice, list[float]]:
    """Choices whose real saving is a share of the sum; and what was measured on the way."""
    seen: list[float] = []

    def measure(chosen: Sequence[Candidate[Any]]) -> dict[str, float]:
        seen.append(10_000 + start - share * sum(c.saving.macs for c in chosen))
        return {"macs": seen[-1]}

    choice = for_measured_targets(
        sites,
        {"macs": target},
        BASELINE,
        {},
        predicted(sites),
        slack={"macs": start},
        margins={"macs": margin},
        measure=measure,
    )
    return choice, seen


@pytest.fixture
def fine(offer: Offer) -> Sites:
    """20 sites with 10 candidates each: a choice can come close to any target."""
    return [
        [offer(f"n{i}", w, (50 * w, 5 * w, 20 * w), 0.001 * w * w) for w in range(1, 11)]
        for i in range(20)
    ]


@pytest.mark.parametrize("share", [1.0, 0.8, 1.3])
@pytest.mark.parametrize("target", [0.7, 0.5])
def test_met_and_not_far_below(fine: Sites, target: float, share: float) -> None:
    """Whether savings are over- or underestimated, the target is met within one percent."""
    choice, seen = measured(fine, target, share=share)
    saved = share * sum(c.saving.macs for c in choice.chosen)
    assert -1e-6 <= saved - 10_000 * (1 - target) <= 100.0
    assert len(seen) <= 10


def test_one_coarse_candidate(offer: Offer) -> None:
    """It saves far more than is needed, and nothing else does: better too much than nothing."""
    choice, _ = measured([[offer("branch", 0, (9000, 100, 400), 0.1)]], 0.5)
    assert names(choice.chosen) == ["branch0"]


def test_what_met_the_target_is_not_given_up(offer: Offer) -> None:
    """After the coarse one, less is demanded; what then misses must not take its place."""
    sites = [
        [offer("a", 1, (2000, 100, 400), 0.01)],
        [offer("b", 1, (9000, 100, 400), 0.1)],
    ]
    choice, _ = measured(sites, 0.5)
    saved = sum(c.saving.macs for c in choice.chosen)
    assert saved >= 5000


def test_out_of_reach(offer: Offer) -> None:
    """The most that can be saved is carried out all the same."""
    sites = [[offer("a", 1, (1000, 1, 4), 0.1), offer("a", 2, (2000, 1, 4), 0.2)]]
    choice, _ = measured(sites, 0.5)
    assert names(choice.chosen) == ["a2"]


@pytest.mark.parametrize("margin", [0.0, 0.02])
def test_a_margin_and_a_head_start(fine: Sites, margin: float) -> None:
    """What exact rewrites cost beforehand is saved as well, and a margin is kept."""
    choice, _ = measured(fine, 0.6, margin=margin, start=800.0)
    saved = sum(c.saving.macs for c in choice.chosen)
    assert -1e-6 <= saved - 800.0 - 10_000 * (0.4 + margin) <= 100.0


def test_several_targets_at_once(fine: Sites) -> None:
    """One that adds up and one that does not: both are met, the tighter one closely."""

    def measure(chosen: Sequence[Candidate[Any]]) -> dict[str, float]:
        saved = sum((c.saving for c in chosen), Cost())
        return {"macs": 10_000.0 - saved.macs, "size": 24_000.0 - 0.7 * saved.weight_bytes}

    choice = for_measured_targets(
        fine,
        {"macs": 0.9, "size": 0.95},
        BASELINE,
        {},
        predicted(fine),
        slack={},
        margins={},
        measure=measure,
    )
    left = measure(choice.chosen)
    assert choice.meets
    assert left["macs"] <= 9_000
    assert 0.94 * 24_000 <= left["size"] <= 0.95 * 24_000


@pytest.mark.parametrize("branch_error", [0.1, 0.9])
def test_a_trial_decides_on_branches(offer: Offer, branch_error: float) -> None:
    branch = dataclasses.replace(offer("branch", 0, (9000, 1, 4), 0.0), removes=("x",))
    sites = [[branch], [offer("a", 1, (8000, 1, 4), 0.5)]]
    asked: list[list[str]] = []

    def choose(given: Any, damages: Any) -> Choice:
        assert [len(offers) for offers in given] == [len(errors) for errors in damages]
        return Choice(tuple(offers[0] for offers in given)[:1], ())

    def trial(chosen: Any, *, probe: bool = False) -> Outcome:
        asked.append(names(chosen))
        return Outcome(True, branch_error if chosen[0] is branch else 0.5, "")

    found = with_or_without_branches(sites, predicted(sites), choose, trial)
    assert names(found.chosen) == (["branch0"] if branch_error < 0.5 else ["a1"])
    assert asked == [["branch0"], ["a1"]]
    # Where no branch is chosen there is nothing to weigh.
    asked.clear()
    found = with_or_without_branches(sites[1:], predicted(sites[1:]), choose, trial)
    assert (names(found.chosen), asked) == (["a1"], [])


def test_a_target_that_only_branches_reach(offer: Offer) -> None:
    """However much better the careful choice looks, it is no choice if it misses the target."""
    narrow = [offer("n", 1, (500, 50, 200), 0.1)]
    branch = [dataclasses.replace(offer("b", 0, (4000, 400, 1600), 0.5), removes=("b",))]

    def choose(sites: Any, damages: Any) -> Choice:
        def measure(chosen: Sequence[Candidate[Any]]) -> dict[str, float]:
            return {"macs": 10_000.0 - sum(c.saving.macs for c in chosen)}

        return for_measured_targets(
            sites, {"macs": 0.7}, BASELINE, {}, damages, slack={}, margins={}, measure=measure
        )

    def trial(chosen: Sequence[Candidate[Any]], *, probe: bool = False) -> Outcome:
        removes = any(c.removes for c in chosen)
        return Outcome(ok=True, error=9.0 if removes else 0.1, words="")

    assert not choose([narrow], predicted([narrow])).meets
    found = with_or_without_branches([narrow, branch], predicted([narrow, branch]), choose, trial)
    assert found.meets
    assert names(found.chosen) == ["b0"]
