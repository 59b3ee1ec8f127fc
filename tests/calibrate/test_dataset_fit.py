"""Datasets against the inputs of a model: shapes, element types, finite values, fingerprints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate import array_samples as module
from onnxcompress.calibrate.array_samples import ArraySamples, image_channels
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.preprocess import Preprocess
from onnxcompress.errors import DataError

FLOAT = np.dtype(np.float32)


def of_arrays(
    arrays: dict[str, np.ndarray],
    *inputs: InputSpec,
    preprocess: Preprocess | None = None,
    **options: Any,
) -> Dataset:
    samples = ArraySamples(arrays=arrays, inputs=inputs, preprocess=preprocess, **options)
    return Dataset.over(samples, inputs, source="s", preprocess=preprocess)


def one(array: np.ndarray, dtype: str, *shape: int | str | None, **options: Any) -> Dataset:
    return of_arrays({"in": array}, InputSpec("in", np.dtype(dtype), shape), **options)


@pytest.mark.parametrize("extents", [(2, 3, 5), (4, 4, 4)])  # all distinct, all equal
def test_a_fixed_dimension_names_axis_and_both_numbers(extents: tuple[int, int, int]) -> None:
    array = np.zeros((6, *extents), FLOAT)
    assert len(one(array, "f4", "N", *extents)) == 6
    assert len(one(array, "f4", None, "C", *extents[1:])) == 6
    for axis in (1, 2, 3):
        shape = [6, *extents]
        shape[axis] += 20
        with pytest.raises(
            DataError,
            match=f"wants {extents[axis - 1] + 20} on axis {axis}, the data has "
            f"{extents[axis - 1]}:",
        ):
            one(array, "f4", "N", *shape[1:])


def test_rank_mismatch_names_both_ranks() -> None:
    with pytest.raises(DataError, match=r"'in' has rank 4 \[N, 3, 8, 8\], the data has rank 3"):
        one(np.zeros((3, 8, 8), FLOAT), "f4", "N", 3, 8, 8)


def test_later_samples_are_checked_too() -> None:
    class Growing:
        labels = None

        def __len__(self) -> int:
            return 2

        def content(self) -> Iterator[bytes]:
            yield b""

        def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
            return {"in": np.zeros((len(rows), 2, 3 + int(rows[0])), FLOAT)}

    dataset = Dataset.over(Growing(), (InputSpec("in", FLOAT, ("N", 2, 3)),), source="s")
    batches = dataset.batches(1)
    next(batches)
    with pytest.raises(DataError, match="wants 3 on axis 2, the data has 4"):
        next(batches)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_names_the_sample(bad: float) -> None:
    array = np.ones((9, 2, 3), FLOAT)
    array[6, 1, 2] = bad
    dataset = one(array, "f4", "N", 2, 3)
    batches = dataset.batches(4)
    next(batches)
    with pytest.raises(DataError, match="--data s: sample 6 of input 'in' has NaN or Inf"):
        next(batches)
    with pytest.raises(DataError, match="sample 6 of"):  # the number in the data, not in the view
        list(dataset.take([8, 6]).batches(2))


def test_overflow_of_a_cast_is_not_finite() -> None:
    array = np.array([[1.0], [1e6]])
    with pytest.raises(DataError, match="sample 1 of input 'in' has NaN or Inf"):
        list(one(array, "f2", "N", 1).batches(2))


@pytest.mark.parametrize(
    ("data", "model"),
    [
        ("f4", "f4"),
        ("f8", "f4"),
        ("f2", "f4"),
        ("f4", "f2"),
        (">f4", "f4"),
        ("i4", "i8"),
        ("i8", "i4"),
        ("u1", "i8"),
        ("u1", "u1"),
        ("i8", "u1"),
        ("?", "?"),
    ],
)
def test_types_that_convert(data: str, model: str) -> None:
    array = (np.arange(12).reshape(4, 3) % 2).astype(data)
    ((feeds, _),) = one(array, model, "N", 3).batches(4)
    assert feeds["in"].dtype == np.dtype(model)
    np.testing.assert_array_equal(feeds["in"], array.astype(model))


@pytest.mark.parametrize(
    ("data", "model"),
    [
        ("i4", "f4"),
        ("i8", "f4"),
        ("u2", "f4"),
        ("i1", "f4"),
        ("?", "f4"),
        ("f4", "i8"),
        ("f4", "u1"),
        ("i4", "?"),
        ("?", "i4"),
    ],
)
def test_types_that_do_not(data: str, model: str) -> None:
    with pytest.raises(DataError, match=f"takes {np.dtype(model)}, the data is {np.dtype(data)}"):
        one(np.zeros((4, 3), data), model, "N", 3)


@pytest.mark.parametrize(("data", "model", "value"), [("i8", "i4", 2**31), ("i4", "u1", -1)])
def test_integers_must_fit(data: str, model: str, value: int) -> None:
    array = np.array([[0], [value]], data)
    with pytest.raises(DataError, match="does not convert safely"):
        list(one(array, model, "N", 1).batches(2))


def test_uint8_needs_preprocessing_for_a_floating_input() -> None:
    with pytest.raises(DataError, match=r"need --preprocess .* for example --preprocess layout="):
        one(np.zeros((4, 8, 8, 3), np.uint8), "f4", "N", 3, 8, 8)


@pytest.mark.parametrize(("channels", "color"), [(1, "gray"), (3, "rgb")])
def test_uint8_is_preprocessed_batch_by_batch(channels: int, color: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    dataset = one(images, "f4", "N", channels, 4, 4, preprocess=Preprocess(crop=(4, 4), scale=0.5))
    whole = Preprocess(crop=(4, 4), scale=0.5, color=color).apply(images)
    assert [len(feeds["in"]) for feeds, _ in dataset.batches(2)] == [2, 2, 1]
    got = np.concatenate([feeds["in"] for feeds, _ in dataset.batches(2)])
    np.testing.assert_array_equal(got, whole)
    assert got.dtype == np.float32


def test_channels_are_where_the_layout_says() -> None:
    spec = InputSpec("in", FLOAT, ("N", 5, 6, 3))
    assert image_channels(spec, Preprocess()) == 5
    assert image_channels(spec, Preprocess(layout="nhwc")) == 3
    assert image_channels(InputSpec("in", FLOAT, ("N", 3)), Preprocess()) is None
    grey = np.full((1, 5, 6), 9, np.uint8)
    ((feeds, _),) = one(grey, "f4", "N", 5, 6, 3, preprocess=Preprocess(layout="nhwc")).batches(1)
    np.testing.assert_array_equal(feeds["in"], np.full((1, 5, 6, 3), 9, FLOAT))


def test_uint8_passes_straight_into_a_uint8_input() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    for settings in (None, Preprocess(label_offset=1)):
        ((feeds, _),) = one(images, "u1", "N", 5, 6, 3, preprocess=settings).batches(2)
        np.testing.assert_array_equal(feeds["in"], images)
    ((feeds, _),) = one(images, "u1", "N", 3, 5, 6, preprocess=Preprocess(color="bgr")).batches(2)
    np.testing.assert_array_equal(feeds["in"], images[..., ::-1].transpose(0, 3, 1, 2))
    with pytest.raises(DataError, match="takes uint8 pixels"):
        one(images, "u1", "N", 3, 5, 6, preprocess=Preprocess(scale=0.5))


def test_images_that_do_not_suit_the_preprocessing_name_the_input() -> None:
    images = np.zeros((4, 5, 6, 3), np.uint8)
    with pytest.raises(DataError, match="--data s: input 'in': crop"):
        one(images, "f4", "N", 3, 9, 9, preprocess=Preprocess(crop=(9, 9)))


def test_several_inputs_travel_together() -> None:
    a, b = np.arange(10, dtype=FLOAT).reshape(5, 2), np.arange(5, dtype=np.int64)[:, None] * 7
    dataset = of_arrays(
        {"a": a, "b": b},
        InputSpec("b", np.dtype(np.int64), ("N", 1)),
        InputSpec("a", FLOAT, ("N", 2)),
    )
    seen = [feeds for feeds, _ in dataset.take([4, 2, 1]).batches(2)]
    np.testing.assert_array_equal(np.concatenate([feeds["a"] for feeds in seen]), a[[4, 2, 1]])
    np.testing.assert_array_equal(np.concatenate([feeds["b"] for feeds in seen]), b[[4, 2, 1]])


def fingerprint(
    array: np.ndarray, *, labels: list[int] | None = None, settings: Preprocess | None = None
) -> str:
    return one(
        array,
        "f4",
        "N",
        *([None] * 3 if array.ndim == 4 else [None] * (array.ndim - 1)),
        preprocess=settings,
        labels=None if labels is None else np.array(labels, np.int64),
    ).fingerprint()


def test_fingerprint_is_reproducible_and_sees_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(24, dtype=FLOAT).reshape(4, 6)
    base = fingerprint(array)
    assert base == fingerprint(array.copy())
    assert len(base) == 64
    changed = array.copy()
    changed[2, 3] = np.nextafter(changed[2, 3], 99, dtype=FLOAT)
    images = np.zeros((4, 2, 3, 3), np.uint8)
    prints = [
        base,
        fingerprint(changed),
        fingerprint(array.reshape(4, 3, 2)),
        fingerprint(array, labels=[0, 1, 2, 3]),
        fingerprint(array, labels=[0, 1, 3, 2]),
        fingerprint(array.astype(np.float64)),
        fingerprint(images, settings=Preprocess(scale=0.5)),
        fingerprint(images, settings=Preprocess(scale=0.25)),
        one(array, "f4", "N", 6).take([0, 1, 2]).fingerprint(),
        one(array, "f4", "N", 6).take([0, 2, 1]).fingerprint(),
        replace(one(array, "f4", "N", 6), source="elsewhere").fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    monkeypatch.setattr(module, "_HASH_BYTES", 30)  # one row at a time: the same bytes
    assert fingerprint(array) == base
