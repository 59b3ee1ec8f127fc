"""Ablations that change nothing: neither the loss, nor what they are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.runtime import Session

TAPS = {"x": 1, "a": 1, "b": 1, "e": 1, "i": 1}


def test_nothing_is_changed(truth: Any, nets: Any) -> None:
    model = truth.classifier(nets)
    x = nets.samples(model, 5)
    before = {name: values.copy() for name, values in x.items()}
    for values in x.values():
        values.flags.writeable = False
    ablations = [{tap: (1,)} for tap in TAPS] + [{"x": (0,), "b": (0, 2)}, {"i": (3,), "a": (1,)}]
    given = [dict(ablation) for ablation in ablations]
    truth.measured(model, x).sensitivity.ablate(TAPS, given)
    assert given == ablations
    assert all(np.array_equal(values, before[name]) for name, values in x.items())


def test_channels_that_are_zero_already(truth: Any, nets: Any) -> None:
    """Change nothing at all, not even by rounding; nor does an empty set of channels."""
    model = truth.classifier(nets)
    for tensor in model.graph.initializer:
        if tensor.name == "b0":
            bias = np.array([0.1, -100.0, 0.2, 0.0], np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(bias, "b0"))
    sensitivity = truth.measured(model, nets.samples(model, 5)).sensitivity
    ablations = [{"b": (1,)}, {"b": (0,)}, {"b": (1,)}, {"a": ()}, {"b": ()}]
    found = sensitivity.ablate(TAPS, ablations)
    assert found[[0, 2, 3, 4]].tolist() == [0.0] * 4
    assert found[1] != 0.0
    # Not so when another tap's channels are not zero.
    both, alone = sensitivity.ablate(TAPS, [{"b": (1,), "e": (2,)}, {"e": (2,)}])
    np.testing.assert_allclose(both, alone, rtol=0, atol=2e-5)
    assert abs(alone) > 0.01


def test_channels_that_are_zero_already_take_no_run(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = truth.classifier(nets)
    for tensor in model.graph.initializer:
        if tensor.name == "b0":
            bias = np.array([0.1, -100.0, 0.2, 0.0], np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(bias, "b0"))
    sensitivity = truth.measured(model, nets.samples(model, 5)).sensitivity
    sensitivity.ablate(TAPS, [])
    runs: list[int] = []
    genuine = Session.run

    def counted(self: Session, feeds: Any) -> Any:
        runs.append(1)
        return genuine(self, feeds)

    monkeypatch.setattr(Session, "run", counted)
    counts = []
    for channels in (0, 1), (1,), (0,):
        runs.clear()
        sensitivity.ablate(TAPS, [{"b": channels}])
        counts.append(len(runs))
    assert counts == [2, 1, 2]


def test_nothing_to_ablate(truth: Any, nets: Any) -> None:
    model = truth.classifier(nets)
    sensitivity = truth.measured(model, nets.samples(model, 3)).sensitivity
    assert sensitivity.ablate(TAPS, []).shape == (0,)
    assert sensitivity.ablate(TAPS, [{}, {"a": ()}]).tolist() == [0.0, 0.0]


def test_taps_that_the_loss_does_not_depend_on(truth: Any, nets: Any) -> None:
    text = """net (float[N, 3, 4, 5] x) => (float[N, 6] y, int64[N, 1, 4, 5] best) {
        [first] a = Conv (x, w0)
        [side] s = Conv (a, w1)
        [largest] best = ArgMax <axis=1> (s)
        [pool] p = GlobalAveragePool (a)
        [flat] q = Flatten (p)
        [dense] y = MatMul (q, w2) }"""
    model = nets.build(text, w0=(4, 3, 1, 1), w1=(2, 4, 1, 1), w2=(4, 6))
    sensitivity = truth.measured(model, nets.samples(model, 5)).sensitivity
    found = sensitivity.ablate({"a": 1, "s": 1}, [{"s": (0,)}, {"a": (1,)}])
    assert found[0] == 0.0
    assert found[1] != 0.0
