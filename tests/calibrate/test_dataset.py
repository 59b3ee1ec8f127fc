"""Datasets as views: batches, fixed batch dimensions, splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate.array_samples import ArraySamples
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.preprocess import Preprocess
from onnxcompress.errors import DataError, UsageError

FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class Counted:
    """Samples that record which rows were read: sample i is a [2,3] array full of i."""

    count: int
    labels: np.ndarray | None = None
    reads: list[list[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.count

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        self.reads.append(rows.tolist())
        return {"in": np.broadcast_to(rows[:, None, None].astype(FLOAT), (len(rows), 2, 3))}

    def content(self) -> Iterator[bytes]:
        yield bytes(self.count)


def counted(
    count: int, *, batch: int | str | None = "N", labels: bool = True
) -> tuple[Dataset, Counted]:
    samples = Counted(count, np.arange(count) * 10 if labels else None)
    inputs = (InputSpec("in", FLOAT, (batch, 2, 3)),)
    return Dataset.over(samples, inputs, source="src"), samples


def values(dataset: Dataset, batch_size: int) -> list[list[int]]:
    return [feeds["in"][:, 0, 0].astype(int).tolist() for feeds, _ in dataset.batches(batch_size)]


def of_arrays(
    arrays: dict[str, np.ndarray],
    *inputs: InputSpec,
    preprocess: Preprocess | None = None,
    **options: Any,
) -> Dataset:
    samples = ArraySamples(arrays=arrays, inputs=inputs, preprocess=preprocess, **options)
    return Dataset.over(samples, inputs, source="s", preprocess=preprocess)


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [
        (3, [[0, 1, 2], [3, 4, 5], [6]]),
        (7, [[0, 1, 2, 3, 4, 5, 6]]),
        (100, [[0, 1, 2, 3, 4, 5, 6]]),
        (1, [[0], [1], [2], [3], [4], [5], [6]]),
    ],
)
def test_batches_keep_the_order_and_the_last_is_short(
    batch_size: int, expected: list[list[int]]
) -> None:
    dataset, _ = counted(7)
    assert values(dataset, batch_size) == expected
    labels = [labels.tolist() for _, labels in dataset.batches(batch_size) if labels is not None]
    assert labels == [[10 * value for value in batch] for batch in expected]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert dataset.labels.dtype == np.int64
    assert (len(dataset), dataset.dropped, dataset.source) == (7, 0, "src")


def test_batches_are_read_one_at_a_time() -> None:
    dataset, samples = counted(7)
    samples.reads.clear()
    batches = dataset.batches(3)
    assert samples.reads == []
    next(batches)
    assert samples.reads == [[0, 1, 2]]
    next(batches)
    assert samples.reads == [[0, 1, 2], [3, 4, 5]]


def test_without_labels_there_are_none() -> None:
    dataset, _ = counted(3, labels=False)
    assert dataset.labels is None
    assert [labels for _, labels in dataset.batches(2)] == [None, None]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batch_size_must_be_positive_and_is_checked_at_the_call(batch_size: int) -> None:
    with pytest.raises(UsageError, match=f"not {batch_size}"):
        counted(3)[0].batches(batch_size)


def test_take_views_rows_in_the_order_given_and_reads_nothing() -> None:
    dataset, samples = counted(7)
    samples.reads.clear()
    view = dataset.take([5, 0, 5]).take(np.array([2, 1]))
    assert samples.reads == []
    assert values(view, 8) == [[5, 0]]
    assert view.labels is not None
    assert view.labels.tolist() == [50, 0]
    assert values(dataset, 8) == [[0, 1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("indices", [[7], [-1], [0.0], [True, False], [[0]], 3])
def test_take_refuses_what_is_no_position(indices: Any) -> None:
    with pytest.raises(UsageError, match=r"take\(\) needs"):
        counted(7)[0].take(indices)


def test_nothing_is_no_dataset() -> None:
    with pytest.raises(DataError, match="--data src: holds no sample"):
        counted(0)
    with pytest.raises(DataError, match="holds no sample"):
        counted(3)[0].take([])


@pytest.mark.parametrize("batch", ["N", 2])
def test_held_samples_are_read_once(batch: int | str) -> None:
    dataset, samples = counted(50, batch=batch)
    some = dataset.take([4, 2, 49, 2])
    samples.reads.clear()
    held = some.held(10_000)
    read = len(samples.reads)
    found = [values(held, size) for size in (3, 1)]
    assert len(samples.reads) == read
    assert found == [values(some, size) for size in (3, 1)]
    assert held.labels.tolist() == [40, 20, 490, 20]
    assert len(held) == 4
    assert values(held.take([3, 0]), 2) == [[2, 4]]


def test_held_images_are_those_that_were_prepared() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    spec = InputSpec("in", FLOAT, ("N", 3, 4, 4))
    dataset = of_arrays({"in": pixels}, spec, preprocess=Preprocess(scale=1 / 255))
    ((feeds, _),) = dataset.held(10_000).batches(5)
    ((expected, _),) = dataset.batches(5)
    np.testing.assert_array_equal(feeds["in"], expected["in"])
    assert feeds["in"].dtype == FLOAT


def test_what_is_too_much_is_not_held() -> None:
    """Ten samples of 24 bytes."""
    dataset, samples = counted(10)
    assert dataset.held(239) is dataset
    samples.reads.clear()
    assert dataset.held(240) is not dataset
    assert sorted(row for rows in samples.reads for row in rows if rows != [0]) == list(range(10))


def test_held_samples_are_checked() -> None:
    broken = np.ones((3, 2), FLOAT)
    broken[1, 1] = np.nan
    dataset = of_arrays({"in": broken}, InputSpec("in", FLOAT, ("N", 2)))
    with pytest.raises(DataError, match="sample 1 of input 'in' has NaN or Inf"):
        dataset.held(1000)


def test_datasets_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        counted(3)[0].source = "other"  # type: ignore[misc]


def test_a_fixed_batch_of_one_overrides_the_batch_size() -> None:
    dataset, _ = counted(3, batch=1)
    assert values(dataset, 16) == [[0], [1], [2]]
    assert (dataset.fixed_batch, dataset.dropped) == (1, 0)


def test_a_fixed_batch_leaves_the_remainder_out_everywhere_and_counts_it() -> None:
    dataset, _ = counted(11, batch=4)
    assert values(dataset, 1) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (len(dataset), dataset.dropped) == (8, 3)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 10, 20, 30, 40, 50, 60, 70]
    view = dataset.take([7, 6, 5, 4, 3])
    assert values(view, 2) == [[7, 6, 5, 4]]
    assert view.dropped == 1


def test_less_than_a_fixed_batch_is_a_data_error() -> None:
    with pytest.raises(DataError, match="holds 3 samples: the model needs at least 4"):
        counted(3, batch=4)


def test_inputs_must_share_their_fixed_batch() -> None:
    arrays = {"a": np.zeros((8, 2), FLOAT), "b": np.zeros((8, 3), FLOAT)}
    free, four = InputSpec("a", FLOAT, ("N", 2)), InputSpec("b", FLOAT, (4, 3))
    assert of_arrays(arrays, free, four).fixed_batch == 4
    with pytest.raises(DataError, match=r"'a' \[2, 2\], 'b' \[4, 3\]"):
        of_arrays(arrays, replace(free, shape=(2, 2)), four)
    with pytest.raises(DataError, match=r"common batch dimension.*'a' \[\]"):
        of_arrays(arrays, replace(free, shape=()), four)


def test_numbers_below_one_are_dynamic() -> None:
    spec = InputSpec("in", FLOAT, (0, -1, "H", None, 7))
    assert [spec.fixed(axis) for axis in range(5)] == [None, None, None, None, 7]


@pytest.mark.parametrize(
    ("fraction", "held"), [(0.1, 2), (0.25, 5), (0.001, 1), (0.999, 19), (0.5, 10)]
)
def test_split_parts_the_samples(fraction: float, held: int) -> None:
    dataset, samples = counted(20)
    samples.reads.clear()
    rest, held_out = dataset.split(fraction, 7)
    assert samples.reads == []
    (kept,), (taken,) = values(rest, 99), values(held_out, 99)
    assert len(taken) == held
    assert sorted(kept + taken) == list(range(20))
    assert kept == sorted(kept)
    assert taken == sorted(taken)
    assert held_out.labels is not None
    assert held_out.labels.tolist() == [10 * value for value in taken]


def test_split_depends_on_the_seed_alone() -> None:
    dataset, _ = counted(50)
    first, again, other = (values(dataset.split(0.2, seed)[1], 99) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_split_of_a_view_stays_in_the_view() -> None:
    dataset, _ = counted(20)
    rest, held_out = dataset.take([19, 3, 5, 7]).split(0.5, 0)
    assert sorted(values(rest, 9)[0] + values(held_out, 9)[0]) == [3, 5, 7, 19]


def test_split_keeps_whole_fixed_batches() -> None:
    dataset, _ = counted(19, batch=4)
    rest, held_out = dataset.split(0.3, 1)
    assert (len(rest), len(held_out), rest.dropped, held_out.dropped) == (12, 4, 0, 0)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_split_fraction_must_lie_between(fraction: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        counted(9)[0].split(fraction, 0)


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (1, "N"), (7, 4)])
def test_split_needs_two(count: int, batch: int | str) -> None:
    with pytest.raises(DataError, match="cannot be split"):
        counted(count, batch=batch)[0].split(0.5, 0)
