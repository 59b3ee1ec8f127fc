"""What SPEC dispatches to: missing paths, folders, arrays in memory, and real data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.preprocess import Preprocess
from onnxcompress.calibrate.preprocess_text import parse_preprocess
from onnxcompress.calibrate.spec import load_dataset
from onnxcompress.errors import DataError, OnnxCompressError, UsageError

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


@pytest.mark.parametrize("text", ["gone.npz", "gone.npy", "gone", "", "a:b:c", "a b:c", "x\0y"])
def test_a_missing_path_tells_the_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(
        lambda: load_dataset(text, ONE, purpose="--eval"),
        r"^--eval .*: there is no such file: give a \.npz, a \.npy, a folder of images or of one "
        r"folder per class, or module:function$",
    )


def test_a_path_that_cannot_be_looked_at() -> None:
    refused(lambda: load_dataset("n" * 5000, ONE), "cannot look there")


def test_a_folder_of_classes(tmp_path: Path) -> None:
    for name, value in (("cat", 10), ("dog", 20), ("emu", 30)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (5, 4), (value, value + 1, value + 2)).save(tmp_path / name / "a.png")
    inputs = (InputSpec("in", FLOAT, ("N", 3, 4, 5)),)
    settings = Preprocess(color="bgr", label_offset=1)
    dataset = load_dataset(str(tmp_path), inputs, preprocess=settings)
    assert [feeds["in"][:, :, 0, 0].tolist() for feeds, _ in dataset.batches(2)] == [
        [[12, 11, 10], [22, 21, 20]],
        [[32, 31, 30]],
    ]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [1, 2, 3]
    assert len(load_dataset(str(tmp_path), inputs, preprocess=settings, limit=2)) == 2
    before = dataset.fingerprint()
    Image.new("RGB", (5, 4), (20, 21, 23)).save(tmp_path / "dog" / "a.png")
    assert dataset.fingerprint() != before


def test_a_folder_must_fit_and_its_broken_images_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    inputs = (InputSpec("in", FLOAT, ("N", 3, 4, 5)),)
    dataset = load_dataset(str(tmp_path), inputs, preprocess=Preprocess())
    refused(lambda: list(dataset.batches(2)), r"^--data .*: b\.png: cannot decode this image")
    refused(lambda: load_dataset(str(tmp_path), inputs), r"^--data .*: uint8 images need --prepro")
    refused(
        lambda: load_dataset(str(tmp_path), inputs, preprocess=Preprocess(crop=(4, 4))),
        "wants 5 on axis 3, the data has 4",
    )


def test_one_array_for_one_input() -> None:
    dataset = dataset_from_arrays(data(), ONE, source="mine", purpose="data=")
    np.testing.assert_array_equal(feed(dataset), data())
    assert (dataset.source, dataset.purpose, dataset.labels) == ("mine", "data=", None)
    refused(lambda: dataset_from_arrays(data(), TWO), "one array, but the model takes 'a', 'b'")


def test_a_dataset_passes_through_if_it_fits() -> None:
    dataset = dataset_from_arrays(data(), ONE)
    assert dataset_from_arrays(dataset, ONE) is dataset
    assert len(dataset_from_arrays(dataset, ONE, limit=2)) == 2
    assert len(dataset_from_arrays(dataset, ONE, limit=9)) == 5
    refused(
        lambda: dataset_from_arrays(dataset, TWO),
        r"made for the inputs 'in' float32\['N', 2, 3\], but the model takes 'a' float32",
    )
    refused(
        lambda: dataset_from_arrays(dataset, ONE, preprocess=Preprocess()),
        "brings its own preprocessing",
        UsageError,
    )


@pytest.mark.shared
def test_real_images() -> None:
    default = Path(__file__).resolve().parents[2] / ".." / "shared"
    root = Path(os.environ.get("ONNXCOMPRESS_DATA", default)) / "data"
    if not root.is_dir():
        pytest.skip(f"no shared data: {root} is absent; set ONNXCOMPRESS_DATA")
    cifar = root / "cifar10_lossless" / "cifar10_lossless_test1000.npz"
    settings = parse_preprocess("color=rgb,scale=1/255,mean=[.485,.456,.406],std=[.229,.224,.225]")
    inputs = (InputSpec("input", FLOAT, ("N", 3, 32, 32)),)
    dataset = load_dataset(str(cifar), inputs, preprocess=settings)
    assert len(dataset) == 1000
    with np.load(cifar) as archive:
        images, labels = archive["x"], archive["y"]
    assert dataset.labels is not None
    np.testing.assert_array_equal(dataset.labels, labels)
    ((feeds, _),) = dataset.take([999, 3]).batches(8)
    scaled = images[[999, 3]].astype(np.float64) / 255
    expected = (scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(
        feeds["input"], expected.transpose(0, 3, 1, 2), rtol=2**-24, atol=1e-12
    )

    inputs = (InputSpec("data", FLOAT, (1, 3, 224, 224)),)
    crop = parse_preprocess("crop=224,scale=1/127.5,mean=1,label_offset=1")
    samples = load_dataset(str(root / "imagenet_samples"), inputs, preprocess=crop, limit=4)
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 251, 501, 751]
    for number, (feeds, _) in zip((0, 250, 500, 750), samples.batches(32), strict=True):
        (file,) = (root / "imagenet_samples" / f"{number:03}").iterdir()
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"), np.float64)[16:240, 16:240]
        # p * (1/127.5) - 1 cancels near the middle grey, hence the absolute float64 noise.
        np.testing.assert_allclose(
            feeds["data"][0], pixels.transpose(2, 0, 1) / 127.5 - 1, rtol=2**-24, atol=1e-12
        )
