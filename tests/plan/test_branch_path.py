"""The order in which branches go: judged on a repaired network, and only as far as is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from onnxcompress.plan.branch_path import branch_path
from onnxcompress.plan.contract import Candidate

Offer = Callable[..., Candidate[Any]]


@dataclass
class Made:
    """A network in which a branch costs more once its neighbour is gone."""

    alone: dict[str, float]
    pairs: dict[frozenset[str], float] = field(default_factory=dict)
    repaired: float = 0.1
    """Share of what a removal costs that is left after repair."""
    probes: list[tuple[tuple[str, ...], str]] = field(default_factory=list)

    def cost(self, gone: tuple[str, ...]) -> float:
        pairs = sum(c for pair, c in self.pairs.items() if pair <= set(gone))
        return sum(self.alone[name] for name in gone) + pairs

    def step(self, gone: tuple[Candidate[Any], ...]) -> Any:
        made, names = self, tuple(c.site.node for c in gone)

        class Step:
            error = made.repaired * made.cost(names)

            def without(self, branch: Candidate[Any]) -> float:
                made.probes.append((names, branch.site.node))
                more = made.cost((*names, branch.site.node)) - made.cost(names)
                return self.error + more

        return Step()


@pytest.fixture
def branches(offer: Offer) -> dict[str, Candidate[Any]]:
    return {name: offer(name, 0, (100, 1, 4), 0.1) for name in "abcd"}


def path(
    made: Made,
    branches: dict[str, Candidate[Any]],
    *,
    worth: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    enough: int = 4,
    barred: tuple[str, ...] = (),
    doubt: float = 1.0,
    start: str = "",
) -> str:
    found = branch_path(
        list(branches.values()),
        worth,
        [doubt * made.alone[name] for name in branches],
        lambda one, other: {one.site.node, other.site.node} <= set(barred),
        made.step,
        lambda gone: len(gone) >= enough,
        start=tuple(branches[name] for name in start),
    )
    return "".join(c.site.node for c in found)


ALONE = {"a": 0.04, "b": 0.01, "c": 0.02, "d": 0.03}


def test_cheapest_first(branches: Any) -> None:
    assert path(Made(ALONE), branches) == "bcda"


def test_what_is_saved_counts(branches: Any) -> None:
    """Four times the damage for eight times the milliseconds."""
    assert path(Made(ALONE), branches, worth=(8.0, 1.0, 1.0, 1.0)) == "abcd"


def test_a_branch_that_saves_nothing_stays(branches: Any) -> None:
    assert path(Made(ALONE), branches, worth=(1.0, 0.0, 1.0, -1.0)) == "ca"


def test_neighbours(branches: Any) -> None:
    """Without b, c can no longer be spared; by themselves it would be the next to go."""
    made = Made(ALONE, {frozenset("bc"): 0.5})
    assert path(made, branches) == "bdac"


def test_only_as_far_as_is_needed(branches: Any) -> None:
    assert path(Made(ALONE), branches, enough=2) == "bc"


def test_a_path_is_continued(branches: Any) -> None:
    """As if it had never ended; and by one branch at least, for it was not enough."""
    made = Made(ALONE, {frozenset("bc"): 0.5})
    assert path(made, branches, enough=2) == "bd"
    made.probes.clear()
    assert path(made, branches, start="bd") == "bdac"
    assert all(gone[:2] == ("b", "d") for gone, _ in made.probes)
    assert path(made, branches, enough=2, start="bd") == "bda"
    assert path(made, branches, start="bdac") == "bdac"


def test_both_cannot_go(branches: Any) -> None:
    assert path(Made(ALONE), branches, barred=("b", "c")) == "bda"


def test_nothing_is_left_to_say(branches: Any) -> None:
    """Once the outputs are lost, no order of the rest means anything."""
    made = Made(ALONE, {frozenset("bc"): 100.0}, repaired=1.0)
    assert path(made, branches) == "bda" + "c"
    made = Made(dict.fromkeys("abcd", 2.0), repaired=1.0)
    assert len(path(made, branches)) == 1


@pytest.mark.parametrize("doubt", [0.0, 0.3, 1.0, 1.9])
def test_probes_only_say_where_to_look_first(branches: Any, doubt: float) -> None:
    """Even if all of them see twice too much; far too much is seen of no branch but one."""
    assert path(Made(ALONE), branches, doubt=doubt) == "bcda"
    made = Made(ALONE, {frozenset("bc"): 0.5})
    assert path(made, branches, doubt=doubt) == "bdac"


def test_what_is_clearly_dearer_is_not_tried_again(branches: Any) -> None:
    made = Made(ALONE)
    path(made, branches, doubt=0.0)
    assert made.probes == [
        *(((), name) for name in "abcd"),
        (("b",), "c"),
        (("b", "c"), "d"),
        (("b", "c", "d"), "a"),
    ]


def test_what_a_probe_found_dear_is_not_tried(branches: Any) -> None:
    made = Made({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.5})
    assert path(made, branches, enough=2) == "bc"
    assert made.probes == [((), "b"), (("b",), "c"), (("b",), "a")]
