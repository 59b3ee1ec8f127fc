"""Networks without classes: gradients along random signs, whose mean square is |J z|^2 / |y|^2.

J z, the change of every output per gate, is a difference of the whole network in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress.calibrate.sample_batches as batches_module
from onnxcompress.errors import GradientError

TAPS = {"a": 1, "b": 1, "t": 3}
OUTPUTS = ("u", "v", "r", "o")


def flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def changes(
    truth: Any, model: onnx.ModelProto, original: onnx.ModelProto, feeds: Any, output: str
) -> dict[str, np.ndarray]:
    """J z over the norm of the original's output [samples, channels, elements of an output]."""
    norms = np.linalg.norm(flat(truth.forward(original, feeds)({})[output]), axis=1)
    found = truth.slopes(model, TAPS, feeds, lambda outputs: flat(outputs[output]))
    return {tap: rows / norms[:, np.newaxis, np.newaxis] for tap, rows in found.items()}


def expected(
    truth: Any, model: onnx.ModelProto, measured: Any, outputs: tuple[str, ...] = OUTPUTS
) -> dict[str, np.ndarray]:
    """The gradient along the signs that belong to every sample."""
    rows = np.arange(len(measured.order))
    total: dict[str, np.ndarray] = {}
    for name in outputs:
        moved = changes(truth, model, measured.sensitivity.model, measured.feeds, name)
        elements = next(iter(moved.values())).shape[2]
        signs = np.sign(measured.targets.signs(name, rows, (len(rows), elements)))
        assert np.array_equal(np.abs(signs), np.ones((len(rows), elements)))
        for tap, values in moved.items():
            part = np.einsum("nce,ne->nc", values, signs)
            total[tap] = total.get(tap, 0.0) + part
    return total


@pytest.mark.parametrize("equal", [False, True], ids=["distinct", "equal"])
@pytest.mark.parametrize(
    ("batch", "count", "size"), [("N", 5, 64), ("N", 7, 3), ("N", 2, 1), (1, 3, 64), (3, 7, 64)]
)
def test_along_the_signs_of_every_sample(
    truth: Any,
    nets: Any,
    monkeypatch: pytest.MonkeyPatch,
    batch: Any,
    count: int,
    size: int,
    *,
    equal: bool,
) -> None:
    monkeypatch.setattr(batches_module, "_BATCH", size)
    model = truth.several(nets, batch=batch, equal=equal)
    measured = truth.measured(model, nets.samples(model, count))
    found = measured.sensitivity.gate_gradients(TAPS)
    for tap, values in expected(truth, model, measured).items():
        truth.assert_close(found[tap], values, tap)
    # What Gauss and Newton make of it is the mean square.
    curved = measured.sensitivity.curvature(TAPS)
    for tap, values in expected(truth, model, measured).items():
        truth.assert_close(curved[tap], np.square(values).mean(axis=0), tap)


def test_a_variant_is_relative_to_the_answers_of_the_network_itself(truth: Any, nets: Any) -> None:
    model = truth.several(nets)
    variant = truth.changed(model)
    measured = truth.measured(model, nets.samples(model, 4))
    found = measured.sensitivity.gate_gradients(TAPS, variant)
    for tap, values in expected(truth, variant, measured).items():
        truth.assert_close(found[tap], values, tap)


def test_mean_square_over_seeds(truth: Any, nets: Any) -> None:
    """Unbiased: the mean of (g / |J z|)^2 is one, for every channel.

    For signs s, the variance of (s' a)^2 is 2 (|a|^4 - sum a_i^4) <= 2 |a|^4, and samples and
    seeds have signs of their own: five standard deviations of the mean are bound by
    5 sqrt(2 / (samples seeds)).
    """
    model, x, seeds = truth.several(nets), {}, 40
    x = nets.samples(model, 64)
    parts = [changes(truth, model, model, x, name) for name in OUTPUTS]
    squares = {tap: sum(np.square(p[tap]).sum(axis=2) for p in parts) for tap in TAPS}
    ratios: dict[str, list[np.ndarray]] = {tap: [] for tap in TAPS}
    for seed in range(seeds):
        measured = truth.measured(model, x, seed=seed)
        found = measured.sensitivity.gate_gradients(TAPS)
        for tap, values in found.items():
            ratios[tap].append(np.square(values) / squares[tap][measured.order])
    for rows in ratios.values():
        mean = np.concatenate(rows).mean(axis=0)
        np.testing.assert_allclose(mean, 1.0, rtol=0, atol=5 * np.sqrt(2 / (64 * seeds)))
        # Neither samples nor seeds share their signs.
        assert np.unique(np.round(np.concatenate(rows), 9)).size > 60 * seeds


def test_an_output_that_is_zero(truth: Any, nets: Any) -> None:
    """Has no part in the gradient, of the samples where it is zero everywhere."""
    text = """net (float[N, 3, 4, 5] x) => (float[N, 2, 4, 5] u, float[N, 4, 4, 5] v) {
        [first] a = Conv (x, w0)
        [second] b = Conv (a, w1)
        [relu] u = Relu (b)
        [tanh] v = Tanh (a) }"""
    model = nets.build(text, w0=(4, 3, 1, 1), w1=(2, 4, 1, 1))
    x = nets.samples(model, 5)
    x["x"][[1, 3]] = 0.0
    measured = truth.measured(model, x)
    with np.errstate(all="raise"):
        found = measured.sensitivity.gate_gradients({"a": 1})["a"]
        ablated = measured.sensitivity.ablate({"a": 1}, [{"a": (0,)}])
    assert np.isfinite(ablated).all()
    empty = np.isin(measured.order, [1, 3])
    assert np.array_equal(found[empty], np.zeros((2, 4)))
    assert found[~empty].all()


def test_no_tap_reaches_an_output(truth: Any, nets: Any) -> None:
    text = """net (float[N, 3, 4, 5] x) => (float[N, 3, 4, 5] u, int64[N, 1, 4, 5] best) {
        [first] a = Conv (x, w0)
        [largest] best = ArgMax <axis=1> (a)
        [relu] u = Relu (x) }"""
    model = nets.build(text, w0=(4, 3, 1, 1))
    sensitivity = truth.measured(model, nets.samples(model, 3)).sensitivity
    assert np.array_equal(sensitivity.gate_gradients({"a": 1})["a"], np.zeros((3, 4)))
    assert np.array_equal(sensitivity.fisher({"a": 1})["a"], np.zeros((4, 4)))
    assert sensitivity.gate_gradients({}) == {}


@pytest.mark.parametrize("what", ["gate_gradients", "curvature", "fisher", "ablate"])
def test_an_output_that_all_samples_share_is_refused(truth: Any, nets: Any, what: str) -> None:
    text = """net (float[N, 3, 4, 5] x) => (float[N, 4, 4, 5] a, float[4] m) {
        [first] a = Conv (x, w0)
        [mean] m = ReduceMean <axes=[0, 2, 3], keepdims=0> (a) }"""
    model = nets.build(text, w0=(4, 3, 1, 1))
    sensitivity = truth.measured(model, nets.samples(model, 3)).sensitivity
    more = ([{"a": (0,)}],) if what == "ablate" else ()
    with pytest.raises(GradientError, match="'m' has no batch axis"):
        getattr(sensitivity, what)({"a": 1}, *more)


@pytest.mark.parametrize("fault", ["shared", "unscaled"])
def test_the_comparison_sees_faults(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    model = truth.several(nets)
    measured = truth.measured(model, nets.samples(model, 4))
    measured.sensitivity.gate_gradients({"b": 1})
    values = expected(truth, model, measured)["b"]
    if fault == "unscaled":
        energies = {name: np.ones(4) for name in OUTPUTS}
        monkeypatch.setitem(vars(measured.targets), "energies", energies)
    else:
        genuine = type(measured.targets).signs
        monkeypatch.setattr(
            type(measured.targets),
            "signs",
            lambda self, name, rows, shape: genuine(self, name, 0 * rows, shape),
        )
    with pytest.raises(AssertionError):
        truth.assert_close(measured.sensitivity.gate_gradients({"b": 1})["b"], values)
