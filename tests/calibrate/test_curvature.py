"""The diagonal of the Hessian against second differences of the mean loss, on smooth networks.

The engine takes differences of gradients over a wide step, for the sake of kinks; with a small
step they must become second derivatives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress.calibrate.sample_batches as batches_module
import onnxcompress.calibrate.sensitivity as module
from onnxcompress.calibrate.targets import Targets

STEP = 1e-3
"""Of second differences in float64: their error is about STEP^2 and 2^-53 / STEP^2."""

SMALL = 1e-2
"""Of differences of float32 gradients, which are good to about 1e-6: 1e-4 after the division."""


def network(nets: Any, *, width: int, batch: Any = "N", equal: bool = False) -> onnx.ModelProto:
    """x -> a (tanh) [N, width, H, W] -> b (sigmoid) [N, 4, H, W] -> y [N, K]."""
    inner, height, wide, classes = (3, 3, 3, 3) if equal else (4, 5, 2, 6)
    text = f"""net (float[{batch}, 3, {height}, {wide}] x) => (float[{batch}, {classes}] y) {{
        [first] c = Conv (x, w0, b0)
        [tanh] a = Tanh (c)
        [second] d = Conv (a, w1)
        [gate] b = Sigmoid (d)
        [pool] p = GlobalAveragePool (b)
        [flat] q = Flatten (p)
        [dense] y = Gemm (q, w2, b2) }}"""
    big = 3.0 * np.random.default_rng(4).standard_normal((inner, width, 1, 1)).astype(np.float32)
    head = 8.0 * np.random.default_rng(5).standard_normal((inner, classes)).astype(np.float32)
    shapes = {"w0": (width, 3, 1, 1), "b0": (width,), "b2": (classes,)}
    model: onnx.ModelProto = nets.build(text, **shapes, w1=big, w2=head)
    return model


def hessians(
    truth: Any, model: onnx.ModelProto, taps: dict[str, int], feeds: Any, classes: np.ndarray
) -> np.ndarray:
    """Of every sample's loss in all gates [samples, gates, gates], for channels on axis 1."""
    shapes = {t: v.shape for t, v in truth.forward(model, feeds, also=tuple(taps))({}).items()}
    places = [(tap, c) for tap in taps for c in range(shapes[tap][1])]
    run, losses = truth.forward(model, feeds, tuple(taps)), truth.losses("logits", classes)

    def at(moves: list[tuple[int, float]]) -> np.ndarray:
        gates = {tap: np.ones((1, shapes[tap][1], 1, 1)) for tap in taps}
        for place, step in moves:
            tap, channel = places[place]
            gates[tap][0, channel] += step
        return np.asarray(losses(run(gates)))

    found = np.zeros((len(classes), len(places), len(places)))
    for i in range(len(places)):
        found[:, i, i] = (at([(i, STEP)]) - 2 * at([]) + at([(i, -STEP)])) / STEP**2
        for j in range(i):
            signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
            corners = [s * t * at([(i, s * STEP), (j, t * STEP)]) for s, t in signs]
            found[:, i, j] = found[:, j, i] = sum(corners) / (4 * STEP**2)
    return found


@pytest.mark.parametrize("tap", ["c", "a"])
@pytest.mark.parametrize("batch", ["N", 1, 3])
@pytest.mark.parametrize("known", [True, False], ids=["labels", "own classes"])
@pytest.mark.parametrize("equal", [False, True], ids=["distinct", "equal"])
def test_one_gate_has_nothing_to_mix_with(
    truth: Any,
    nets: Any,
    monkeypatch: pytest.MonkeyPatch,
    tap: str,
    batch: Any,
    *,
    known: bool,
    equal: bool,
) -> None:
    """The square of a sign is one: the estimate is the difference of gradients itself."""
    monkeypatch.setattr(batches_module, "_BATCH", 4)
    model = network(nets, width=1, batch=batch, equal=equal)
    labels = np.random.default_rng(3).integers(0, 3, 7) if known else None
    measured = truth.measured(model, nets.samples(model, 7), labels)
    found = measured.sensitivity.curvature({tap: 1})[tap]
    feeds = measured.feeds
    classes = truth.forward(model, feeds)({})["y"].argmax(axis=1)
    classes = classes if labels is None else labels[measured.order]
    run, losses = truth.forward(model, feeds, (tap,)), truth.losses("logits", classes)

    def slope(gate: float) -> float:
        ends = [losses(run({tap: np.array(gate + step)})).mean() for step in (1e-6, -1e-6)]
        return float(ends[0] - ends[1]) / 2e-6

    step = module._STEP
    expected = (slope(1 + step) - slope(1 - step)) / (2 * step)
    tolerance = 1e-6 * abs(slope(1.0)) / step + 1e-5 * abs(expected)
    np.testing.assert_allclose(found, [expected], rtol=0, atol=tolerance)
    monkeypatch.setattr(module, "_STEP", SMALL)
    found = measured.sensitivity.curvature({tap: 1})[tap]
    second = hessians(truth, model, {tap: 1}, feeds, classes).mean(axis=0)[0]
    # Beside the rounding: SMALL^2 / 6 times the third derivative of the gradient.
    tolerance = 1e-6 * abs(slope(1.0)) / SMALL + 1e-3 * abs(second[0])
    np.testing.assert_allclose(found, second, rtol=0, atol=tolerance)


@pytest.mark.parametrize("variant", [False, True], ids=["itself", "variant"])
def test_diagonal_within_the_error_of_its_estimate(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch, *, variant: bool
) -> None:
    """Hutchinson: for signs v the variance of v_i (H v)_i is the sum of H_ij^2 over j other than i.

    Probes and samples have signs of their own, so that variances add up.
    """
    monkeypatch.setattr(module, "_PROBES", 1000)
    monkeypatch.setattr(module, "_STEP", SMALL)
    taps, model = {"a": 1, "b": 1}, network(nets, width=3)
    measured = truth.measured(model, nets.samples(model, 10))
    other = truth.changed(model) if variant else None
    found = measured.sensitivity.curvature(taps, other)
    assert {tap: values.shape for tap, values in found.items()} == {"a": (3,), "b": (4,)}
    feeds = measured.feeds
    classes = truth.forward(model, feeds)({})["y"].argmax(axis=1)
    each = hessians(truth, other or model, taps, feeds, classes)
    diagonal = np.diagonal(each, axis1=1, axis2=2)
    variance = np.square(each).sum(axis=2) - np.square(diagonal)
    deviation = np.sqrt(variance.sum(axis=0) / 1000) / len(classes)
    expected = diagonal.mean(axis=0)
    assert (np.abs(expected) > 5 * deviation).sum() >= 5, "most must stand out of the noise"
    error = np.abs(np.concatenate([found["a"], found["b"]]) - expected)
    # The second term is that of the differences.
    assert (error < 5 * deviation + 2e-3 * np.abs(expected).max()).all()


def test_every_sample_has_signs_of_its_own(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two gates an estimate is H_ii + s H_ij for a sign s, whose mean over samples is small.

    Samples that are all alike show it: with one s for all of them, the error would be |H_ij|.
    """
    monkeypatch.setattr(module, "_PROBES", 1)
    monkeypatch.setattr(module, "_STEP", SMALL)
    model, count = network(nets, width=2), 100
    x = {"x": np.repeat(nets.samples(model, 1)["x"], count, axis=0)}
    measured = truth.measured(model, x, np.zeros(count, np.int64))
    found = measured.sensitivity.curvature({"a": 1})["a"]
    matrix = hessians(truth, model, {"a": 1}, {"x": x["x"][:1]}, np.array([0]))[0]
    error, mixed = np.abs(found - np.diagonal(matrix)), abs(matrix[0, 1])
    # Five standard deviations of a mean of signs.
    assert (error < 5 * mixed / np.sqrt(count) + 1e-3 * np.abs(matrix).max()).all()
    assert mixed > 0.05 * np.abs(matrix).max()


def test_no_more_samples_than_asked_for(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STEP", SMALL)
    model = network(nets, width=1)
    measured = truth.measured(model, nets.samples(model, 9), samples=4)
    found = measured.sensitivity.curvature({"a": 1})["a"]
    feeds = measured.feeds
    assert len(measured.order) == 4
    classes = truth.forward(model, feeds)({})["y"].argmax(axis=1)
    second = hessians(truth, model, {"a": 1}, feeds, classes).mean(axis=0)[0]
    np.testing.assert_allclose(found, second, rtol=1e-2)


def test_the_seed_decides(truth: Any, nets: Any) -> None:
    model = network(nets, width=3)
    x = nets.samples(model, 6)
    found = [
        truth.measured(model, x, seed=s).sensitivity.curvature({"b": 1})["b"] for s in (0, 0, 1)
    ]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize("fault", ["signs", "probes", "classes"])
def test_the_comparison_sees_faults(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    moved, wide = module._moved, module._wide
    if fault == "classes":
        monkeypatch.setattr(Targets, "given", lambda self, rows: self.drawn(rows))
    elif fault == "probes":
        monkeypatch.setattr(module, "_wide", lambda values: 1.01 * wide(values))
    else:

        def lost(built: Any, signs: Any, step: float) -> Any:
            ones = {tap: np.ones_like(values) for tap, values in signs.items()}
            return moved(built, ones, step)

        monkeypatch.setattr(module, "_moved", lost)
        with pytest.raises(AssertionError):
            test_diagonal_within_the_error_of_its_estimate(truth, nets, monkeypatch, variant=False)
    with pytest.raises(AssertionError):
        test_one_gate_has_nothing_to_mix_with(
            truth, nets, monkeypatch, "a", "N", known=False, equal=False
        )
