"""Fisher information against its definition, exactly for drawn classes and within their error.

The exact information sums over all classes, weighted by the network's own probabilities; what the
engine draws is an unbiased estimate of it, one class per sample.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress.calibrate.sample_batches as batches_module
import onnxcompress.calibrate.sensitivity as module
from onnxcompress.calibrate.targets import Targets

TENSORS = {"c": 1, "f": 1, "h": 1, "p": 1}


def slopes(truth: Any, model: onnx.ModelProto, tensor: str, feeds: Any, measure: Any) -> np.ndarray:
    """dC/dy of every sample in every element of a tensor [N, ...]: central differences."""
    run = truth.forward(model, feeds, [tensor], "Add", also=[tensor])
    found = np.zeros(run({})[tensor].shape)
    for index in np.ndindex(found.shape[1:]):
        step = np.zeros((1, *found.shape[1:]))
        step[(0, *index)] = 1e-6
        ends = [measure(run({tensor: way * step})) for way in (1, -1)]
        found[(slice(None), *index)] = (ends[0] - ends[1]) / 2e-6
    return found


def outer(gradients: np.ndarray, axis: int) -> np.ndarray:
    """Of every sample, the sum over positions of g g' [N, C, C], one position at a time."""
    rows = np.moveaxis(gradients, axis, -1)
    rows = rows.reshape(len(rows), -1, rows.shape[-1])
    total = np.zeros((len(rows), rows.shape[-1], rows.shape[-1]))
    for sample, positions in enumerate(rows):
        for g in positions:
            total[sample] += np.outer(g, g)
    return total


def drawn(measured: Any) -> np.ndarray:
    each = np.arange(len(measured.order))
    return np.asarray(measured.targets.drawn(each).argmax(axis=1))


@pytest.mark.parametrize("ending", ["logits", "softmax", "made", "pixels softmax"])
@pytest.mark.parametrize(
    ("batch", "count", "size"), [("N", 6, 64), ("N", 5, 2), (1, 3, 64), (3, 7, 64)]
)
def test_with_the_classes_that_were_drawn(
    truth: Any,
    nets: Any,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    batch: Any,
    count: int,
    size: int,
) -> None:
    """Labels do not matter."""
    monkeypatch.setattr(batches_module, "_BATCH", size)
    model = truth.classifier(nets, ending, batch=batch)
    measured = truth.measured(model, nets.samples(model, count), np.zeros(count, np.int64))
    found = measured.sensitivity.fisher(TENSORS)
    free, classes = truth.classifier(nets, ending), drawn(measured)
    assert list(found) == list(TENSORS)
    losses = truth.losses(ending, classes)
    for name, axis in (("f", 1), ("p", 1)):
        gradients = slopes(truth, free, name, measured.feeds, losses)
        truth.assert_close(found[name], outer(gradients, axis).mean(axis=0), name)


def test_equal_extents_and_channels_last(truth: Any, nets: Any) -> None:
    text = """net (float[N, 3, 3, 3] x) => (float[N, 3] y) {
        [first] a = Conv (x, w0)
        [tanh] b = Tanh (a)
        [turn] t = Transpose <perm=[0, 2, 3, 1]> (b)
        [dense] u = MatMul (t, w1)
        [most] q = ReduceMax <axes=[1, 2], keepdims=0> (u)
        [last] y = MatMul (q, w2) }"""
    model = nets.build(text, w0=(3, 3, 1, 1), w1=(3, 3), w2=(3, 3))
    measured = truth.measured(model, nets.samples(model, 3))
    found = measured.sensitivity.fisher({"a": 1, "t": 3, "u": 3, "q": 1})
    losses = truth.losses("logits", drawn(measured))
    for name, axis in {"a": 1, "t": 3, "u": 3, "q": 1}.items():
        gradients = slopes(truth, model, name, measured.feeds, losses)
        truth.assert_close(found[name], outer(gradients, axis).mean(axis=0), name)
    # A tensor and its transpose have the same channels.
    b = measured.sensitivity.fisher({"b": 1})["b"]
    truth.assert_close(found["t"], b)


def linear(nets: Any) -> onnx.ModelProto:
    """Pooled channels and a dense layer: gradients in a and q are known in closed form."""
    text = """net (float[N, 3, 2, 5] x) => (float[N, 4] y) {
        [first] a = Conv (x, w0)
        [pool] p = GlobalAveragePool (a)
        [flat] q = Flatten (p)
        [dense] y = Gemm <transB=1> (q, w1, b1) }"""
    big = 3.0 * np.random.default_rng(3).standard_normal((4, 5)).astype(np.float32)
    model: onnx.ModelProto = nets.build(text, w0=(5, 3, 1, 1), w1=big, b1=(4,))
    return model


@pytest.mark.parametrize("variant", [False, True], ids=["itself", "variant"])
def test_expectation_over_classes(truth: Any, nets: Any, *, variant: bool) -> None:
    """Sum over k of p_k sum g_k g_k', with p of the network itself, within the draws' error.

    With W of the last layer and q the network's (or variant's) probabilities, the gradient in the
    logits is q - e_k, W'(q - e_k) in the pooled channels, and 1/10 of that at every position.
    """
    model, count = linear(nets), 1500
    x = nets.samples(model, count)
    other = truth.changed(model) if variant else model
    measured = truth.measured(model, x, samples=count)
    found = measured.sensitivity.fisher({"a": 1, "q": 1, "y": 1}, other if variant else None)
    p, q = (
        np.exp(truth.log_probabilities("logits", truth.forward(m, measured.feeds)({})["y"]))
        for m in (model, other)
    )
    w = next(t for t in other.graph.initializer if t.name == "w1")
    weights = onnx.numpy_helper.to_array(w).astype(np.float64)
    g = q[:, np.newaxis, :] - np.eye(4)
    pooled = g @ weights
    for name, rows in {"y": g, "q": pooled, "a": pooled / np.sqrt(10)}.items():
        products = rows[..., :, np.newaxis] * rows[..., np.newaxis, :]
        weighted = p[..., np.newaxis, np.newaxis]
        means = (weighted * products).sum(axis=1)
        variances = (weighted * np.square(products)).sum(axis=1) - np.square(means)
        deviation = np.sqrt(variances.sum(axis=0)) / count
        expected = means.mean(axis=0)
        assert (np.abs(found[name] - expected) <= 5 * deviation + 1e-6).all()
        assert (np.diagonal(expected) > 10 * np.diagonal(deviation)).all()
        assert not np.allclose(found[name], expected, rtol=1e-5), "drawn, not summed"


def test_symmetric_and_positive(truth: Any, nets: Any) -> None:
    model = truth.classifier(nets)
    found = truth.measured(model, nets.samples(model, 7)).sensitivity.fisher(TENSORS)
    for name, values in found.items():
        assert values.dtype == np.float64
        assert np.array_equal(values, values.T)
        lines = np.linalg.eigvalsh(values)
        # Sums of squares in float64.
        assert lines[0] > -1e-12 * lines[-1], name
        assert lines[-1] > 0
        assert values.shape == ({"c": 4, "f": 2, "h": 9, "p": 9}[name],) * 2


def test_no_more_samples_than_asked_for(truth: Any, nets: Any) -> None:
    model = linear(nets)
    measured = truth.measured(model, nets.samples(model, 9), samples=4)
    found = measured.sensitivity.fisher({"q": 1})["q"]
    assert len(measured.order) == 4
    losses = truth.losses("logits", drawn(measured))
    gradients = slopes(truth, model, "q", measured.feeds, losses)
    truth.assert_close(found, outer(gradients, 1).mean(axis=0))


def test_the_seed_decides(truth: Any, nets: Any) -> None:
    model = linear(nets)
    x = nets.samples(model, 20)
    found = [truth.measured(model, x, seed=s).sensitivity.fisher({"a": 1})["a"] for s in (0, 0, 1)]
    assert np.array_equal(found[0], found[1])
    assert not np.allclose(found[0], found[2], rtol=1e-3)


def test_without_classes(truth: Any, nets: Any) -> None:
    """Along the random signs of every sample, relative to its outputs."""
    model = truth.several(nets)
    measured = truth.measured(model, nets.samples(model, 3))
    found = measured.sensitivity.fisher({"b": 1, "t": 3})
    rows = np.arange(3)

    def along(outputs: dict[str, np.ndarray]) -> np.ndarray:
        total = np.zeros(3)
        for name, own in answers.items():
            flat = outputs[name].reshape(3, -1)
            norms = np.linalg.norm(own.reshape(3, -1), axis=1)
            signs = np.sign(measured.targets.signs(name, rows, flat.shape))
            total += (flat * signs).sum(axis=1) / norms
        return total

    answers = truth.forward(model, measured.feeds)({})
    for name, axis in {"b": 1, "t": 3}.items():
        gradients = slopes(truth, model, name, measured.feeds, along)
        truth.assert_close(found[name], outer(gradients, axis).mean(axis=0), name)


@pytest.mark.parametrize("fault", ["labels", "filled", "positions"])
def test_the_comparison_sees_faults(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    wide = module._wide
    if fault == "labels":
        monkeypatch.setattr(
            module.CollectedSensitivity,
            "_held_to_draws",
            lambda self, built, part: self._held_to_targets(built, part),
        )
    elif fault == "positions":
        monkeypatch.setattr(module, "_wide", lambda values: wide(values)[:, :, :1])
    else:
        genuine = batches_module.batches

        def counted(samples: Any, size: int) -> Any:
            for part in genuine(samples, size):
                yield replace(part, count=len(part.rows))

        monkeypatch.setattr(batches_module, "batches", counted)
    with pytest.raises(AssertionError):
        test_with_the_classes_that_were_drawn(truth, nets, monkeypatch, "logits", "N", 5, 2)


def test_draws_are_the_targets_own(truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The expectation above sees classes that are not drawn from the probabilities."""
    genuine = Targets.drawn
    monkeypatch.setattr(Targets, "drawn", lambda self, rows: genuine(self, rows)[:, ::-1])
    with pytest.raises(AssertionError):
        test_expectation_over_classes(truth, nets, variant=False)
