"""Moments are collected once, all together, and handed on to a job's editors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress as oc
from onnxcompress.analyse.facts import Facts, Need
from onnxcompress.analyse.moments import Moments
from onnxcompress.calibrate.moments import CollectedMoments
from onnxcompress.errors import PassError
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.memo import Memo
from onnxcompress.plan.contract import Candidate, Site
from onnxcompress.plan.known_moments import (
    MOST_FEATURES,
    facts_of,
    layer_moments,
    linear_among,
    moments_of,
    remember_facts,
)


class Counted:
    """A collector that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def __call__(
        self, layers: Sequence[str], model: onnx.ModelProto | None = None
    ) -> dict[str, Moments]:
        self.asked.append(tuple(layers))
        one = np.ones((1, 1))
        return {name: Moments(one[None], one, one[None], one, one, len(name)) for name in layers}


@pytest.fixture
def facts(nets: Any) -> Facts:
    model = nets.build(
        """net (float[N, 3, 4, 5] x) => (float[N, 3, 4, 5] y) {
        [a] t = Conv (x, w) [b] u = Conv (t, w) [c] y = Conv (u, w) }""",
        w=(3, 3, 1, 1),
    )
    found: Facts = nets.facts(model)
    return found


def test_collected_once_and_together(facts: Facts) -> None:
    collector = Counted()
    seen = facts.with_moments(collector)
    allowed = seen.restricted(frozenset({Need.MOMENTS}))
    assert set(layer_moments(allowed, ["a", "c"])) >= {"a", "c"}
    assert layer_moments(allowed, ["c"])["c"].rows == 1
    layer_moments(seen, ["a", "b", "c"])
    assert collector.asked == [("a", "c"), ("b",)]
    other = Counted()
    layer_moments(seen.with_moments(other), ["a"])
    assert other.asked == [("a",)], "other inputs, other moments"


def test_must_be_declared(facts: Facts) -> None:
    seen = facts.with_moments(Counted())
    with pytest.raises(PassError, match="MOMENTS"):
        layer_moments(seen.restricted(frozenset({Need.SHAPES})), ["a"])


def test_none_without_data(facts: Facts) -> None:
    assert layer_moments(facts, ["a"]) == {}
    memo = Memo()
    remember_facts(facts, memo)
    with pytest.raises(PassError, match=r"'why' is worked out from calibration inputs.*--data"):
        facts_of(Editor(facts.model, memo=memo), "why")


def test_editors_of_a_job_know_what_it_knows(facts: Facts) -> None:
    collector = Counted()
    seen, memo = facts.with_moments(collector), Memo()
    remember_facts(seen, memo)
    layer_moments(seen, ["a"])
    editor = Editor(facts.model, memo=memo)
    assert facts_of(editor, "why") is seen
    assert moments_of(editor, "a").rows == 1
    assert collector.asked == [("a",)]


def test_decompositions_do_not_push_the_facts_out(facts: Facts) -> None:
    memo = Memo(limit_bytes=100)
    remember_facts(facts.with_moments(Counted()), memo)
    for at in range(5):
        memo.recall(at, lambda: "parts", lambda _: 60)
    assert moments_of(Editor(facts.model, memo=memo), "a").rows == 1


@pytest.mark.usefixtures("quick")
def test_a_replayed_plan_collects_in_one_go(
    nets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer by layer, every one of them would have the network walked over from the start."""
    model = nets.build(
        """net (float[N, 8, 4, 5] x) => (float[N, 8, 4, 5] y) {
        [a] t = Conv (x, w) [ra] s = Relu (t) [b] u = Conv (s, w) [rb] v = Relu (u)
        [c] y = Conv (v, w) }""",
        w=(8, 8, 1, 1),
    )
    feeds = nets.samples(model, 40)
    options: dict[str, Any] = {"gate": False, "max_drop": 100.0, "min_snr": -100.0, "threads": 1}
    made = oc.compress(model, data=feeds, passes=["svd:rank=2"], **options)
    assert len(made.plan.chosen) == 3
    plan = tmp_path / "plan.json"
    plan.write_text(made.plan.to_json())
    genuine, asked = CollectedMoments.__call__, []

    def counted(self: CollectedMoments, layers: Sequence[str], *rest: Any) -> Any:
        asked.append(set(layers))
        return genuine(self, layers, *rest)

    monkeypatch.setattr(CollectedMoments, "__call__", counted)
    again = oc.compress(model, data=feeds, passes=(), plan=plan, **options)
    assert asked == [{"a", "b", "c"}]
    assert again.model.SerializeToString() == made.model.SerializeToString()


def test_layers_of_which_no_moments_are_taken(nets: Any) -> None:
    """Nodes that are not linear, or read too much, are not asked about."""
    wide = MOST_FEATURES + 1
    model = nets.build(
        f"""net (float[N, {wide}] x) => (float[N, 2] y) {{
        [wide] t = MatMul (x, w) [r] u = Relu (t) [dense] y = MatMul (u, v) }}""",
        w=(wide, 2),
        v=(2, 2),
    )
    touched = ("wide", "r", "dense")
    candidate = Candidate(Site("svd", "wide"), None, touched, Cost(), Cost(), 0.1)
    assert linear_among(nets.facts(model), [candidate, candidate]) == ["dense"]
