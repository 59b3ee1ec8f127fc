"""Batches of one size: every sample once and in order, and fillings that do not count."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.sample_batches import (
    Batch,
    batch_size,
    batches,
    demand_one_size,
    sizes_of,
)
from onnxcompress.errors import DataError


def network(nets: Any, batch: Any = "N") -> onnx.ModelProto:
    text = f"""net (float[{batch}, 3, 4] x, int64[{batch}, 2] z) => (float[{batch}, 3, 4] y) {{
        [relu] a = Relu (x)
        [more] y = Tanh (a) }}"""
    model: onnx.ModelProto = nets.build(text)
    return model


def dataset(model: onnx.ModelProto, count: int) -> tuple[Dataset, dict[str, np.ndarray]]:
    x = np.random.default_rng(1).standard_normal((count, 3, 4)).astype(np.float32)
    arrays = {"x": x, "z": np.arange(2 * count).reshape(count, 2)}
    return dataset_from_arrays(arrays, input_specs(model)), arrays


@pytest.mark.parametrize(
    ("batch", "count", "size"),
    [("N", 7, 3), ("N", 6, 3), ("N", 1, 1), ("N", 2, 5), ("N", 9, 4), (3, 7, 64), (1, 4, 64)],
)
def test_every_sample_once(nets: Any, batch: Any, count: int, size: int) -> None:
    data, arrays = dataset(network(nets, batch), count)
    whole = size if batch == "N" else batch
    at = 0
    for part in batches(data, size):
        assert isinstance(part, Batch)
        assert part.rows.shape == (whole,)
        assert part.rows[: part.count].tolist() == list(range(at, at + part.count))
        assert (part.rows[part.count :] == at + part.count - 1).all()
        assert 1 <= part.count <= whole
        for name, values in arrays.items():
            assert part.feeds[name].dtype == values.dtype
            assert np.array_equal(part.feeds[name], values[part.rows])
            assert part.feeds[name].flags.c_contiguous
        at += part.count
    assert at == len(data)


def test_of_a_view_in_another_order(nets: Any) -> None:
    data, arrays = dataset(network(nets), 9)
    taken = np.array([8, 0, 3, 3, 5])
    parts = list(batches(data.take(taken), 2))
    assert [part.count for part in parts] == [2, 2, 1]
    assert [part.rows.tolist() for part in parts] == [[0, 1], [2, 3], [4, 4]]
    for part in parts:
        assert np.array_equal(part.feeds["x"], arrays["x"][taken[part.rows]])


@pytest.mark.parametrize("held", [1, 4])
def test_batch_size(nets: Any, held: int) -> None:
    """A sample's activations a and y are 2 x 12 float32 numbers."""
    model = network(nets)
    data = dataset(model, 50)[0]
    shapes = {"x": (held, 3, 4), "z": (held, 2), "a": (held, 3, 4), "y": (held, 3, 4)}
    sample = 2 * 12 * 4
    for limit, expected in {
        0: 1,
        sample - 1: 1,
        2 * sample - 1: 1,
        2 * sample: 2,
        7 * sample + 5: 7,
        10**9: 20,
    }.items():
        assert batch_size(model, data, shapes, limit, 20) == expected
    assert batch_size(model, data, shapes, 10**9, 99) == 50
    # What is not known, does not count.
    assert batch_size(model, data, {"x": (held, 3, 4)}, 10**9, 8) == 8


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_what_it_is(nets: Any, batch: int) -> None:
    model = network(nets, batch)
    data = dataset(model, 9)[0]
    for limit in (0, 10**9):
        assert batch_size(model, data, {"x": (batch, 3, 4)}, limit, 2) == batch


def test_sizes(nets: Any) -> None:
    part = next(batches(dataset(network(nets), 5)[0], 4))
    sizes = sizes_of(part.feeds)
    assert sizes == {"x": (4, 3, 4), "z": (4, 2)}
    demand_one_size(part, sizes)
    with pytest.raises(DataError, match=r"input 'z' is of size \[4, 2\] after \[4, 3\]"):
        demand_one_size(part, {**sizes, "z": (4, 3)})
