"""Plans that meet the same targets in different ways: which are tried, and which one wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.rivals import Rival, Tournament, Way, spread
from onnxcompress.plan.search import Choice, Outcome

Offer = Callable[..., Candidate[Any]]


class Path:
    """Errors of choices that begin with so many candidates of a path."""

    def __init__(
        self, offer: Offer, errors: Sequence[float], *, able: int = 0, kinder: float = 0.0
    ) -> None:
        self.path = tuple(offer(f"p{at}", 0, (100, 1, 4), 0.1) for at in range(len(errors) - 1))
        self.other = offer("other", 1, (100, 1, 4), 0.1)
        self.errors, self.able, self.kinder = errors, able, kinder
        self.tried: list[int] = []
        self.judged: list[int] = []
        self.tournament = Tournament(self.choose, self.trial, self.judge)

    def choose(self, way: Way) -> Choice:
        return Choice((*self.path[: way.gone], self.other), (), meets=way.gone >= self.able)

    def trial(self, chosen: Sequence[Candidate[Any]]) -> Outcome:
        self.tried.append(len(chosen) - 1)
        return Outcome(True, self.errors[len(chosen) - 1], "")

    def judge(self, chosen: Sequence[Candidate[Any]]) -> float:
        """After a thorough repair, which is kinder to every branch that is gone."""
        self.judged.append(len(chosen) - 1)
        return self.errors[len(chosen) - 1] - self.kinder * len(chosen)

    def best(self) -> int:
        self.tournament.along_path(len(self.path))
        return self.tournament.winner().way.gone


def test_the_least_error_along_a_path(offer: Offer) -> None:
    """Two candidates beside the best of the first ones are tried as well, none twice; where the
    error has been rising for two steps, no more of them."""
    errors = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.35, 0.5, 0.6]
    path = Path(offer, errors)
    assert path.best() == 7
    assert sorted(path.tried) == [2, 4, 5, 6, 7, 8, 10]
    (note,) = path.tournament.findings
    assert "2 branches 0.7; 4 branches 0.5; " in note


@pytest.mark.parametrize(
    ("alone", "best", "tried"),
    [
        # From three branches down to one, and four; then none at all.
        ([0.5, 0.2, 0.3, 0.4, 0.6, 0.7], 1, {0, 1, 2, 3, 4}),
        ([0.1, 0.5, 0.5, 0.4, 0.3, 0.35], 0, {0, 2, 3, 4, 5}),
        ([0.9, 0.9, 0.9, 0.4, 0.3, 0.2], 5, {0, 2, 3, 4, 5}),
    ],
)
def test_another_way_has_another_best_length(
    offer: Offer, alone: list[float], best: int, tried: set[int]
) -> None:
    path = Path(offer, alone)
    tournament = Tournament(path.choose, path.trial, lambda chosen: path.errors[len(chosen) - 1])
    first = tournament.enter(Way(3, only="svd"))
    tournament.beside(first, 5)
    assert tournament.winner().way == Way(best, only="svd")
    assert set(path.tried) == tried
    assert len(path.tried) == len(tried)


def test_close_calls_are_repaired_thoroughly(offer: Offer) -> None:
    """Of the three that come closest; and none where one is clearly the best."""
    path = Path(offer, [0.9, 0.8, 0.5, 0.42, 0.4, 0.45], kinder=0.1)
    assert path.best() == 5
    assert sorted(path.judged) == [3, 4, 5]
    path = Path(offer, [0.9, 0.8, 0.5, 0.42, 0.2, 0.45], kinder=0.1)
    assert path.best() == 4
    assert path.judged == []


def test_the_end_of_a_path(offer: Offer) -> None:
    assert Path(offer, [0.9, 0.7, 0.5, 0.4, 0.1, 0.05]).best() == 5


def test_a_target_that_only_long_paths_reach(offer: Offer) -> None:
    """However much better the careful choice looks, it is no choice if it misses the target."""
    path = Path(offer, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], able=4)
    assert path.best() == 4
    assert sorted(path.tried) == [4, 5]
    assert "2 branches (misses)" in path.tournament.findings[0]


def test_no_length_reaches_the_target(offer: Offer) -> None:
    assert Path(offer, [0.4, 0.2, 0.3], able=9).best() == 1


def test_no_path(offer: Offer) -> None:
    path = Path(offer, [0.5])
    assert path.best() == 0
    assert path.tried == []


def test_choices_that_are_the_same_are_not_tried(offer: Offer) -> None:
    """A trial costs seconds to minutes; where all ways lead to one choice there is none."""
    one, two = offer("a", 1, (100, 1, 4), 0.1), offer("b", 1, (100, 1, 4), 0.1)
    choices = {"": (one,), "lnr": (one,), "svd": (two,)}
    tried: list[Any] = []

    def trial(chosen: Any) -> Outcome:
        tried.append(chosen)
        return Outcome(True, {one: 0.4, two: 0.1}[chosen[0]], "")

    tournament = Tournament(lambda way: Choice(choices[way.only], ()), trial, lambda _: 0.0)
    tournament.enter(Way())
    tournament.enter(Way(only="lnr"))
    assert tournament.winner().choice == Choice((one,), ())
    assert tried == []
    tournament.enter(Way(only="svd"))
    assert tournament.winner().way == Way(only="svd")
    assert sorted(tried, key=str) == sorted([(one,), (two,)], key=str)


def test_choices_made_before_take_part_again(offer: Offer) -> None:
    """One that errs less than what is made anew wins; the same choice is not there twice."""
    path = Path(offer, [0.9, 0.6, 0.4])
    tournament = path.tournament
    made = tournament.enter(Way(1))
    tournament.admit(made)
    assert len(tournament.every) == 1
    old = Rival(Way(2, only="lnr"), Choice((*path.path, path.other), ()))
    tournament.admit(old)
    tournament.admit(old)
    assert tournament.leader == old
    assert tournament.winner().way == Way(2, only="lnr")
    (note,) = tournament.findings
    assert note.endswith("1 branch 0.6; 2 branches, lnr alone 0.4")


@pytest.mark.parametrize(("demand", "least"), [(300, 0.1), (900, 0.3), (1500, 0.9)])
def test_no_single_layer_need_bear_more(offer: Offer, demand: float, least: float) -> None:
    """Three layers that save 100, 300 or 500 each at an error of 0.1, 0.3 or 0.9."""
    sites = [
        [offer(f"n{i}", w, (saved, 1, 4), 0.1) for w, saved in enumerate((100, 300, 500))]
        for i in range(3)
    ]
    damages = [[0.1, 0.3, 0.9]] * 3
    assert spread(sites, damages, {"macs": demand}, {}) == pytest.approx(2 * least)
    assert spread(sites, damages, {"macs": 1501.0}, {}) is None
    assert spread(sites, damages, {"macs": -5.0}, {}) == pytest.approx(0.2)
