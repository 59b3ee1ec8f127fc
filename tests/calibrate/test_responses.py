"""The mean of every channel of every sample against NumPy, and its class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxcompress.calibrate.sample_batches as batches_module
import onnxcompress.calibrate.sensitivity as module
from onnxcompress.calibrate.responses import with_means
from onnxcompress.errors import UsageError

TAPS = {"x": 1, "b": 1, "t": 3, "i": 2, "q": 1, "y": 1}


def network(nets: Any, *, batch: Any = "N", equal: bool = False) -> Any:
    """b [N, C, H, W], t [N, H, W, C], i [N, H * W, C], q [N, C] and y [N, K]."""
    s, t, h, w, k = (3,) * 5 if equal else (2, 4, 5, 3, 6)
    text = f"""net (float[{batch}, {s}, {h}, {w}] x) => (float[{batch}, {k}] y) {{
        [first] a = Conv <pads=[1, 1, 1, 1]> (x, w0)
        [relu] b = Relu (a)
        [turn] t = Transpose <perm=[0, 2, 3, 1]> (b)
        [lines] i = Reshape (t, sizes)
        [most] q = ReduceMax <axes=[1], keepdims=0> (i)
        [dense] y = MatMul (q, w1) }}"""
    sizes = np.array([0, h * w, t])
    return nets.build(text, w0=(t, s, 3, 3), w1=(t, k), sizes=sizes)


def expected(truth: Any, model: Any, feeds: Any) -> dict[str, np.ndarray]:
    """Sample by sample and channel by channel, in float64."""
    inner = [name for name in TAPS if name not in {"x", "y"}]
    values = {**truth.forward(model, feeds, also=inner)({}), "x": feeds["x"].astype(np.float64)}
    found = {}
    for tap, axis in TAPS.items():
        rows = []
        for sample in values[tap]:
            channels = range(sample.shape[axis - 1])
            rows.append([sample.take(channel, axis=axis - 1).mean() for channel in channels])
        found[tap] = np.array(rows)
    return found


@pytest.mark.parametrize("equal", [False, True], ids=["distinct", "equal"])
@pytest.mark.parametrize(
    ("batch", "count", "size"), [("N", 7, 64), ("N", 7, 3), (1, 3, 9), (3, 6, 9)]
)
def test_means_and_classes(
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
    model, free = network(nets, batch=batch, equal=equal), network(nets, equal=equal)
    labels = np.arange(count) % 3
    for given in (None, labels):
        measured = truth.measured(model, nets.samples(model, count), given)
        found = measured.sensitivity.responses(TAPS)
        for tap, values in expected(truth, free, measured.feeds).items():
            truth.assert_close(found.means[tap], values, tap)
        assert list(found.means) == list(TAPS)
        own = truth.forward(free, measured.feeds)({})["y"].argmax(axis=1)
        assert np.array_equal(found.classes, own if given is None else labels[measured.order])
        assert found.classes.dtype == np.int64


def test_a_variant_keeps_the_classes_of_the_network_itself(truth: Any, nets: Any) -> None:
    model = network(nets)
    variant = truth.changed(model, size=1.0)
    measured = truth.measured(model, nets.samples(model, 8))
    found = measured.sensitivity.responses(TAPS, variant)
    feeds = measured.feeds
    for tap, values in expected(truth, variant, feeds).items():
        truth.assert_close(found.means[tap], values, tap)
    own, moved = (truth.forward(m, feeds)({})["y"].argmax(axis=1) for m in (model, variant))
    assert np.array_equal(found.classes, own)
    assert not np.array_equal(own, moved)


def test_limit(truth: Any, nets: Any) -> None:
    model = network(nets)
    measured = truth.measured(model, nets.samples(model, 9), samples=4)
    found = measured.sensitivity.responses({"b": 1})
    assert found.means["b"].shape == (4, 4)
    assert found.classes.shape == (4,)


def test_the_answer_must_be_a_class(truth: Any, nets: Any) -> None:
    model = truth.several(nets)
    measured = truth.measured(model, nets.samples(model, 3), np.zeros(3, np.int64))
    with pytest.raises(UsageError, match=r"needs a class for every sample.*another criterion") as e:
        measured.sensitivity.responses({"b": 1})
    assert e.value.exit_code == 2


def test_older_and_newer_opsets(nets: Any, truth: Any) -> None:
    """Reductions take their axes in another way from opset 18 on."""
    model = network(nets)
    shapes = truth.measured(model, nets.samples(model, 2)).sensitivity.shapes
    before = model.SerializeToString()
    built, names = with_means(model, shapes, {"b": 1, "q": 1})
    assert [output.name for output in built.graph.output] == list(names.values())
    assert list(names) == ["b", "q"]
    assert model.SerializeToString() == before


def test_the_comparison_sees_a_fault(
    truth: Any, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mixed(model: Any, shapes: Any, taps: Any) -> Any:
        turned = {tap: len(shapes[tap]) - axis for tap, axis in taps.items()}
        return with_means(model, shapes, turned)

    monkeypatch.setattr(module, "with_means", mixed)
    with pytest.raises(AssertionError):
        test_means_and_classes(truth, nets, monkeypatch, "N", 7, 64, equal=True)
