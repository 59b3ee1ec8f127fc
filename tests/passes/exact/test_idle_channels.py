"""Channels that are zero, not read, or there twice: removed without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.graph.view import GraphView

CHAIN = """net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y) {
    [one] a = Conv (x, w1, b1)
    [bend] b = Relu (a)
    [two] y = Conv <pads = [1, 1, 1, 1]> (b, w2, b2) }"""
WIDTH = 8


@pytest.fixture
def weights(kit: Any) -> dict[str, np.ndarray]:
    return {
        "w1": kit.whole((WIDTH, 3, 1, 1), seed=1),
        "b1": kit.whole((WIDTH,), seed=2),
        "w2": kit.whole((5, WIDTH, 3, 3), seed=3),
        "b2": kit.whole((5,), seed=4),
    }


def gone(bench: Any, model: onnx.ModelProto) -> list[tuple[int, ...]]:
    return [c.setting.gone for c in bench.offers(model) if c.setting.kind == "channels"]


def left(model: onnx.ModelProto, node: str) -> Sequence[int]:
    view = GraphView(model)
    return view.array(view.nodes[node].input[1]).shape


@pytest.mark.parametrize("bias", [0.0, -2.0])
def test_dead(bench: Any, nets: Any, weights: Any, bias: float) -> None:
    """No weights, and a bias that the activation cuts off."""
    weights["w1"][[1, 4]], weights["b1"][[1, 4]] = 0.0, bias
    model = nets.build(CHAIN, **weights)
    assert gone(bench, model) == [(1, 4)]
    assert left(bench.checked(model), "one") == (6, 3, 1, 1)


def test_a_constant_that_padding_would_show_stays(bench: Any, nets: Any, weights: Any) -> None:
    weights["w1"][1], weights["b1"][1] = 0.0, 2.0
    assert gone(bench, nets.build(CHAIN, **weights)) == []


@pytest.mark.parametrize(
    ("activation", "bias", "dies"),
    [
        ("Clip (a, zero, six)", -1.0, True),
        ("Clip (a, one, six)", -1.0, False),
        ("HardSwish (a)", -3.0, True),
        ("HardSwish (a)", -1.0, False),
        ("Sigmoid (a)", -1.0, False),
        ("LeakyRelu (a)", -1.0, False),
    ],
)
def test_what_other_activations_cut_off(
    bench: Any, nets: Any, kit: Any, weights: Any, activation: str, bias: float, dies: bool
) -> None:
    weights["w1"][3], weights["b1"][3] = 0.0, bias
    bounds = {"zero": np.float32(0), "one": np.float32(1), "six": np.float32(6)}
    model = nets.build(CHAIN.replace("Relu (a)", activation), **weights, **bounds)
    assert gone(bench, model) == ([(3,)] if dies else [])


def test_not_read(bench: Any, nets: Any, weights: Any) -> None:
    weights["w2"][:, [0, 6]] = 0.0
    model = nets.build(CHAIN, **weights)
    assert gone(bench, model) == [(0, 6)]
    assert left(bench.checked(model), "two") == (5, 6, 3, 3)


def test_there_twice(bench: Any, nets: Any, weights: Any) -> None:
    """The readers' weights for the copies are added to those for the first."""
    for copy in (5, 7):
        weights["w1"][copy], weights["b1"][copy] = weights["w1"][2], weights["b1"][2]
    model = nets.build(CHAIN, **weights)
    (candidate,) = bench.offers(model)
    assert candidate.setting.gone == (5, 7)
    assert candidate.setting.into == (2, 2)
    assert left(bench.checked(model), "one") == (6, 3, 1, 1)


def test_twins_that_are_told_apart_stay(bench: Any, nets: Any, kit: Any, weights: Any) -> None:
    """A slope per channel lies between the layers."""
    weights["w1"][5], weights["b1"][5] = weights["w1"][2], weights["b1"][2]
    slopes = (np.arange(WIDTH, dtype=np.float32) / 8).reshape(WIDTH, 1, 1)
    text = CHAIN.replace("Relu (a)", "PRelu (a, slopes)")
    assert gone(bench, nets.build(text, **weights, slopes=slopes)) == []


@pytest.mark.parametrize("twice", [False, True])
def test_through_a_depthwise_layer(
    bench: Any, nets: Any, kit: Any, weights: Any, *, twice: bool
) -> None:
    text = f"""net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y) {{
        [one] a = Conv (x, w1, b1)
        [bend] b = Relu (a)
        [dw] c = Conv <group = {WIDTH}, pads = [1, 1, 1, 1]> (b, wd, bd)
        [bend2] d = Relu (c)
        [two] y = Conv <pads = [1, 1, 1, 1]> (d, w2, b2) }}"""
    deep = {"wd": kit.whole((WIDTH, 1, 3, 3), seed=5), "bd": kit.whole((WIDTH,), seed=6)}
    deep["bd"][[2, 5]] = -1.0
    if twice:
        for values in (weights["w1"], weights["b1"], deep["wd"]):
            values[5] = values[2]
    else:
        weights["w1"][5], weights["b1"][5] = 0.0, -1.0
    model = nets.build(text, **weights, **deep)
    assert gone(bench, model) == [(5,)]
    assert left(bench.checked(model), "dw") == (WIDTH - 1, 1, 3, 3)
    # The depthwise layer makes a constant of the dead channel, or tells the twins apart.
    deep["bd"][5] = 2.0
    assert gone(bench, nets.build(text, **weights, **deep)) == []


FLATTENINGS = {
    "Flatten": "[flat] c = Flatten (b)",
    "Reshape": "[flat] c = Reshape (b, flat)",
    "channels last": "[turn] t = Transpose <perm = [0, 2, 3, 1]> (b) [flat] c = Reshape (t, flat)",
}


@pytest.mark.parametrize("flattening", FLATTENINGS.values(), ids=FLATTENINGS.keys())
def test_through_flattening(bench: Any, nets: Any, kit: Any, weights: Any, flattening: str) -> None:
    """Features of one channel lie side by side in the dense layer, or a row of channels apart."""
    del weights["w2"], weights["b2"]
    weights["w1"][5], weights["b1"][5] = weights["w1"][2], weights["b1"][2]
    model = nets.build(
        f"""net (float[N, 3, 4, 2] x) => (float[N, 5] y) {{
        [one] a = Conv (x, w1, b1)
        [bend] b = Relu (a)
        {flattening}
        [fc] y = Gemm <transB = 1> (c, w2, b2) }}""",
        **weights,
        w2=kit.whole((5, WIDTH * 8), seed=3),
        b2=kit.whole((5,), seed=4),
        **({"flat": np.array([0, -1])} if "Reshape" in flattening else {}),
    )
    assert left(bench.checked(model), "fc") == (5, (WIDTH - 1) * 8)


def test_a_residual_stream(bench: Any, nets: Any, kit: Any) -> None:
    """Dead in the stem and in the branch that is added to it."""
    constants = {
        "w0": kit.whole((WIDTH, 3, 1, 1), seed=1),
        "w1": kit.whole((WIDTH, WIDTH, 3, 3), seed=2),
        "w2": kit.whole((5, WIDTH, 1, 1), seed=3),
    }
    text = """net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y) {
        [stem] a = Conv (x, w0)
        [r0] b = Relu (a)
        [branch] c = Conv <pads = [1, 1, 1, 1]> (b, w1)
        [sum] d = Add (b, c)
        [r1] e = Relu (d)
        [last] y = Conv (e, w2) }"""
    constants["w0"][3] = 0.0
    assert gone(bench, nets.build(text, **constants)) == []
    constants["w1"][3] = 0.0
    model = nets.build(text, **constants)
    assert gone(bench, model) == [(3,)]
    assert left(bench.checked(model), "branch") == (WIDTH - 1, WIDTH - 1, 3, 3)


def test_one_channel_stays(bench: Any, nets: Any, weights: Any) -> None:
    weights["w2"][:] = 0.0
    model = nets.build(CHAIN, **weights)
    assert left(bench.checked(model), "one") == (1, 3, 1, 1)


def test_widths_on_offer(bench: Any, nets: Any, kit: Any) -> None:
    """All idle channels, or only as many as leave a width that kernels like."""
    readers = kit.whole((5, 40, 3, 3), seed=3)
    readers[:, 3:14] = 0.0
    model = nets.build(CHAIN, w1=(40, 3, 1, 1), b1=(40,), w2=readers, b2=(5,))
    (offers,) = bench.options(model).sites
    assert [40 - len(c.setting.gone) for c in offers] == [32, 29]
    assert [c.recommended for c in offers] == [False, True]
    for candidate in offers:
        kept = 40 - len(candidate.setting.gone)
        assert left(bench.rewritten(model, candidate), "one") == (kept, 3, 1, 1)


def test_excluded(bench: Any, nets: Any, weights: Any) -> None:
    weights["w2"][:, 1] = 0.0
    model = nets.build(CHAIN, **weights)
    assert bench.kinds(model, excluded=["two"]) == []
