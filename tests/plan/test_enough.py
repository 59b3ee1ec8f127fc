"""Growing choices are measured where it matters, and never called enough unmeasured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from onnxcompress.graph.cost import Cost
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.enough import Enough
from onnxcompress.plan.search import Baseline

Offer = Callable[..., Candidate[Any]]
BASELINE = Baseline(Cost(10_000, 5_000, 20_000), file_bytes=24_000)


def first_enough(offer: Offer, share: float, start: float = 0.0) -> tuple[int, list[int]]:
    """Where a choice that grows by 400 MACs is enough for half of them; and what was measured."""
    measured: list[int] = []

    def measure(chosen: tuple[Candidate[Any], ...]) -> dict[str, float]:
        measured.append(len(chosen))
        return {"macs": 10_000 + start - share * 400 * len(chosen)}

    enough = Enough({"macs": 0.5}, BASELINE, {"macs": start}, {}, measure)
    branches = tuple(offer(f"n{i}", 1, (400, 1, 4), 0.1) for i in range(40))
    lengths = (n for n in range(1, 41) if enough(branches[:n]))
    return next(lengths, 0), measured


@pytest.mark.parametrize(
    ("share", "start", "length"),
    # As expected; less, more, far more than the sum; from above the original; out of reach.
    [(1.0, 0, 13), (0.5, 0, 25), (1.5, 0, 9), (4.0, 0, 4), (1.0, 2000, 18), (0.2, 0, 0)],
)
def test_the_first_that_is_enough(offer: Offer, share: float, start: float, length: int) -> None:
    found, measured = first_enough(offer, share, start)
    assert found == length
    assert measured[-1] == length or not length
    assert len(measured) <= 11


def test_most_are_not_measured(offer: Offer) -> None:
    """The powers of two, and from where a tenth is missing."""
    _, measured = first_enough(offer, 1.0)
    assert measured == [1, 2, 4, 8, 10, 11, 12, 13]
