"""Geometry, colour and arithmetic of images against hand-made oracles."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from onnxcompress.calibrate import preprocess as module
from onnxcompress.calibrate.preprocess import Preprocess
from onnxcompress.calibrate.preprocess_text import parse_preprocess
from onnxcompress.errors import DataError, UsageError


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (3, 3, 3, 3)])  # all distinct, all equal
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_normalisation_by_hand(shape: tuple[int, ...], layout: str, color: str) -> None:
    images = pixels(*shape)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    settings = parse_preprocess(
        f"layout={layout},color={color},scale=1/255,mean=[.485,.456,.406],std=[.229,.224,.225]"
    )
    assert settings is not None
    result = settings.apply(images)
    n, height, width, _ = shape
    order = (0, 1, 2) if color == "rgb" else (2, 1, 0)
    extents = (n, 3, height, width) if layout == "nchw" else (n, height, width, 3)
    assert result.shape == extents
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    for i, y, x, c in np.ndindex(n, height, width, 3):
        value = (float(images[i, y, x, order[c]]) / 255 - mean[c]) / std[c]
        got = result[i, c, y, x] if layout == "nchw" else result[i, y, x, c]
        # One rounding to float32, plus the float64 difference of p/255 and p*(1/255).
        assert abs(got - value) <= 2**-24 * abs(value) + 1e-12


def test_one_value_serves_all_channels() -> None:
    images = pixels(2, 4, 5, 3)
    result = Preprocess(mean=(127.5,), std=(127.5,)).apply(images)
    expected = ((images.astype(np.float64) - 127.5) / 127.5).astype(np.float32)
    np.testing.assert_array_equal(result, expected.transpose(0, 3, 1, 2))


def test_default_keeps_raw_pixels_and_channels() -> None:
    grey, rgb = pixels(2, 4, 5), pixels(2, 4, 5, 3)
    np.testing.assert_array_equal(Preprocess().apply(grey), grey[:, None].astype(np.float32))
    np.testing.assert_array_equal(
        Preprocess().apply(rgb), np.moveaxis(rgb, 3, 1).astype(np.float32)
    )
    np.testing.assert_array_equal(Preprocess().apply(grey[..., None]), grey[:, None])


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_single_channel_is_repeated_for_a_colour_model(color: str) -> None:
    grey = pixels(2, 4, 5)
    result = Preprocess(color=color, mean=(1.0, 2.0, 3.0)).apply(grey)
    for channel in range(3):
        np.testing.assert_array_equal(result[:, channel], grey.astype(np.float32) - (channel + 1))


def test_grey_is_the_luma_of_itu_r_601() -> None:
    images = pixels(2, 4, 5, 3)
    result = Preprocess(color="gray").apply(images)
    luma = images.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert result.shape == (2, 1, 4, 5)
    # PIL rounds to the nearest integer with 16-bit weights.
    assert np.abs(result[:, 0] - luma).max() <= 0.5 + 1e-2


def test_half_precision_is_rounded_once() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    result = Preprocess(scale=1 / 255, mean=(0.1307,), std=(0.3081,)).apply(images, dtype="f2")
    exact = (np.arange(256) / 255 - 0.1307) / 0.3081
    np.testing.assert_array_equal(result.ravel(), exact.astype(np.float16))


def test_uint8_models_get_geometry_without_arithmetic() -> None:
    images = pixels(2, 6, 7, 3)
    result = Preprocess(layout="nhwc", color="bgr", crop=(4, 4)).apply(images, dtype=np.uint8)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, images[:, 1:5, 1:5, ::-1])
    for settings in (Preprocess(scale=0.5), Preprocess(mean=(1.0,)), Preprocess(std=(2.0,))):
        with pytest.raises(DataError, match="takes uint8 pixels"):
            settings.apply(images, dtype=np.uint8)


def test_colour_is_settled_by_the_channels_of_the_model() -> None:
    assert Preprocess().for_channels(1).color == "gray"
    assert Preprocess().for_channels(3).color == "rgb"
    assert Preprocess().for_channels(None).color is None
    assert Preprocess().for_channels(4).color is None
    assert Preprocess(color="bgr").for_channels(1).color == "bgr"
    with pytest.raises(UsageError, match="color=gray"):
        Preprocess(mean=(1.0, 2.0, 3.0)).for_channels(1)


def test_three_means_for_one_channel_are_refused() -> None:
    with pytest.raises(DataError, match="1 channel"):
        Preprocess(mean=(1.0, 2.0, 3.0)).apply(pixels(1, 4, 4))


def test_only_labels_tells_whether_pixels_are_touched() -> None:
    assert Preprocess(label_offset=3).only_labels
    assert not Preprocess(label_offset=3, crop=(1, 1)).only_labels


@pytest.mark.parametrize(
    ("shape", "crop", "top", "left"),
    [
        ((7, 10), (3, 4), 2, 3),
        ((8, 5), (3, 5), 2, 0),  # margin 5: two above, three below
        ((6, 9), (6, 4), 0, 2),  # margin 5: two left, three right
        ((4, 4), (4, 4), 0, 0),
    ],
)
def test_crop_is_the_centre(
    shape: tuple[int, int], crop: tuple[int, int], top: int, left: int
) -> None:
    images = pixels(2, *shape, 3)
    expected = images[:, top : top + crop[0], left : left + crop[1]]
    np.testing.assert_array_equal(
        Preprocess(layout="nhwc", crop=crop).apply(images), expected.astype(np.float32)
    )


@pytest.mark.parametrize("crop", [(8, 3), (3, 8)])
def test_crop_larger_than_the_image_is_a_data_error(crop: tuple[int, int]) -> None:
    with pytest.raises(
        DataError, match=r"image 0: crop=\[\d,\d\] is larger than the image \(7x5\)"
    ):
        Preprocess(crop=crop).apply(pixels(1, 7, 5, 3))


@pytest.mark.parametrize(
    ("shape", "resize", "size"),
    [
        ((20, 31), 10, (10, 15)),  # 31 * 10 / 20 = 15.5, rounded down
        ((31, 20), 10, (15, 10)),
        ((6, 6), 9, (9, 9)),
        ((20, 31), (7, 5), (7, 5)),
    ],
)
def test_resize_is_pil_bilinear(
    shape: tuple[int, int], resize: int | tuple[int, int], size: tuple[int, int]
) -> None:
    for images in (pixels(2, *shape, 3), pixels(2, *shape)):
        result = Preprocess(layout="nhwc", resize=resize).apply(images)
        for image, got in zip(images, result, strict=True):
            wanted = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(np.squeeze(got), np.asarray(wanted, dtype=np.float32))


def test_shrinking_is_antialiased() -> None:
    # Columns 0 255 0 255 ...: without a wider filter some results would be 0 or 255.
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (1, 64, 32))
    inner = Preprocess(resize=8).apply(stripes)[0, 0, :, 1:-1]
    assert np.abs(inner - 127.5).max() < 20


def test_order_is_resize_then_crop_then_colour() -> None:
    images = pixels(1, 20, 30, 3)
    small = np.asarray(Image.fromarray(images[0]).resize((15, 10), Image.Resampling.BILINEAR))
    result = Preprocess(color="bgr", resize=10, crop=(6, 7)).apply(images)
    np.testing.assert_array_equal(result[0], small[2:8, 4:11, ::-1].transpose(2, 0, 1))


def test_images_of_differing_size_meet_after_geometry() -> None:
    images = [pixels(9, 12, 3), pixels(7, 5), pixels(8, 8, 1)]
    result = Preprocess(color="rgb", crop=(4, 5)).apply(images)
    assert result.shape == (3, 3, 4, 5)
    np.testing.assert_array_equal(result[0], images[0][2:6, 3:8].transpose(2, 0, 1))
    np.testing.assert_array_equal(result[1], np.stack([images[1][1:5, 0:5]] * 3))
    with pytest.raises(DataError, match="b is 7x5x3 and a is 9x12x3"):
        Preprocess(color="rgb").apply(images, names=["a", "b", "c"])
    with pytest.raises(DataError, match="image 1 is 7x5x3 and image 0 is 9x12x3"):
        Preprocess(color="rgb").apply(images)


def test_absurd_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="would make 1x1000000 into 100x100000000"):
        Preprocess(resize=100).apply(np.zeros((1, 1, 1_000_000), dtype=np.uint8))
    monkeypatch.setattr(module, "MAX_PIXELS", 12)
    assert Preprocess(resize=(3, 4)).apply(pixels(1, 5, 5)).shape == (1, 1, 3, 4)
    with pytest.raises(DataError, match="3x5 pixels"):
        Preprocess(resize=(3, 5)).apply(pixels(1, 5, 5))


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (np.zeros((2, 3, 3, 3), dtype=np.float32), "image 0: expected uint8 pixels, got float32"),
        (np.zeros((2, 3, 3, 4), dtype=np.uint8), r"image 0: expected an image .* \(3, 3, 4\)"),
        (np.zeros((2, 3), dtype=np.uint8), r"image 0: expected an image"),
        (np.zeros((2, 0, 3, 3), dtype=np.uint8), r"shape \(0, 3, 3\)"),
        (np.zeros((0, 3, 3, 3), dtype=np.uint8), "no images"),
    ],
)
def test_what_is_no_image_is_a_data_error(images: np.ndarray, match: str) -> None:
    with pytest.raises(DataError, match=match):
        Preprocess().apply(images)


def test_overflow_reaches_the_caller_as_infinity() -> None:
    assert np.isinf(Preprocess(scale=1e300).apply(np.full((1, 1, 1), 9, dtype=np.uint8))).all()
