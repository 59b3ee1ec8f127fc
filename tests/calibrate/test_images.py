"""Folders of images: listing, classes, decoding, and files that must be refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate import images as module
from onnxcompress.calibrate.images import ImageSamples, decode, open_folder
from onnxcompress.calibrate.preprocess import Preprocess
from onnxcompress.errors import DataError

FLOAT = np.dtype(np.float32)
SPEC = InputSpec("in", FLOAT, ("N", 3, 4, 5))
RAW = Preprocess(scale=1.0, color="rgb")


def save(path: Path, value: int | np.ndarray, *, mode: str | None = None) -> np.ndarray:
    """Write an image: a constant [4,5,3], or the pixels given."""
    pixels = np.full((4, 5, 3), value, np.uint8) if isinstance(value, int) else value
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path)
    return pixels


def opened(root: Path, *, limit: int | None = None, settings: Preprocess = RAW) -> ImageSamples:
    return open_folder(root, (SPEC,), preprocess=settings, limit=limit)


def first_pixels(samples: ImageSamples) -> list[int]:
    return samples.read(np.arange(len(samples)))["in"][:, 0, 0, 0].astype(int).tolist()


# ---------------------------------------------------------------- listing


def test_a_flat_folder_is_sorted_and_has_no_labels(tmp_path: Path) -> None:
    for number, name in enumerate(["c.png", "a.PNG", "b.bmp"]):
        save(tmp_path / name, number)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_bytes(b"not read")
    (tmp_path / "empty").mkdir()
    samples = opened(tmp_path)
    assert samples.names == ("a.PNG", "b.bmp", "c.png")
    assert first_pixels(samples) == [1, 2, 0]
    assert samples.labels is None


def test_every_suffix_is_accepted(tmp_path: Path) -> None:
    suffixes = ["jpg", "jpeg", "png", "bmp", "webp", "ppm", "tif", "tiff", "JPG"]
    for suffix in suffixes:
        save(tmp_path / f"{suffix}.{suffix}", 128)
    samples = opened(tmp_path)
    assert len(samples) == len(suffixes)
    # JPEG and WebP are lossy, but not on a constant grey.
    assert np.abs(samples.read(np.arange(len(samples)))["in"] - 128).max() <= 2


def test_class_folders_are_numbered_by_position(tmp_path: Path) -> None:
    save(tmp_path / "dog" / "z.png", 1)
    save(tmp_path / "cat" / "b.png", 2)
    save(tmp_path / "cat" / "deeper" / "a.png", 3)
    save(tmp_path / "10" / "a.png", 4)
    (tmp_path / "bird").mkdir()  # no image, yet a class
    save(tmp_path / ".cache" / "x.png", 5)
    samples = opened(tmp_path)
    assert samples.names == ("10/a.png", "cat/b.png", "cat/deeper/a.png", "dog/z.png")
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 2, 2, 3]
    assert samples.labels.dtype == np.int64
    assert first_pixels(samples) == [4, 2, 3, 1]


def test_class_folders_named_by_digits_are_numbers(tmp_path: Path) -> None:
    for name in ("007", "10", "9"):
        save(tmp_path / name / "a.png", int(name))
    samples = opened(tmp_path, settings=Preprocess(color="rgb", label_offset=1))
    assert samples.labels is not None
    assert samples.labels.tolist() == [8, 11, 10]
    assert first_pixels(samples) == [7, 10, 9]


def test_negative_labels_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "0" / "a.png", 0)
    with pytest.raises(DataError, match="label_offset=-1"):
        opened(tmp_path, settings=Preprocess(color="rgb", label_offset=-1))


def test_a_limit_spreads_over_the_classes(tmp_path: Path) -> None:
    for number in range(10):
        save(tmp_path / str(number // 2) / f"{number}.png", number)
    samples = opened(tmp_path, limit=4)
    assert first_pixels(samples) == [0, 2, 5, 7]
    assert samples.labels is not None
    assert samples.labels.tolist() == [0, 1, 2, 3]
    assert len(opened(tmp_path, limit=99)) == 10


def test_no_image_and_mixed_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no image; .*\.jpg"):
        opened(tmp_path)
    save(tmp_path / "cat" / "a.png", 0)
    save(tmp_path / "b.png", 0)
    with pytest.raises(DataError, match=r"images \(b\.png, \.\.\.\) beside folders of images"):
        opened(tmp_path)


def test_only_one_image_input_can_be_fed(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0)
    bad = [
        (SPEC, InputSpec("mask", FLOAT, ("N", 1))),
        (InputSpec("in", FLOAT, ("N", 60)),),
        (InputSpec("in", np.dtype(np.int64), ("N", 3, 4, 5)),),
        (InputSpec("in", np.dtype(np.uint16), ("N", 3, 4, 5)),),
    ]
    for inputs in bad:
        with pytest.raises(DataError, match="exactly one floating or uint8 input of rank 4"):
            open_folder(tmp_path, inputs, preprocess=RAW)
    with pytest.raises(DataError, match="need --preprocess"):
        open_folder(tmp_path, (SPEC,), preprocess=None)


def test_uint8_models_take_the_pixels(tmp_path: Path) -> None:
    pixels = save(tmp_path / "a.png", np.arange(60, dtype=np.uint8).reshape(4, 5, 3))
    spec = InputSpec("in", np.dtype(np.uint8), ("N", 3, 4, 5))
    batch = open_folder(tmp_path, (spec,), preprocess=None).read(np.array([0]))["in"]
    assert batch.dtype == np.uint8
    np.testing.assert_array_equal(batch[0], pixels.transpose(2, 0, 1))


def test_one_channel_models_get_grey(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 77)
    spec = InputSpec("in", FLOAT, ("N", 1, 4, 5))
    batch = open_folder(tmp_path, (spec,), preprocess=Preprocess()).read(np.array([0]))["in"]
    np.testing.assert_array_equal(batch, np.full((1, 1, 4, 5), 77, FLOAT))


def test_only_the_rows_asked_for_are_decoded(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2)
    (tmp_path / "c.png").write_bytes(b"broken")
    batch = opened(tmp_path).read(np.array([1, 0, 1]))["in"]
    assert batch[:, 0, 0, 0].tolist() == [2, 1, 2]


def test_sizes_that_differ_name_the_files(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", np.zeros((6, 7, 3), np.uint8))
    samples = opened(tmp_path)
    with pytest.raises(DataError, match=r"b\.png is 6x7x3 and a\.png is 4x5x3"):
        samples.read(np.array([0, 1]))
    cropped = opened(tmp_path, settings=Preprocess(color="rgb", crop=(4, 5)))
    assert cropped.read(np.array([0, 1]))["in"].shape == (2, 3, 4, 5)


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    ("mode", "shape"),
    [
        ("RGB", (4, 5, 3)),
        ("RGBA", (4, 5, 3)),
        ("P", (4, 5, 3)),
        ("L", (4, 5)),
        ("LA", (4, 5)),
        ("1", (4, 5)),
    ],
)
def test_modes(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    save(tmp_path / "a.png", 255, mode=mode)
    decoded = decode(tmp_path / "a.png", called="a.png")
    np.testing.assert_array_equal(decoded, np.full(shape, 255, np.uint8))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (5, 4), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    decoded = decode(tmp_path / "a.tif", called="a.tif")
    np.testing.assert_array_equal(decoded, np.broadcast_to([255, 0, 0], (4, 5, 3)))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deeper_pixels_are_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.zeros((4, 5), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: .* pixels; convert it to 8 bits"):
        decode(tmp_path / "a.tif", called="a.tif")


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "flipped", "gif", "missing"])
def test_corrupt_images_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.png"
    save(path, np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    content = path.read_bytes()
    path.unlink()
    if damage == "gif":
        Image.new("P", (3, 3)).save(path, format="GIF")
    elif damage != "missing":
        flipped = content[:60] + bytes([content[60] ^ 255]) + content[61:]
        path.write_bytes(
            {"empty": b"", "text": b"hello\nthere", "truncated": content[:900]}.get(damage, flipped)
        )
    with pytest.raises(DataError, match=r"bad\.png: cannot decode this image \(.+\)") as caught:
        decode(path, called="bad.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [11, 20])  # Pillow warns above its limit, raises above twice it
def test_decompression_bombs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    save(tmp_path / "a.png", np.zeros((10, 10, 3), np.uint8))
    save(tmp_path / "b.png", np.zeros((10, side, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 if side == 11 else 99)
    if side == 11:
        assert decode(tmp_path / "a.png", called="a").shape == (10, 10, 3)
    with pytest.raises(DataError, match=r"b: cannot decode .*decompression bomb"):
        decode(tmp_path / "b.png", called="b")


# ---------------------------------------------------------------- content


def content(samples: ImageSamples) -> bytes:
    return b"|".join(samples.content())


def test_content_covers_names_labels_and_every_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HASH_BYTES", 7)  # smaller than any file: streamed in blocks
    for number in range(9):
        save(tmp_path / "0" / f"{number}.png", number)
    base = content(opened(tmp_path))
    assert base == content(opened(tmp_path))
    offset = content(opened(tmp_path, settings=Preprocess(color="rgb", label_offset=1)))
    middle = tmp_path / "0" / "4.png"
    original = middle.read_bytes()
    middle.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    changed = content(opened(tmp_path))
    middle.write_bytes(original)
    assert content(opened(tmp_path)) == base
    middle.rename(middle.with_name("4a.png"))
    renamed = content(opened(tmp_path))
    middle.with_name("4a.png").rename(middle)
    (tmp_path / "0").rename(tmp_path / "1")
    relabelled = content(opened(tmp_path))
    assert len({base, offset, changed, renamed, relabelled}) == 5


def test_content_of_a_file_that_is_gone_is_a_data_error(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0)
    samples = opened(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: cannot read it \(No such file"):
        content(samples)
