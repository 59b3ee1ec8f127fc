"""SPEC as a .npz or .npy: lazily kept, cut to a limit, refused when damaged or pickled."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcompress.analyse.sizes import InputSpec
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


@pytest.mark.parametrize("key", ["in", "x"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_labels(tmp_path: Path, key: str, save: Callable[..., None]) -> None:
    path = tmp_path / "d.npz"
    save(path, **{key: data()}, y=np.array([4, 3, 2, 1, 0], np.uint8))
    dataset = load_dataset(str(path), ONE)
    np.testing.assert_array_equal(feed(dataset), data())
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [4, 3, 2, 1, 0]
    assert dataset.labels.dtype == np.int64
    assert dataset.source == str(path)
    assert np.concatenate([y for _, y in dataset.batches(2)]).tolist() == [4, 3, 2, 1, 0]


def test_npz_of_several_inputs(tmp_path: Path) -> None:
    a, b = np.ones((4, 2)), np.arange(12).reshape(4, 3)
    np.savez(tmp_path / "d.npz", b=b, a=a)
    dataset = load_dataset(str(tmp_path / "d.npz"), TWO)
    assert feed(dataset, "a").dtype == np.float32
    np.testing.assert_array_equal(feed(dataset, "a"), a)
    np.testing.assert_array_equal(feed(dataset, "b"), b)
    assert dataset.labels is None


def test_npz_is_decompressed_once_and_stays_uint8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    np.savez_compressed(tmp_path / "d.npz", x=images)
    reads: list[str] = []
    original = np.lib.npyio.NpzFile.__getitem__

    def counting(archive: Any, key: str) -> Any:
        reads.append(key)
        return original(archive, key)

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", counting)
    inputs = (InputSpec("in", FLOAT, ("N", 3, 4, 5)),)
    dataset = load_dataset(
        str(tmp_path / "d.npz"), inputs, preprocess=parse_preprocess("color=bgr,scale=1/2")
    )
    (tmp_path / "d.npz").unlink()
    expected = images[..., ::-1].transpose(0, 3, 1, 2).astype(FLOAT) / 2
    for view in (dataset, dataset, dataset.take(range(6))):
        np.testing.assert_array_equal(feed(view), expected)
    assert reads == ["x"]
    assert dataset.samples.arrays["in"].dtype == np.uint8  # type: ignore[attr-defined]


def test_grey_npz_becomes_one_channel(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=images)
    inputs = (InputSpec("in", FLOAT, (1, 1, 5, 7)),)
    settings = Preprocess(scale=1 / 255, mean=(0.25,), std=(0.5,))
    dataset = load_dataset(str(tmp_path / "d.npz"), inputs, preprocess=settings)
    got = [feeds["in"] for feeds, _ in dataset.batches(16)]
    assert [batch.shape for batch in got] == [(1, 1, 5, 7)] * 3
    expected = (images.astype(np.float64) / 255 - 0.25) / 0.5
    # Half an ulp of float32, and float64 noise near zero.
    np.testing.assert_allclose(np.concatenate(got)[:, 0], expected, rtol=2**-24, atol=1e-12)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_mapped_not_read(tmp_path: Path, order: str) -> None:
    np.save(tmp_path / "d.npy", np.asarray(data().astype(np.float64), order=order))
    dataset = load_dataset(str(tmp_path / "d.npy"), ONE)
    np.testing.assert_array_equal(feed(dataset), data())
    held = dataset.samples.arrays["in"]  # type: ignore[attr-defined]
    assert not held.flags.owndata
    assert not held.flags.writeable


def test_npy_suits_one_input_only(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", data())
    refused(
        lambda: load_dataset(str(tmp_path / "d.npy"), TWO),
        r"one array, but the model takes 'a', 'b': give a \.npz",
    )


def test_limit_takes_the_first(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=data(), y=np.arange(5))
    np.save(tmp_path / "d.npy", data())
    for name in ("d.npz", "d.npy"):
        dataset = load_dataset(str(tmp_path / name), ONE, limit=3)
        np.testing.assert_array_equal(feed(dataset), data()[:3])
        held = dataset.samples.arrays["in"]  # type: ignore[attr-defined]
        assert held.flags.owndata  # the rest of the file is not kept alive
    labels = load_dataset(str(tmp_path / "d.npz"), ONE, limit=3).labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2]
    assert len(load_dataset(str(tmp_path / "d.npz"), ONE, limit=9)) == 5
    for limit in (0, -1):
        refused(
            lambda limit=limit: load_dataset(str(tmp_path / "d.npy"), ONE, limit=limit),
            "at least 1 sample",
            UsageError,
        )


class Pickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("pickle-was-run",))


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_pickled_arrays_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    array = np.array([Pickled()], dtype=object)
    if suffix == ".npz":
        np.savez("d.npz", x=array)
    else:
        np.save("d.npy", array)
    refused(lambda: load_dataset(f"d{suffix}", ONE), "pickled objects are refused")
    assert not Path("pickle-was-run").exists()


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "flipped"])
def test_unreadable_files(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"d{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, x=np.random.default_rng(0).random((50, 2, 3)).astype(FLOAT))
    else:
        np.save(path, data())
    content = path.read_bytes()
    spot = 200 if suffix == ".npz" else 1  # inside the compressed data; inside the magic string
    path.write_bytes(
        {
            "empty": b"",
            "text": b"x,y\n1,2\n",
            "truncated": content[: len(content) // 2],
            "flipped": content[:spot] + bytes([content[spot] ^ 255]) + content[spot + 1 :],
        }[damage]
    )
    refused(lambda: load_dataset(str(path), ONE), "cannot read it: |not NumPy's")


def test_a_header_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", data())
    content = (tmp_path / "d.npy").read_bytes().replace(b"(5, 2, 3)", b"(9**9,)  ")
    (tmp_path / "d.npy").write_bytes(content)
    refused(lambda: load_dataset(str(tmp_path / "d.npy"), ONE), "cannot read it")
    content = content.replace(b"(9**9,)  ", b"(9999999,)")[:-1]
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", content)
    refused(lambda: load_dataset(str(tmp_path / "d.npz"), ONE), "cannot read it")


def test_wrong_suffixes_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", data())
    np.savez(tmp_path / "b.npz", x=data())
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    refused(lambda: load_dataset(str(tmp_path / "a.npz"), ONE), r"rename it to \.npy")
    refused(lambda: load_dataset(str(tmp_path / "b.npy"), ONE), r"rename it to \.npz")
    (tmp_path / "c.csv").write_text("1,2")
    refused(
        lambda: load_dataset(str(tmp_path / "c.csv"), ONE),
        r"c\.csv: not a form of data that is known: give a \.npz, a \.npy, a folder",
    )


def test_members_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x", b"hello")
    refused(lambda: load_dataset(str(tmp_path / "d.npz"), ONE), "'x' must be an array of numbers")
