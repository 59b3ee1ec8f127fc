"""Targets met by measuring: savings that do not add up, and coarse choices that save too much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from onnxcompress.graph.cost import Cost
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.correction import Correction
from onnxcompress.plan.measured import for_measured_targets
from onnxcompress.plan.probes import predicted
from onnxcompress.plan.search import Baseline, Choice

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
        known={"macs": Correction(start)},
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


@pytest.mark.parametrize("share", [1.0, 0.8, 1.3, 3.0, 0.6])
@pytest.mark.parametrize("target", [0.7, 0.5])
def test_met_and_not_far_below(fine: Sites, target: float, share: float) -> None:
    """Whether savings are over- or underestimated, the target is met within one percent."""
    choice, seen = measured(fine, target, share=share)
    saved = share * sum(c.saving.macs for c in choice.chosen)
    assert -1e-6 <= saved - 10_000 * (1 - target) <= 100.0
    assert len(seen) <= 10


def test_sums_in_another_unit(offer: Offer) -> None:
    """Everything on offer seems too little, but saves nearly all: then less of it is enough."""
    sites = [
        [offer(f"n{i}", w, (20 * w, 5 * w, 20 * w), 0.001 * w * w) for w in range(1, 11)]
        for i in range(20)
    ]
    choice, seen = measured(sites, 0.6, share=2.4)
    assert seen[0] < 500.0
    saved = 2.4 * sum(c.saving.macs for c in choice.chosen)
    assert choice.meets
    assert 4_000 <= saved <= 4_100


def test_what_was_expected_is_told(fine: Sites) -> None:
    """The sums are a fifth too high, which the first measurement tells and the second shows."""
    choice, seen = measured(fine, 0.5, share=0.8)
    first, second = choice.predictions[:2]
    assert [first.corrections, second.corrections] == [0, 1]
    assert first.expected["macs"] == pytest.approx(0.5, abs=0.005)
    assert first.measured["macs"] == pytest.approx(seen[0] / 10_000)
    assert first.measured["macs"] == pytest.approx(0.6, abs=0.005)
    assert second.expected["macs"] == pytest.approx(second.measured["macs"], rel=1e-12)


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


def test_a_step_far_below(fine: Sites) -> None:
    """Whatever is done saves 70 percent at once: of what was tried, the gentlest counts."""
    tried: list[Sequence[Candidate[Any]]] = []

    def measure(chosen: Sequence[Candidate[Any]]) -> dict[str, float]:
        tried.append(chosen)
        return {"macs": 3_000.0 + len(tried) % 3}

    choice = for_measured_targets(
        fine,
        {"macs": 0.5},
        BASELINE,
        {},
        predicted(fine),
        known={"macs": Correction()},
        margins={},
        measure=measure,
    )
    assert len(tried) >= 3
    assert sum(c.damage for c in choice.chosen) == min(sum(c.damage for c in t) for t in tried)
    assert sum(c.damage for c in choice.chosen) < 0.5 * sum(c.damage for c in tried[0])


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
        known={"macs": Correction(), "size": Correction()},
        margins={},
        measure=measure,
    )
    left = measure(choice.chosen)
    assert choice.meets
    assert left["macs"] <= 9_000
    assert 0.94 * 24_000 <= left["size"] <= 0.95 * 24_000


def test_what_is_given_counts(fine: Sites) -> None:
    """A branch that is taken anyway saves its share, and stands in front."""
    given = fine[0][-1]

    def measure(chosen: Sequence[Candidate[Any]]) -> dict[str, float]:
        return {"macs": 10_000.0 - sum(c.saving.macs for c in chosen)}

    choice = for_measured_targets(
        fine[1:],
        {"macs": 0.8},
        BASELINE,
        {},
        predicted(fine[1:]),
        known={"macs": Correction()},
        margins={},
        measure=measure,
        given=(given,),
    )
    assert choice.chosen[0] is given
    assert choice.meets
    assert 7_950 <= measure(choice.chosen)["macs"] <= 8_000
    assert any("macs 0.7" in note or "macs 0.8" in note for note in choice.notes)


def test_what_is_given_is_enough(offer: Offer) -> None:
    """Nothing else is rewritten then; and without anything there is nothing to measure."""
    branch, other = offer("branch", 0, (9000, 1, 4), 0.0), offer("a", 1, (8000, 1, 4), 0.5)

    def choose(*given: Candidate[Any]) -> Choice:
        return for_measured_targets(
            [[other]],
            {"macs": 0.5 if given else 1.0},
            BASELINE,
            {},
            [[0.5]],
            known={"macs": Correction()},
            margins={},
            measure=lambda chosen: {"macs": 10_000.0 - sum(c.saving.macs for c in chosen)},
            given=given,
        )

    assert choose(branch).chosen == (branch,)
    assert choose().chosen == ()
