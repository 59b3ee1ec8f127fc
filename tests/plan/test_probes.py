"""What probes say about candidates, on outputs that follow a law of the damage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.probes import expected_errors, predicted

Ladder = list[Candidate[Any]]


@pytest.fixture
def ladder(offer: Callable[..., Candidate[Any]]) -> Callable[..., Ladder]:
    """`ladder("a", 0.1, 0.4)`: candidates of a layer with these damages."""

    def make(node: str, *damages: float) -> Ladder:
        return [offer(node, at, (at, at, at), damage) for at, damage in enumerate(damages)]

    return make


class Outputs:
    """Errors by damage; remembers what was probed."""

    def __init__(self, law: Callable[[float], float]) -> None:
        self.law = law
        self.asked: list[str] = []

    def __call__(self, candidate: Candidate[Any]) -> Callable[[], float]:
        self.asked.append(f"{candidate.site.node}{candidate.setting.width}")
        return lambda: self.law(candidate.damage)


def test_one_probe_where_outputs_answer(ladder: Any) -> None:
    """In the middle of what is lossy; errors are in proportion; what is lossless is not probed."""
    sites = [ladder("a", 0.0, 0.1, 0.2, 0.4), ladder("b", 0.3), ladder("c", 0.0)]
    outputs, steps = Outputs(lambda damage: 0.25 * damage), []
    found = expected_errors(sites, outputs, progress=lambda *s: steps.append(s))
    assert outputs.asked == ["a2", "b0"]
    assert found[0] == pytest.approx([0.0, 0.025, 0.05, 0.1])
    assert found[1] == pytest.approx([0.075])
    assert found[2] == [0.0]
    assert steps == [(2, 3), (3, 3)]


def test_lost_outputs_are_probed_more_gently(ladder: Any) -> None:
    """From where outputs are lost down to where they are not; by powers of the damage between."""
    damages = (0.001, 0.01, 0.02, 0.3, 0.6, 1.2, 2.4, 4.8, 9.6)
    outputs = Outputs(lambda damage: min(1.0, 4.0 * damage))
    (found,) = expected_errors([ladder("a", *damages)], outputs)
    assert outputs.asked == ["a4", "a2"]
    assert found[:3] == pytest.approx([0.004, 0.04, 0.08])
    assert found[4] == pytest.approx(1.0)
    # Half way from 0.02 to 0.6, and from 0.08 to 1, in logarithms: 0.1095 and 0.2828.
    between = 0.08 * (0.3 / 0.02) ** (0.5 * 2.5257286 / 1.7005987)
    assert found[3] == pytest.approx(between, rel=1e-6)
    assert found[8] == pytest.approx(16.0)
    assert found == sorted(found)


def test_a_power_law_is_found_again(ladder: Any) -> None:
    """Through the probed ones exactly, and between them as well."""
    damages = [0.01 * 1.7**k for k in range(9)]
    law = Outputs(lambda damage: 2.0 * damage**0.7)
    (found,) = expected_errors([ladder("a", *damages)], law)
    assert law.asked == ["a4", "a2", "a1", "a0"]
    assert found[:5] == pytest.approx([law.law(damage) for damage in damages[:5]])


def test_where_the_gentlest_is_too_much(ladder: Any) -> None:
    outputs = Outputs(lambda _: 0.5)
    (found,) = expected_errors([ladder("a", 0.5, 1.0)], outputs)
    assert outputs.asked == ["a1", "a0"]
    assert found == pytest.approx([0.5, 0.5])


def test_gentler_probes_that_found_more(ladder: Any) -> None:
    """Noise of few samples turns no ladder around."""
    outputs = Outputs({1.0: 0.2, 0.5: 0.3, 0.25: 0.05}.__getitem__)
    (found,) = expected_errors([ladder("a", 0.25, 0.5, 1.0, 2.0)[:3]], outputs)
    assert found == sorted(found)


def test_predictions_by_themselves(ladder: Any) -> None:
    assert predicted([ladder("a", 0.0, 0.1), ladder("b", 0.3)]) == [[0.0, 0.1], [0.3]]
