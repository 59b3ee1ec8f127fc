"""Statistics of activations against NumPy, over all batches and however memory splits the work.

Taps are float32 values of ONNX Runtime on both sides, summed in float64: 1e-6 covers what another
batch size does to the values themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress.calibrate.activations as module
from onnxcompress.analyse.activations import ChannelStatistics
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.activations import CollectedActivations
from onnxcompress.calibrate.array_samples import ArraySamples
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.errors import ModelError
from onnxcompress.graph.infer import shapes_at, with_value_info
from onnxcompress.runtime import Execution, open_session

ONE = Execution(threads=1)


def network(batch: int | str = "N", *, equal: bool = False) -> onnx.ModelProto:
    """x [N, 3, 4, 5] -> a, b [N, 6, 4, 5] -> t [N, 4, 5, 6] -> y [N, 4, 5, 2]."""
    c, h, w = (4, 4, 4) if equal else (6, 4, 5)
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[{batch}, 3, {h}, {w}] x) => (float[{batch}, {h}, {w}, 2] y) {{
        [conv] a = Conv <kernel_shape = [1, 1]> (x, w1, b1)
        [relu] b = Relu (a)
        [turn] t = Transpose <perm = [0, 2, 3, 1]> (b)
        [dense] y = MatMul (t, w2) }}"""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(1)
    for name, shape in {"w1": (c, 3, 1, 1), "b1": (c,), "w2": (c, 2)}.items():
        values = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return with_value_info(model)


def collector(model: onnx.ModelProto, x: np.ndarray, *, seed: int = 0) -> CollectedActivations:
    specs = input_specs(model)
    data = Dataset.over(ArraySamples(arrays={"x": x}, inputs=specs), specs, source="here")
    batch = specs[0].fixed(0) or 1
    shapes = shapes_at(model, {"x": (batch, *x.shape[1:])})
    return CollectedActivations(model, shapes, data, ONE, seed)


def samples(count: int, *, equal: bool = False) -> np.ndarray:
    shape = (count, 3, 4, 4) if equal else (count, 3, 4, 5)
    drift = np.linspace(-1, 1, count).reshape(-1, 1, 1, 1)
    noise = np.random.default_rng(2).standard_normal(shape)
    return (noise + drift).astype(np.float32)


def values(model: onnx.ModelProto, names: Sequence[str], x: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor, computed at once."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with open_session(tapped, ONE) as session:
        return dict(zip(session.output_names, session.run({"x": x}), strict=True))


def assert_statistics(found: ChannelStatistics, tensor: np.ndarray, axis: int) -> None:
    rows = np.moveaxis(tensor.astype(np.float64), axis, 0)
    lines = [row.ravel() for row in rows]
    assert found.count == lines[0].size
    close = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(found.mean, [line.mean() for line in lines], **close)
    np.testing.assert_allclose(found.square, [(line**2).mean() for line in lines], **close)
    np.testing.assert_allclose(found.positive, [(line > 0).mean() for line in lines], **close)
    # The variance is a difference of squares, which loses digits where the mean is large.
    np.testing.assert_allclose(found.deviation, [line.std() for line in lines], rtol=1e-5)
    for part in (found.mean, found.square, found.positive, found.deviation):
        assert part.dtype == np.float64


@pytest.mark.parametrize("count", [1, 16, 17, 50])
@pytest.mark.parametrize("equal", [False, True], ids=["distinct", "equal"])
def test_statistics(count: int, *, equal: bool) -> None:
    """Batches of 16, the last one short; channels first and last, an output of the graph too."""
    model, x = network(equal=equal), samples(count, equal=equal)
    axes = {"a": 1, "b": 1, "t": 3, "y": 3}
    found = collector(model, x)(axes)
    truth = values(model, list(axes), x)
    assert list(found) == list(axes)
    for name, axis in axes.items():
        assert_statistics(found[name], truth[name], axis)


def test_other_axes_and_nothing() -> None:
    model, x = network(), samples(9)
    collect = collector(model, x)
    truth = values(model, ["a"], x)["a"]
    for axis in (2, 3):
        assert_statistics(collect({"a": axis})["a"], truth, axis)
    assert collect({}) == {}


# a, b and t hold 120 numbers each, y holds 40; of eight bytes each.
@pytest.mark.parametrize(
    ("limit", "runs", "batches"),
    [
        (1, [1, 1, 1, 1], [2, 2, 2, 2]),
        (2 * 8 * 120, [1, 1, 1, 1], [2, 2, 2, 6]),
        (2 * 8 * 240, [2, 2], [2, 3]),
        (3 * 8 * 400, [4], [3]),
        (2**20, [4], [16]),
    ],
)
def test_waves(
    monkeypatch: pytest.MonkeyPatch, limit: int, runs: list[int], batches: list[int]
) -> None:
    """Little memory takes smaller batches, then more runs, and changes nothing."""
    model, x = network(), samples(20)
    axes = {"a": 1, "b": 1, "t": 3, "y": 3}
    whole = collector(model, x)(axes)
    waves: list[list[str]] = []
    sizes: list[int] = []
    genuine, deliver = CollectedActivations._collect, Dataset.batches

    def counted(self: Any, model: Any, axes: Any, samples: Any) -> Any:
        waves.append(list(axes))
        return genuine(self, model, axes, samples)

    def delivered(self: Dataset, batch_size: int) -> Any:
        sizes.append(batch_size)
        return deliver(self, batch_size)

    monkeypatch.setattr(CollectedActivations, "_collect", counted)
    monkeypatch.setattr(Dataset, "batches", delivered)
    monkeypatch.setattr(module, "_WAVE_BYTES", limit)
    found = collector(model, x)(axes)
    assert [name for wave in waves for name in wave] == list(axes)
    assert [len(wave) for wave in waves] == runs
    assert sizes == batches
    for name in axes:
        assert_statistics(found[name], values(model, [name], x)[name], axes[name])
        assert np.array_equal(found[name].positive, whole[name].positive)


def test_a_fixed_batch() -> None:
    """A model that insists on batches of 4 gets them; 11 samples are two whole batches."""
    x = samples(11)
    found = collector(network(batch=4), x)({"b": 1})["b"]
    assert_statistics(found, values(network(), ["b"], x[:8])["b"], 1)


def test_at_most_256_samples() -> None:
    """A random part, which the seed decides, spread over all of the data."""
    x = samples(300)
    model = network()
    found = {seed: collector(model, x, seed=seed)({"b": 1})["b"] for seed in (0, 1)}
    again = collector(model, x, seed=0)({"b": 1})["b"]
    for one in found.values():
        assert one.count == 256 * 20
    assert np.array_equal(found[0].mean, again.mean)
    assert not np.array_equal(found[0].mean, found[1].mean)
    # The inputs drift from -1 to 1: the first 256 alone would be far below the mean of all.
    truth = values(model, ["a"], x)["a"].mean(axis=(0, 2, 3))
    first = values(model, ["a"], x[:256])["a"].mean(axis=(0, 2, 3))
    part = collector(model, x)({"a": 1})["a"].mean
    assert np.abs(part - truth).max() < 0.5 * np.abs(first - truth).max()


def test_another_model() -> None:
    """A variant with the same tensors, on the same samples; the collector's model stays."""
    model, x = network(), samples(20)
    variant = onnx.ModelProto()
    variant.CopyFrom(model)
    for tensor in variant.graph.initializer:
        if tensor.name == "b1":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(6, 5, np.float32), "b1"))
    collect = collector(model, x)
    before = [model.SerializeToString(), variant.SerializeToString()]
    assert_statistics(collect({"b": 1}, variant)["b"], values(variant, ["b"], x)["b"], 1)
    assert_statistics(collect({"b": 1})["b"], values(model, ["b"], x)["b"], 1)
    assert [model.SerializeToString(), variant.SerializeToString()] == before


def test_a_tensor_that_is_not_there() -> None:
    with pytest.raises(ModelError):
        collector(network(), samples(3))({"nothing": 1})


def test_deviation_of_a_constant() -> None:
    """Rounding must not make the variance negative."""
    mean = np.array([0.1, 1e8, 0.0])
    found = ChannelStatistics(mean, mean**2 * (1 - 1e-15), np.ones(3), 7)
    assert np.array_equal(found.deviation, np.zeros(3))


def test_a_forgotten_batch_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above sees it when only the last batch counts."""

    def replace_sums(self: Any, values: np.ndarray, axis: int) -> None:
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
        self._total, self._square = rows.sum(axis=1), np.square(rows).sum(axis=1)
        self._positive, self._count = (rows > 0).sum(axis=1), rows.shape[1]

    monkeypatch.setattr(module._Sums, "add", replace_sums)
    with pytest.raises(AssertionError):
        test_statistics(50, equal=False)


def test_values_are_those_of_some_of_the_inputs() -> None:
    model, x = network(), samples(9)
    found = collector(model, x, seed=3).values(["a", "t"], 4)
    whole = values(model, ["a", "t"], x)
    for name in ("a", "t"):
        assert found[name].shape == (4, *whole[name].shape[1:])
        places = [
            next(i for i, row in enumerate(whole[name]) if np.allclose(row, one, atol=1e-6))
            for one in found[name]
        ]
        assert places == sorted(set(places))


def test_values_come_in_whole_batches_where_the_model_insists() -> None:
    found = collector(network(3), samples(9)).values(["a"], 4)
    assert found["a"].shape[0] == 3


def test_values_of_large_tensors_are_of_fewer_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    # Eight bytes for each of 6 * 4 * 5 numbers, twice and a half.
    monkeypatch.setattr(module, "_VALUES_BYTES", 5 * 8 * 6 * 4 * 5 // 2)
    assert len(collector(network(), samples(9)).values(["a"], 9)["a"]) == 2
