"""Names, counts and labels of arrays must match the inputs of the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.preprocess import Preprocess
from onnxcompress.calibrate.spec import load_dataset
from onnxcompress.errors import DataError, OnnxCompressError

FLOAT = np.dtype(np.float32)
ONE = (InputSpec("in", FLOAT, ("N", 2, 3)),)
TWO = (InputSpec("a", FLOAT, ("N", 2)), InputSpec("b", np.dtype(np.int64), ("N", 3)))


def data(count: int = 5) -> np.ndarray:
    return np.arange(count * 6, dtype=FLOAT).reshape(count, 2, 3)


def feed(dataset: Dataset, name: str = "in") -> np.ndarray:
    return np.concatenate([feeds[name] for feeds, _ in dataset.batches(2)])


def refused(
    call: Callable[[], object], match: str, kind: type[OnnxCompressError] = DataError
) -> None:
    """The error is of the right class, and one line."""
    with pytest.raises(kind, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "inputs", "missing", "unknown"),
    [
        (["image"], ONE, ["in"], ["image"]),
        (["in", "x"], ONE, [], ["x"]),
        (["y"], ONE, ["in"], []),
        (["a"], TWO, ["b"], []),
        (["x"], TWO, ["a", "b"], ["x"]),
        (["a", "b", "c", "y"], TWO, [], ["c"]),
    ],
)
def test_names_that_do_not_match_are_all_listed(
    keys: list[str], inputs: tuple[InputSpec, ...], missing: list[str], unknown: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        dataset_from_arrays(dict.fromkeys(keys, data()), inputs)
    names = [spec.name for spec in inputs]
    assert f"missing inputs: {missing}; unknown keys: {unknown}; the model takes {names}" in str(
        caught.value
    )


def test_unknown_names_are_refused_before_anything_is_decompressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "d.npz", image=data())
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *_: pytest.fail("decompressed"))
    refused(lambda: load_dataset(str(tmp_path / "d.npz"), ONE), r"unknown keys: \['image'\]")


def test_an_input_called_y_is_an_input() -> None:
    inputs = (InputSpec("y", FLOAT, ("N", 2, 3)),)
    alone = dataset_from_arrays({"y": data()}, inputs)
    np.testing.assert_array_equal(feed(alone, "y"), data())
    assert alone.labels is None
    labelled = dataset_from_arrays({"x": data(), "y": np.arange(5)}, inputs)
    np.testing.assert_array_equal(feed(labelled, "y"), data())
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (np.arange(4), "4 labels for 5 samples"),
        (np.arange(6), "6 labels for 5 samples"),
        (np.ones(5), r"integers of shape \[5\], not float64 of shape \[5\]"),
        (np.ones((5, 2), int), r"not int64 of shape \[5, 2\]"),
        (np.array(3), "must be an array of numbers, batch first"),
        (np.array([0, 1, -2, 3, 4]), "a label is -2: labels count from 0"),
        (np.array(list("abcde")), "must be an array of numbers"),
    ],
)
def test_labels_that_do_not_fit(labels: np.ndarray, match: str) -> None:
    refused(lambda: dataset_from_arrays({"in": data(), "y": labels}, ONE), match)
    if labels.shape == (6,):  # a limit does not hide it
        refused(lambda: dataset_from_arrays({"in": data(), "y": labels}, ONE, limit=5), match)


def test_labels_in_a_column_and_their_offset() -> None:
    arrays = {"in": data(), "y": np.arange(5, dtype=np.uint8)[:, None]}
    dataset = dataset_from_arrays(arrays, ONE, preprocess=Preprocess(label_offset=1))
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1, 2, 3, 4, 5]
    refused(
        lambda: dataset_from_arrays(arrays, ONE, preprocess=Preprocess(label_offset=-1)),
        "a label is -1",
    )


def test_counts_must_agree() -> None:
    arrays = {"a": np.ones((4, 2)), "b": np.ones((3, 3), int)}
    refused(lambda: dataset_from_arrays(arrays, TWO), "samples differ: 'a' has 4, 'b' has 3")


def test_empty_data_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=data(0), y=np.zeros(0, int))
    np.save(tmp_path / "d.npy", data(0))
    (tmp_path / "folder").mkdir()
    for name in ("d.npz", "d.npy"):
        refused(lambda name=name: load_dataset(str(tmp_path / name), ONE), "holds no sample")
    images = (InputSpec("in", FLOAT, ("N", 3, 4, 5)),)
    refused(
        lambda: load_dataset(str(tmp_path / "folder"), images, preprocess=Preprocess()),
        "--data .*folder: holds no image",
    )


def test_errors_name_the_option_and_the_data(tmp_path: Path) -> None:
    array = data()
    array[3] = np.nan
    np.savez(tmp_path / "d.npz", x=array)
    dataset = load_dataset(str(tmp_path / "d.npz"), ONE, purpose="--eval")
    refused(lambda: feed(dataset), r"^--eval .*d\.npz: sample 3 of input 'in' has NaN or Inf")
    wide = (InputSpec("in", FLOAT, ("N", 2, 4)),)
    refused(
        lambda: load_dataset(str(tmp_path / "d.npz"), wide, purpose="--eval"),
        r"^--eval .*d\.npz: input 'in' \[N, 2, 4\] wants 4 on axis 2, the data has 3",
    )


def test_preprocessing_without_images_is_refused() -> None:
    refused(
        lambda: dataset_from_arrays({"in": data()}, ONE, preprocess=Preprocess(scale=0.5)),
        "--preprocess is for uint8 images, but the data is 'in' float32: leave it out",
    )
    whole = (InputSpec("in", np.dtype(np.int64), ("N", 2, 3)),)
    bytes_ = data().astype(np.uint8)
    refused(
        lambda: dataset_from_arrays({"in": bytes_}, whole, preprocess=Preprocess(scale=0.5)),
        "'in' uint8: leave it out",
    )
    np.testing.assert_array_equal(feed(dataset_from_arrays(bytes_, whole)), bytes_)
