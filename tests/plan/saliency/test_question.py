"""What is asked: which layers, where they are looked at, and what is remembered."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import UsageError
from onnxcompress.plan.saliency.question import sensitivity_of, without_data

TEXT = """net (float[N, 3, 4, 5] x) => (float[N, 2, 4, 5] y) {
    [one] a = Conv <kernel_shape = [1, 1]> (x, w1, b1)
    [r1] b = Relu (a)
    [two] c = Conv <kernel_shape = [1, 1]> (b, w2)
    [last] y = Conv <kernel_shape = [1, 1]> (c, w3) }"""


@pytest.fixture
def facts(nets: Any) -> Facts:
    model = nets.build(TEXT, w1=(4, 3, 1, 1), b1=(4,), w2=(5, 4, 1, 1), w3=(2, 5, 1, 1))
    made: Facts = nets.facts(model, nets.samples(model, 3))
    return made


def test_layers(ask: Any, facts: Facts) -> None:
    """In order of execution; not the one whose channels are the answer."""
    question = ask(facts)
    assert question.layers == ["one", "two"]
    assert question.taps == {"one": "b", "two": "c"}
    assert question.axes(question.taps) == {"b": 1, "c": 1}
    assert [len(question.lane(layer).classes) for layer in question.layers] == [4, 5]


def test_skipped_layers(ask: Any, facts: Facts) -> None:
    question = ask(facts, skipped={"one", "last"})
    assert question.layers == ["two"]
    assert question.taps == {"two": "c"}


def test_found_once_per_network(ask: Any, facts: Facts) -> None:
    """Other layers, another key, or another network: found anew."""
    seen: list[onnx.ModelProto | None] = []

    def find(model: onnx.ModelProto | None) -> int:
        seen.append(model)
        return len(seen)

    assert ask(facts).recall("what", find) == ask(facts).recall("what", find) == 1
    assert ask(facts).recall("else", find) == 2
    assert ask(facts, skipped={"one"}).recall("what", find) == 3
    assert seen == [None, None, None]


def test_a_variant_is_never_remembered(ask: Any, facts: Facts, nets: Any, tap: Any) -> None:
    """It has the same tensors, and zeros right behind the layers that lost channels."""
    variants: list[Any] = []
    for gone in ({"one": (0, 3)}, {"one": (1,)}):
        ask(facts, gone).recall("what", variants.append)
    assert len(variants) == 2
    feeds = nets.samples(facts.model, 3)
    for variant, gone in zip(variants, ([0, 3], [1]), strict=True):
        whole, left = tap(facts.model, "b", feeds), tap(variant, "b", feeds)
        expected = whole.copy()
        expected[:, gone] = 0.0
        assert whole[:, gone].any()
        np.testing.assert_array_equal(left, expected)


def test_without_data(ask: Any, facts: Facts, nets: Any) -> None:
    assert sensitivity_of(ask(facts)) is facts.sensitivity()
    with pytest.raises(UsageError) as caught:
        sensitivity_of(ask(nets.facts(facts.model)))
    assert str(caught.value) == str(without_data())
    for word in ("--data", "criterion=weight"):
        assert word in str(caught.value)
