"""What is scored is what is removed: zero at the layer, whatever constant that leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.errors import GradientError, ModelError
from onnxcompress.plan.channels.remove import zero_channels
from onnxcompress.plan.saliency.criteria import scores
from onnxcompress.plan.saliency.taps import gate_of
from onnxcompress.study import study

NET = """net (float[N, 3, 6, 5] x) => (float[N, 4] y) {{
    [one] a = Conv (x, w1, b1)
    {middle}
    [two] d = Conv (c, w2)
    [last] r = Relu (d)
    [pool] p = GlobalAveragePool (r)
    [flat] f = Flatten (p)
    [fc] y = Gemm (f, w3) }}"""
WEIGHTS = {"w1": (5, 3, 2, 2), "b1": (5,), "w2": (4, 5, 1, 1), "w3": (4, 4)}
BN = {"s": (5,), "t": (5,), "m": (5,), "v": np.array([0.5, 1, 2, 3, 4], np.float32)}
CHAINS: dict[str, tuple[str, dict[str, Any], str]] = {
    "ReLU": ("c = Relu (a)", {}, "c"),
    "Sigmoid": ("[act] c = Sigmoid (a)", {}, "a"),
    "ReLU, Sigmoid": ("b = Relu (a) [act] c = Sigmoid (b)", {}, "b"),
    "shift": ("b = Relu (a) [add] c = Add (b, t)", {"t": (5, 1, 1)}, "b"),
    "scale": ("b = Relu (a) [mul] c = Mul (b, t)", {"t": (5, 1, 1)}, "c"),
    "normalisation": ("b = Relu (a) [bn] c = BatchNormalization (b, s, t, m, v)", BN, "b"),
    "swish": ("g = Sigmoid (a) [mul] c = Mul (a, g)", {}, "c"),
}


def mean_loss(kit: Any, model: Any, x: np.ndarray, y: np.ndarray) -> float:
    logits = kit.run(model, {"x": x})[0].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(y)), y] - np.log(np.exp(logits).sum(axis=1))
    return -float(chosen.mean())


@pytest.mark.parametrize("label", CHAINS)
def test_the_oracle_is_what_removal_costs(nets: Any, kit: Any, ask: Any, label: str) -> None:
    middle, constants, gate = CHAINS[label]
    model = nets.build(NET.format(middle=middle), **WEIGHTS, **constants)
    x = nets.samples(model, 12)["x"]
    y = np.random.default_rng(3).integers(0, 4, 12)
    question = ask(nets.facts(model, {"x": x, "y": y}))
    coupling = question.coupling
    assert gate_of(question.facts.view, coupling, "one") == gate
    found = scores("oracle-loss", question)["one"]
    base = mean_loss(kit, model, x, y)
    expected = [
        mean_loss(kit, zero_channels(model, coupling, {"one": (c,)}), x, y) - base
        for c in range(coupling.group("one").width)
    ]
    assert len(set(np.round(expected, 6))) == 5
    # Logits of order one in float32; the loss in float64.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("criterion", ["taylor", "taylor-gate", "obd"])
def test_what_is_no_number_is_refused(nets: Any, ask: Any, criterion: str) -> None:
    """The square root of a dead channel has no slope."""
    text = NET.format(middle="b = Relu (a)\n    [root] c = Pow (b, half)")
    weights = {**WEIGHTS, "b1": np.array([9, 9, 9, 9, -90], np.float32)}
    model = nets.build(text, **weights, half=np.array(0.5, np.float32))
    with pytest.raises(GradientError, match=r"'one' are not all numbers; these criteria still"):
        scores(criterion, ask(nets.facts(model, nets.samples(model, 3))))


@pytest.mark.parametrize("criterion", ["taylor", "oracle-abs"])
def test_answers_that_are_no_numbers_are_refused(nets: Any, ask: Any, criterion: str) -> None:
    text = NET.format(middle="b = Relu (a)\n    [log] c = Log (b)")
    weights = {**WEIGHTS, "b1": np.array([9, 9, 9, 9, -90], np.float32)}
    model = nets.build(text, **weights)
    with pytest.raises(ModelError, match=r"'y' has NaN or infinite values on data"):
        scores(criterion, ask(nets.facts(model, nets.samples(model, 3))))


CLASSES = """net (float[N, 3, 4, 5] x) => (float[N, {k}] y{second}) {{
    [one] a = Conv (x, w1)
    [act] b = Relu (a)
    [pool] p = GlobalAveragePool (b)
    [flat] f = Flatten (p)
    [fc] y = Gemm (f, w2)
    {more} }}"""


@pytest.fixture
def told(nets: Any) -> Callable[..., Any]:
    """The study of a small classifier, and the notes it gave."""

    def call(k: str, second: str = "", more: str = "", *, labelled: bool = True) -> Any:
        text = CLASSES.format(k=k, second=second, more=more)
        model = nets.build(text, w1=(6, 3, 2, 2), w2=(6, 4))
        samples = nets.samples(model, 9)
        if labelled:
            samples["y"] = np.random.default_rng(2).integers(0, 4, 9)
        notes: list[str] = []
        progress = type(
            "Notes",
            (),
            {
                "stage": lambda *_: None,
                "step": lambda *_: None,
                "note": lambda _, w: notes.append(w),
            },
        )()
        data = dataset_from_arrays(samples, input_specs(model))
        return study(model, data, criteria=["taylor"], progress=progress), notes

    return call


def test_labels_count_whatever_the_classes_are_called(told: Callable[..., Any]) -> None:
    fixed, symbolic = (told(k)[0] for k in ("4", "K"))
    assert fixed.measured.loss == symbolic.measured.loss == "labels"
    unlabelled = told("K", labelled=False)[0]
    assert unlabelled.measured.loss == "the network's own classes"
    one, other, third = (s.scores["taylor"]["one"] for s in (fixed, symbolic, unlabelled))
    np.testing.assert_array_equal(one, other)
    assert not np.allclose(one, third, rtol=1e-3)


def test_labels_that_nothing_answers_are_noted(told: Callable[..., Any]) -> None:
    found, notes = told("4", ", float[N, 4] z", "[tanh] z = Tanh (y)")
    assert found.measured.loss == "its own outputs"
    assert [note for note in notes if "labels are not used" in note]


@pytest.mark.parametrize("criterion", ["taylor", "mutual-information"])
def test_samples_folded_into_rows_are_refused(nets: Any, ask: Any, criterion: str) -> None:
    text = """net (float[N, 3, 4, 5] x) => (float[N, 2] y) {
        [one] a = Conv (x, w1)
        [act] b = Relu (a)
        [turn] t = Transpose <perm = [0, 2, 3, 1]> (b)
        [rows] r = Reshape (t, shape)
        [hidden] h = Gemm (r, w2)
        [act2] g = Relu (h)
        [out] o = Gemm (g, w3)
        [back] k = Reshape (o, whole)
        [mean] y = ReduceMean <axes = [1], keepdims = 0> (k) }"""
    model = nets.build(
        text,
        w1=(6, 3, 1, 1),
        w2=(6, 5),
        w3=(5, 2),
        shape=np.array([-1, 6]),
        whole=np.array([-1, 20, 2]),
    )
    question = ask(nets.facts(model, nets.samples(model, 6)))
    assert "hidden" in question.layers
    with pytest.raises(ModelError, match="no batch axis: samples cannot be told apart"):
        scores(criterion, question)
