"""Who has a node, and what is heard of everyone else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import ModelError, PassError
from onnxcompress.plan.contract import Candidate, NoCandidate, Pass, Refusal, Site
from onnxcompress.plan.options import collect

Offer = Callable[..., Candidate[Any]]
Scripted = Callable[..., Pass[Any]]


def test_the_first_pass_that_offers_something_has_the_node(
    facts: Facts, offer: Offer, scripted: Scripted
) -> None:
    def one(site: Site, _facts: Facts) -> list[Candidate[Any]]:
        if site.node == "two":
            raise NoCandidate("nothing stands out")
        return [offer(site.node, 1, (1, 1, 4), 0.1, name=site.pass_name)]

    first = scripted("first", [Site("first", "one"), Site("first", "two")], one)
    second = scripted("second", [Site("second", n) for n in ("one", "three")], one)
    third = scripted("third", [Refusal("third", "two", "of no use")], one)
    found = collect(facts, [first, second, third])
    assert [offers[0].site for offers in found.sites] == [
        Site("first", "one"),
        Site("second", "three"),
    ]
    assert found.refusals == (
        Refusal("first", "two", "nothing stands out"),
        Refusal("second", "one", "pass first has it already"),
        Refusal("third", "two", "of no use"),
    )
    turned = collect(facts, [second, first])
    assert {offers[0].site.pass_name for offers in turned.sites} == {"second"}


def test_what_a_candidate_touches_is_taken_too(
    facts: Facts, offer: Offer, scripted: Scripted
) -> None:
    def wide(site: Site, _facts: Facts) -> list[Candidate[Any]]:
        made = offer(site.node, 1, (1, 1, 4), 0.1, name=site.pass_name)
        return [Candidate(made.site, made.setting, ("one", "two"), made.before, made.after, 0.1)]

    def narrow(site: Site, _facts: Facts) -> list[Candidate[Any]]:
        return [offer(site.node, 1, (1, 1, 4), 0.1, name=site.pass_name)]

    first = scripted("first", [Site("first", "one")], wide)
    second = scripted("second", [Site("second", "two")], narrow)
    found = collect(facts, [first, second])
    assert found.refusals == (Refusal("second", "two", "pass first has it already"),)
    # And the other way round: a candidate that reaches into a taken node.
    found = collect(facts, [second, first])
    assert [offers[0].site for offers in found.sites] == [Site("second", "two")]


@pytest.mark.parametrize("place", ["sites", "candidates"])
def test_a_pass_that_raises_is_named(
    facts: Facts, offer: Offer, scripted: Scripted, place: str
) -> None:
    def fail(*_arguments: Any) -> Any:
        raise ZeroDivisionError("two\nlines")

    found = [fail] if place == "sites" else [Site("clumsy", "two")]
    with pytest.raises(PassError) as caught:
        collect(facts, [scripted("clumsy", found, fail)])
    message = str(caught.value)
    assert "'clumsy'" in message
    assert "ZeroDivisionError" in message
    assert "\n" not in message
    assert place == "sites" or "'two'" in message


def test_errors_of_ours_pass_through(facts: Facts, scripted: Scripted) -> None:
    def fail(*_arguments: Any) -> Any:
        raise ModelError("the size of tensor 'q' cannot be inferred")

    with pytest.raises(ModelError, match="'q'"):
        collect(facts, [scripted("honest", [Site("honest", "one")], fail)])


def test_reading_what_was_not_declared(facts: Facts, scripted: Scripted) -> None:
    nosy = scripted("nosy", [lambda facts: Site("nosy", str(facts.shape("x")))], lambda *_: [])
    type(nosy).needs = frozenset()
    with pytest.raises(PassError, match="SHAPES"):
        collect(facts, [nosy])


def test_a_site_without_candidates_breaks_the_contract(facts: Facts, scripted: Scripted) -> None:
    empty = scripted("empty", [Site("empty", "one")], lambda *_: [])
    with pytest.raises(PassError, match="'empty'"):
        collect(facts, [empty])


def test_passes_that_work_together_share_nodes(
    facts: Facts, offer: Offer, scripted: Scripted
) -> None:
    """Their candidates may touch what others touch, and take no node from anybody."""

    def wide(site: Site, _facts: Facts) -> list[Candidate[Any]]:
        made = offer(site.node, 1, (1, 1, 4), 0.1, name=site.pass_name)
        touches = ("one", "two", "three")
        return [Candidate(made.site, made.setting, touches, made.before, made.after, 0.1)]

    def narrow(site: Site, _facts: Facts) -> list[Candidate[Any]]:
        return [offer(site.node, 1, (1, 1, 4), 0.1, name=site.pass_name)]

    together = scripted("together", [Site("together", n) for n in ("one", "two")], wide)
    type(together).rewrite_together = lambda *_: None
    assert together.works_together
    alone = scripted("alone", [Site("alone", "two")], narrow)
    assert not alone.works_together
    late = scripted("late", [Site("late", "two")], narrow)
    for order in ([together, alone, late], [alone, together, late], [alone, late, together]):
        found = collect(facts, order)
        sites = {(offers[0].site.pass_name, offers[0].site.node) for offers in found.sites}
        assert sites == {("together", "one"), ("together", "two"), ("alone", "two")}
        assert found.refusals == (Refusal("late", "two", "pass alone has it already"),)


def test_who_points_at_a_pass_that_is_there_is_not_heard(
    facts: Facts, offer: Offer, scripted: Scripted
) -> None:
    """Refusals that leave the say to another pass are dropped where that one takes part."""
    said = [
        Refusal("first", "one", "goes elsewhere", see="second"),
        Refusal("first", "two", "goes with 'one'", see="first"),
        Refusal("first", "three", "no reason to go"),
    ]
    first = scripted("first", said, None)
    second = scripted("second", [], None)
    assert collect(facts, [first, second]).refusals == (said[2],)
    assert collect(facts, [first]).refusals == (said[0], said[2])
