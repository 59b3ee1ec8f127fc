"""The gate keeps what is faster, says how slow the rest is, and times nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import PassError
from onnxcompress.latency.interleave import Timing
from onnxcompress.latency.table import LatencyTable, LayerTiming
from onnxcompress.plan.contract import Candidate, Refusal
from onnxcompress.plan.gate import candidate_key, gate, nothing_to_save
from onnxcompress.plan.options import Options, collect
from onnxcompress.plan.registry import parse_pass
from onnxcompress.runtime import Execution

Offer = Callable[..., Candidate[Any]]


class Table:
    """Candidates take the milliseconds given by their position, the original 10."""

    def __init__(self, times: list[list[float]]) -> None:
        self.times, self.asked = times, [0]
        self.notes: list[str] = []

    def compare(
        self, original: onnx.ModelProto, candidates: list[onnx.ModelProto]
    ) -> list[LayerTiming]:
        if not candidates:
            return []
        assert len(original.graph.node) == 1
        times = self.times[len(self.asked) - 1]
        self.asked.append(len(candidates))
        return [LayerTiming((10.0,) * 5, (ms,) * 5) for ms in times[: len(candidates)]]


def judged(options: Options, facts: Facts, table: Any, owner: Any) -> Any:
    return gate(options, facts, {owner.name: owner}, table)


def test_kept_and_refused(facts: Facts, offer: Offer, scripted: Callable[..., Any]) -> None:
    owner = scripted("made_up", [], None)
    one = [offer("one", w, (10 * w, 1, 4), 0.1 * w) for w in (1, 2)]
    two = [offer("two", w, (10 * w, 1, 4), 0.1 * w) for w in (1, 2, 3)]
    table = Table([[12.5, 15.0], [9.0, 11.0, 5.0]])
    found = judged(Options((tuple(one), tuple(two)), ()), facts, table, owner)
    assert found.options.sites == ((two[0], two[2]),)
    (refusal,) = found.options.refusals
    assert (refusal.pass_name, refusal.node) == ("made_up", "one")
    assert "no faster" in refusal.reason
    assert "1.25" in refusal.reason
    assert {key[0] for key in found.timings} == {"one", "two"}
    assert found.timings[candidate_key(two[2])].saved_ms == 5.0


def test_lossless_forms_with_nothing_to_save_are_not_timed(
    facts: Facts, offer: Offer, scripted: Callable[..., Any]
) -> None:
    owner = scripted("made_up", [], None)
    only = (offer("one", 4, (-5, -1, -4), 0.0),)
    table = Table([])
    found = judged(Options((only,), (Refusal("x", "y", "z"),)), facts, table, owner)
    assert found.options.sites == ()
    assert found.options.refusals == (Refusal("x", "y", "z"), nothing_to_save(only))
    assert table.asked == [0]
    asked_for = (offer("one", 4, (-5, -1, -4), 0.0, recommended=True),)
    assert judged(Options((asked_for,), ()), facts, Table([[9.0]]), owner).options.sites == (
        asked_for,
    )


def test_what_only_changes_the_file_is_not_timed(
    facts: Facts, offer: Offer, scripted: Callable[..., Any]
) -> None:
    """Kept where it saves bytes, although it saves no multiplication; refused where it does not."""
    owner = scripted("made_up", [], None)

    def stored(node: str, width: int, octets: int) -> Candidate[Any]:
        return replace(offer(node, width, (0, 0, octets), 0.1 * width), stored=True)

    whole, small, larger = stored("one", 0, -1), stored("one", 1, 4), stored("two", 2, 0)
    steps: list[tuple[int, int]] = []
    options = Options(((whole, small), (larger,)), ())
    found = gate(
        options, facts, {"made_up": owner}, Table([]), progress=lambda *at: steps.append(at)
    )
    assert found.options.sites == ((small,),)
    assert [(r.node, "too small" in r.reason) for r in found.options.refusals] == [("two", True)]
    assert found.timings == {}
    assert steps[-1] == (2, 2)


def test_equal_layers_are_timed_once(
    facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`one` and `three` are alike; a second job finds all of it in the table."""
    timed: list[int] = []

    def measure(models: list[Any], *_arguments: Any, **_options: Any) -> list[Timing]:
        timed.append(len(models) - 1)
        return [Timing(((10.0 - i,), (10.0 - i,), (10.0 - i,))) for i in range(len(models))]

    monkeypatch.setattr("onnxcompress.latency.table.interleaved", measure)
    passes = [parse_pass("tucker2:rank=2"), parse_pass("svd:rank=2")]
    owners = {owner.name: owner for owner in passes}
    options = collect(facts, passes)
    assert [offers[0].site.node for offers in options.sites] == ["two", "one", "three"]
    path = tmp_path / "latency.json"
    for expected in ([1, 1], []):
        timed.clear()
        found = gate(options, facts, owners, LatencyTable(path, Execution(threads=1)))
        assert timed == expected
        assert [offers[0].site.node for offers in found.options.sites] == ["two", "one", "three"]
        assert set(found.timings) == {candidate_key(o[0]) for o in options.sites}


def test_a_rewrite_that_fails_names_pass_and_node(
    facts: Facts, offer: Offer, scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> None:
        raise ValueError("no such rank")

    owner = scripted("made_up", [], None)
    monkeypatch.setattr(type(owner), "rewrite", fail)
    options = Options(((offer("two", 1, (10, 1, 4), 0.1),),), ())
    with pytest.raises(PassError, match=r"'made_up'.*'two'.*no such rank"):
        judged(options, facts, Table([[1.0]]), owner)


@pytest.mark.parametrize(
    ("candidate", "faster"),
    [
        ((9.0, 9.0, 9.0, 9.0), True),
        ((9.0, 9.0, 9.0, 10.5), True),
        ((9.0, 9.0, 10.5, 10.5), False),
        ((10.0, 10.0, 10.0, 10.0), False),
        ((11.0, 11.0, 11.0, 1.0), False),
    ],
)
def test_faster_means_nearly_every_round(candidate: tuple[float, ...], *, faster: bool) -> None:
    assert LayerTiming((10.0,) * 4, candidate).faster is faster


def test_excerpts_of_a_pass_are_timed_and_added_up(
    facts: Facts, offer: Offer, scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate that changes several layers is as fast as all of them together. What may replace
    one layer is timed side by side, and each once."""
    asked: list[tuple[str, list[str]]] = []

    class Pairs:
        notes: tuple[str, ...] = ()

        def compare(self, original: Any, candidates: list[Any]) -> list[LayerTiming]:
            asked.append((kind(original), [kind(model) for model in candidates]))
            before, *after = (float(kind(m).split()[1]) for m in (original, *candidates))
            return [LayerTiming((before,) * 5, (ms,) * 5) for ms in after]

    def kind(model: onnx.ModelProto) -> str:
        return model.graph.node[0].op_type

    def named(name: str) -> onnx.ModelProto:
        return onnx.ModelProto(graph=onnx.GraphProto(node=[onnx.NodeProto(op_type=name)]))

    pairs = {
        # 10 + 4 ms become 6 + 5: one layer is slower, both together are not.
        1: [(named("whole 10"), named("cut 6")), (named("whole 4"), named("cut 5"))],
        # A tighter one that gains nothing more.
        2: [(named("whole 10"), named("cut 6.5")), (named("whole 4"), named("cut 4.5"))],
        3: [(named("whole 10"), named("cut 2"))],
        # The same layers as the first one.
        4: [(named("whole 4"), named("cut 5")), (named("whole 10"), named("cut 6"))],
    }
    owner = scripted("made_up", [], None)
    monkeypatch.setattr(type(owner), "excerpts", lambda _, c, __: pairs[c.setting.width])
    offers = tuple(offer("two", w, (10 * w, 1, 4), 0.1 * w) for w in (1, 2, 3, 4))
    found = judged(Options((offers,), ()), facts, Pairs(), owner)
    assert found.options.sites == ((offers[0], offers[2]),)
    assert [found.timings[candidate_key(c)].saved_ms for c in offers] == [3.0, 3.0, 8.0, 3.0]
    assert asked == [
        ("whole 10", ["cut 6", "cut 6.5", "cut 2"]),
        ("whole 4", ["cut 5", "cut 4.5"]),
    ]
