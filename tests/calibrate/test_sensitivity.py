"""Gradients in gates of classifiers against differences of every sample's cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress.calibrate.sample_batches as batches_module
import onnxcompress.calibrate.sensitivity as module
from onnxcompress.errors import GradientError

TAPS = {"a": 1, "b": 1, "d": 1, "e": 1, "f": 1, "g": 1, "i": 1}
CLASSES = {False: 8, True: 3}


def assert_gradients(
    truth: Any,
    measured: Any,
    ending: str = "logits",
    *,
    variant: onnx.ModelProto | None = None,
    taps: Mapping[str, int] = TAPS,
) -> None:
    found = measured.sensitivity.gate_gradients(taps, variant)
    model, feeds, order = measured.sensitivity.model, measured.feeds, measured.order
    if measured.samples.labels is None:
        classes = truth.forward(model, feeds)({})["y"].reshape(len(order), -1).argmax(axis=1)
    else:
        classes = measured.samples.labels[order]
    expected = truth.slopes(variant or model, taps, feeds, truth.losses(ending, classes))
    assert list(found) == list(taps)
    for tap in taps:
        truth.assert_close(found[tap], expected[tap], tap)


def labels(count: int, *, equal: bool = False, seed: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CLASSES[equal], count)


@pytest.mark.parametrize("ending", ["logits", "softmax", "log", "made", "pixels", "pixels softmax"])
@pytest.mark.parametrize("known", [True, False], ids=["labels", "own classes"])
@pytest.mark.parametrize("equal", [False, True], ids=["distinct", "equal"])
def test_every_sample_and_channel(
    truth: Any, nets: Any, ending: str, *, known: bool, equal: bool
) -> None:
    model = truth.classifier(nets, ending, equal=equal)
    given = labels(5, equal=equal) if known else None
    assert_gradients(truth, truth.measured(model, nets.samples(model, 5), given), ending)


@pytest.mark.parametrize("ending", ["softmax", "made"])
@pytest.mark.parametrize("known", [True, False], ids=["labels", "own classes"])
def test_a_variant_is_held_to_the_answers_of_the_network_itself(
    truth: Any, nets: Any, ending: str, *, known: bool
) -> None:
    model = truth.classifier(nets, ending)
    variant, x = truth.changed(model, size=0.2), nets.samples(model, 6)
    before = [model.SerializeToString(), variant.SerializeToString()]
    measured = truth.measured(model, x, labels(6) if known else None)
    one, other = (truth.forward(m, x)({})["y"].argmax(axis=1) for m in (model, variant))
    assert (one != other).any(), "the variant would show nothing"
    assert_gradients(truth, measured, ending, variant=variant)
    assert_gradients(truth, measured, ending)
    assert [model.SerializeToString(), variant.SerializeToString()] == before


@pytest.mark.parametrize(("count", "size"), [(7, 3), (6, 3), (4, 1), (2, 5)])
def test_batches(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch, count: int, size: int
) -> None:
    """Of which the last is filled up."""
    monkeypatch.setattr(batches_module, "_BATCH", size)
    model = truth.classifier(nets)
    assert_gradients(truth, truth.measured(model, nets.samples(model, count), labels(count)))


def test_little_memory_takes_more_batches(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "_BATCH_BYTES", 1)
    model = truth.classifier(nets)
    measured = truth.measured(model, nets.samples(model, 3), labels(3))
    assert_gradients(truth, measured)
    assert set(measured.samples.reads) == {1}


@pytest.mark.parametrize(("batch", "count", "taken"), [(1, 4, 4), (3, 8, 6)])
@pytest.mark.parametrize("ending", ["logits", "made"])
def test_a_fixed_batch(
    truth: Any, nets: Any, batch: int, count: int, taken: int, ending: str
) -> None:
    model = truth.classifier(nets, ending, batch=batch)
    measured = truth.measured(model, nets.samples(model, count), labels(count))
    assert_gradients(truth, measured, ending)
    assert len(measured.order) == taken


@pytest.mark.parametrize(
    ("batch", "limit", "taken"), [("N", 5, 5), ("N", 99, 9), (3, 7, 6), (3, 2, 3), (1, 2, 2)]
)
def test_no_more_samples_than_asked_for(
    truth: Any, nets: Any, batch: Any, limit: int, taken: int
) -> None:
    """A random part, which the seed decides, in whole batches."""
    model = truth.classifier(nets, batch=batch)
    x = nets.samples(model, 9)
    orders = []
    for seed in (0, 0, 1):
        measured = truth.measured(model, x, labels(9), seed=seed, samples=limit)
        assert_gradients(truth, measured, taps={"b": 1})
        assert len(set(measured.order)) == taken
        orders.append(measured.order.tolist())
    assert orders[0] == orders[1] != orders[2]
    assert any(order != sorted(order) for order in orders)


@pytest.mark.parametrize("what", ["batch", "threads"])
def test_results_do_not_depend_on_it(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    model = truth.classifier(nets, "softmax")
    x = nets.samples(model, 8)
    found = []
    for size in (8, 3):
        if what == "batch":
            monkeypatch.setattr(batches_module, "_BATCH", size)
        threads = size // 3 if what == "threads" else 1
        sensitivity = truth.measured(model, x, threads=threads).sensitivity
        found.append((sensitivity.gate_gradients(TAPS), sensitivity.fisher({"f": 1, "i": 1})))
    for one, other in zip(*found, strict=True):
        for name in one:
            truth.assert_close(other[name], one[name], name)


def test_half_precision(truth: Any, nets: Any) -> None:
    """Activations are rounded to 2^-11 of what they are, layer by layer; sums are float32."""
    text = """net (float16[N, 3, 4, 5] x) => (float16[N, 6] y) {
        [first] a = Conv (x, w0)
        [tanh] b = Tanh (a)
        [pool] p = GlobalAveragePool (b)
        [flat] q = Flatten (p)
        [dense] y = MatMul (q, w1) }"""
    generator = np.random.default_rng(2)
    w0, w1 = (generator.standard_normal(s).astype(np.float16) for s in ((4, 3, 1, 1), (4, 6)))
    model = nets.build(text, w0=w0, w1=w1)
    x = {"x": generator.standard_normal((5, 3, 4, 5)).astype(np.float16)}
    measured = truth.measured(model, x, labels(5, equal=True))
    taps = {"a": 1, "b": 1}
    found = measured.sensitivity.gate_gradients(taps)
    losses = truth.losses("logits", measured.samples.labels[measured.order])
    for tap, expected in truth.slopes(model, taps, measured.feeds, losses).items():
        assert found[tap].dtype == np.float64
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[tap], expected, rtol=0, atol=6 * 2**-11 * scale)
    ablations = [{"a": (0,)}, {"a": (1,), "b": (2,)}]
    changes = measured.sensitivity.ablate(taps, ablations)
    run = truth.forward(model, measured.feeds, ("a", "b"))
    for change, ablation in zip(changes, ablations, strict=True):
        masks = {t: (~np.isin(np.arange(4), c)).reshape(4, 1, 1) * 1.0 for t, c in ablation.items()}
        expected = (losses(run(masks)) - losses(run({}))).mean()
        np.testing.assert_allclose(change, expected, rtol=0, atol=6 * 2**-11)
        assert abs(expected) > 0.02


def test_taps_that_the_loss_does_not_depend_on(truth: Any, nets: Any) -> None:
    """Neither a dead end, nor what only an integer output is made of."""
    text = """net (float[N, 3, 4, 5] x) => (float[N, 6] y, int64[N, 1, 4, 5] best) {
        [first] a = Conv (x, w0)
        [side] s = Conv (a, w1)
        [largest] best = ArgMax <axis=1> (s)
        [dead] t = Relu (a)
        [pool] p = GlobalAveragePool (a)
        [flat] q = Flatten (p)
        [dense] y = MatMul (q, w2) }"""
    model = nets.build(text, w0=(4, 3, 1, 1), w1=(2, 4, 1, 1), w2=(4, 6))
    measured = truth.measured(model, nets.samples(model, 5))
    sensitivity = measured.sensitivity
    found = sensitivity.gate_gradients({"s": 1, "a": 1, "t": 1})
    assert list(found) == ["s", "a", "t"]
    assert np.array_equal(found["s"], np.zeros((5, 2)))
    assert np.array_equal(found["t"], np.zeros((5, 4)))
    assert_gradients(truth, measured, taps={"a": 1})
    alone = sensitivity.gate_gradients({"s": 1})["s"]
    assert np.array_equal(alone, np.zeros((5, 2)))
    curved = sensitivity.curvature({"s": 1, "a": 1})
    assert np.array_equal(curved["s"], np.zeros(2))
    assert curved["a"].any()
    fisher = sensitivity.fisher({"s": 1, "a": 1})
    assert np.array_equal(fisher["s"], np.zeros((2, 2)))
    assert sensitivity.gate_gradients({}) == {}


def test_an_operator_without_a_gradient_is_named(truth: Any, nets: Any) -> None:
    text = """net (float[N, 3, 4, 5] x) => (float[N, 3] y) {
        [first] a = Conv (x, w0)
        [odd] b = Det (a)
        [dense] y = MatMul (b, w1) }"""
    model = nets.build(text, w0=(4, 3, 1, 2), w1=(4, 3))
    measured = truth.measured(model, nets.samples(model, 2))
    with pytest.raises(GradientError, match="Det 'odd'"):
        measured.sensitivity.gate_gradients({"a": 1})


@pytest.mark.parametrize("what", ["gate_gradients", "curvature", "responses", "fisher"])
def test_a_conversion_that_changes_the_network_is_refused(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The model is of opset 17; a converter that doubles every weight stands in for a bad one."""
    model = truth.classifier(nets)
    sensitivity = truth.measured(model, nets.samples(model, 3)).sensitivity
    assert getattr(sensitivity, what)({"b": 1})
    genuine = module.raised

    def wrong(given: onnx.ModelProto) -> onnx.ModelProto:
        result = genuine(given)
        for tensor in result.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype.kind == "f":
                tensor.CopyFrom(onnx.numpy_helper.from_array(2 * values, tensor.name))
        return result

    monkeypatch.setattr(module, "raised", wrong)
    sensitivity = truth.measured(model, nets.samples(model, 3)).sensitivity
    with pytest.raises(GradientError, match="to opset 18 changes what it computes"):
        getattr(sensitivity, what)({"b": 1})


@pytest.mark.parametrize("fault", ["channels", "rows", "classes"])
def test_the_comparison_sees_faults(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    model = truth.classifier(nets)
    measured = truth.measured(model, nets.samples(model, 5), labels(5))
    if fault == "channels":
        monkeypatch.setattr(module, "_wide", lambda values: values.astype(np.float64)[:, ::-1])
    elif fault == "rows":
        monkeypatch.setattr(batches_module, "_BATCH", 2)
        monkeypatch.setattr(module, "_wide", lambda values: values.astype(np.float64)[::-1])
    else:
        monkeypatch.setattr(type(measured.targets), "given", lambda self, rows: self.drawn(rows))
    with pytest.raises(AssertionError):
        assert_gradients(truth, measured)
