"""Moments are collected once, all together, and handed on to a job's editors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts, Need
from onnxcompress.analyse.moments import Moments
from onnxcompress.errors import PassError
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.memo import Memo
from onnxcompress.plan.known_moments import facts_of, layer_moments, moments_of, remember_facts


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
