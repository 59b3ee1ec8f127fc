"""Predicted damage against its formula, position by position, for every kind of consumer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.activations import ChannelStatistics
from onnxcompress.analyse.facts import Facts
from onnxcompress.plan.channels.damage import channel_damage


class Moments:
    """Statistics made up for every channel of every tensor, and remembered."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes, self.given = shapes, dict[str, ChannelStatistics]()

    def __call__(
        self, axes: Mapping[str, int], model: onnx.ModelProto | None = None
    ) -> dict[str, ChannelStatistics]:
        for name, axis in axes.items():
            extent = self.shapes[name][axis]
            generator = np.random.default_rng(extent)
            mean = generator.standard_normal(extent)
            square = mean**2 + generator.uniform(0.1, 2.0, extent)
            self.given[name] = ChannelStatistics(mean, square, np.ones(extent), 100)
        return {name: self.given[name] for name in axes}


IMAGE = "net (float[N, 3, 4, 5] x) => (float[N, C, H, W] y) { "
ONE = "[one] a = Conv <kernel_shape = [1, 1]> (x, w0) [r] b = Sigmoid (a) "
SIZE = (1, 3, 4, 5)
Weights = Iterator[tuple[int, float]]


def conv(weight: np.ndarray, group: int = 1) -> Weights:
    """(input channel, weight) of every weight."""
    outputs, inner = weight.shape[:2]
    for o in range(outputs):
        for i in range(inner):
            for value in weight[o, i].ravel():
                yield (o // (outputs // group)) * inner + i, float(value)


def rows(weight: np.ndarray) -> Weights:
    """The input is the first axis."""
    for i, row in enumerate(weight):
        for value in row.ravel():
            yield i, float(value)


CASES: dict[str, tuple[Callable[[Any], Facts], Any]] = {
    "Conv": (
        lambda facts_of: facts_of(
            IMAGE + ONE + "[last] y = Conv <kernel_shape = [3, 2]> (b, w1) }",
            SIZE,
            w0=(6, 3, 1, 1),
            w1=(4, 6, 3, 2),
        ),
        conv,
    ),
    "Conv, equal extents": (
        lambda facts_of: facts_of(
            IMAGE + ONE + "[last] y = Conv <kernel_shape = [3, 3]> (b, w1) }",
            SIZE,
            w0=(3, 3, 1, 1),
            w1=(3, 3, 3, 3),
        ),
        conv,
    ),
    "grouped Conv": (
        lambda facts_of: facts_of(
            IMAGE + ONE + "[last] y = Conv <kernel_shape = [1, 2], group = 2> (b, w1) }",
            SIZE,
            w0=(6, 3, 1, 1),
            w1=(4, 3, 1, 2),
        ),
        lambda weight: conv(weight, 2),
    ),
    "ConvTranspose": (
        # What remains behind Sigmoid would reach the edges unevenly: ReLU leaves zero.
        lambda facts_of: facts_of(
            IMAGE
            + ONE.replace("Sigmoid", "Relu")
            + "[last] y = ConvTranspose <kernel_shape = [3, 2]> (b, w1) }",
            SIZE,
            w0=(6, 3, 1, 1),
            w1=(6, 4, 3, 2),
        ),
        rows,
    ),
    "grouped ConvTranspose": (
        lambda facts_of: facts_of(
            IMAGE
            + ONE.replace("Sigmoid", "Relu")
            + "[last] y = ConvTranspose <kernel_shape = [1, 1], group = 2> (b, w1) }",
            SIZE,
            w0=(6, 3, 1, 1),
            w1=(6, 2, 1, 1),
        ),
        rows,
    ),
    "Gemm": (
        lambda facts_of: facts_of(
            "net (float[N, 3] x) => (float[N, 4] y) { [one] a = MatMul (x, w0)"
            " [r] b = Sigmoid (a) [last] y = Gemm (b, w1) }",
            (2, 3),
            w0=(3, 6),
            w1=(6, 4),
        ),
        rows,
    ),
    "Gemm, transB": (
        lambda facts_of: facts_of(
            "net (float[N, 3] x) => (float[N, 4] y) { [one] a = MatMul (x, w0) [r] b ="
            " Sigmoid (a) [last] y = Gemm <transB = 1, alpha = 0.5> (b, w1) }",
            (2, 3),
            w0=(3, 6),
            w1=(4, 6),
        ),
        lambda weight: rows(weight.T),
    ),
    "flattened": (
        lambda facts_of: facts_of(
            "net (float[N, 3, 2, 2] x) => (float[N, 4] y) {"
            + ONE
            + "[flat] c = Flatten (b) [last] y = MatMul (c, w1) }",
            (1, 3, 2, 2),
            w0=(5, 3, 1, 1),
            w1=(20, 4),
        ),
        rows,
    ),
}


@pytest.mark.parametrize("data", [True, False], ids=["with data", "weights alone"])
@pytest.mark.parametrize("name", CASES)
def test_the_formula(facts_of: Any, name: str, *, data: bool) -> None:
    """sum |W[:, c]|^2 E[(x_c - v_c)^2] over all positions of a channel, relative to all."""
    make, each = CASES[name]
    facts = make(facts_of)
    collect = Moments(facts.shapes())
    if data:
        facts = facts.with_activations(collect)
    coupling = facts.coupling()
    group = coupling.group("one")
    found = channel_damage(facts, coupling, group)
    last = facts.view.nodes["last"]
    lane = coupling.lanes[last.input[0]]
    left = 0.0 if "Transpose" in name else 0.5
    energy = np.zeros(len(lane.classes))
    for position, weight in each(facts.view.array64(last.input[1])):
        moment = 1.0
        if data:
            one = collect.given[last.input[0]]
            # E[(x - v)^2] = E[x^2] - 2 v E[x] + v^2, written as variance and distance.
            variance = one.square[position] - one.mean[position] ** 2
            moment = variance + (one.mean[position] - left) ** 2
        energy[position] += weight * weight * moment
    expected = [
        sum(energy[p] for p, c in enumerate(lane.classes.tolist()) if c == channel) / energy.sum()
        for channel in group.channels
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)
    # Nothing but this group's channels is read there.
    assert sum(expected) == pytest.approx(1.0, rel=1e-12)


def test_a_consumer_without_a_response_counts_for_nothing(facts_of: Any) -> None:
    facts = facts_of(
        IMAGE + ONE + "[last] y = Conv <kernel_shape = [1, 1]> (b, w1) }",
        SIZE,
        w0=(4, 3, 1, 1),
        w1=np.zeros((2, 4, 1, 1), np.float32),
    )
    coupling = facts.coupling()
    assert channel_damage(facts, coupling, coupling.group("one")).tolist() == [0.0] * 4


def test_what_is_removed_without_correlations_costs_what_is_predicted(facts_of: Any) -> None:
    """Independent inputs, one output position: the measured relative error is the prediction."""
    facts = facts_of(
        "net (float[N, 4] x) => (float[N, 3] y) { [one] a = MatMul (x, w0) [r] b = Relu (a)"
        " [last] y = MatMul (b, w1) }",
        (1, 4),
        w0=np.eye(4, dtype=np.float32),
        w1=(4, 3),
    )
    # Of x in {-s, s}, ReLU leaves 0 or s; all 16 combinations, so that moments are exact.
    scales = np.array([1.0, 2.0, 0.5, 3.0])
    x = np.array([[(n >> c & 1) * scales[c] for c in range(4)] for n in range(16)])
    statistics = ChannelStatistics(x.mean(axis=0), np.square(x).mean(axis=0), np.ones(4), 16)
    facts = facts.with_activations(lambda axes, *_: dict.fromkeys(axes, statistics))
    coupling = facts.coupling()
    found = channel_damage(facts, coupling, coupling.group("one"))
    weight = facts.view.array64("w1")
    norms = np.square(weight).sum(axis=1)
    for channel in range(4):
        lost = np.square(np.outer(x[:, channel], weight[channel])).sum(axis=1).mean()
        assert found[channel] == pytest.approx(
            lost / (norms @ np.square(x).mean(axis=0)), rel=1e-12
        )
