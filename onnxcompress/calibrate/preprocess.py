"""From 8-bit images to the tensor a model was trained on: geometry in bytes, then one affine map.

A pixel p of channel c becomes (p * scale - mean[c]) / std[c], with c counted in the model's own
colour order. The order of work is: grey conversion, resize, centre crop, colour order,
arithmetic, layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnxcompress.errors import DataError, UsageError

# A sliver of an image, resized by its shorter side, must not ask for gigabytes.
MAX_PIXELS = 2**26


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How uint8 images become the input of a model.

    Attributes:
        layout: What the model wants: `nchw` or `nhwc`.
        color: What the model wants: `rgb`, `bgr` or `gray`. None keeps RGB images RGB and
            single-channel images single-channel; `for_channels` settles it from the model.
        resize: The shorter side in pixels, the longer one keeping the aspect (rounded down), or
            (height, width). Bilinear and antialiased.
        crop: (height, width) of the centre crop; an odd margin leaves the spare row or column at
            the bottom or right.
        scale: Multiplies the pixel (0 to 255).
        mean: Subtracted after scaling; one value, or one per channel in the model's colour order.
        std: Divides after that; one value, or one per channel in the model's colour order.
        label_offset: Added to every label; 1 for networks whose class 0 is background.

    Raises:
        UsageError: A value makes no sense.
    """

    layout: Literal["nchw", "nhwc"] = "nchw"
    color: Literal["rgb", "bgr", "gray"] | None = None
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    label_offset: int = 0

    def __post_init__(self) -> None:
        sides = (self.resize,) if isinstance(self.resize, int) else self.resize or ()
        lengths = (1,) if self.color == "gray" else (1, 3)
        rules = {
            "layout must be nchw or nhwc": self.layout in ("nchw", "nhwc"),
            "color must be rgb, bgr or gray": self.color in (None, "rgb", "bgr", "gray"),
            "resize must be positive": all(side > 0 for side in sides),
            "crop must be positive": all(side > 0 for side in self.crop or ()),
            "scale must be finite and not zero": math.isfinite(self.scale) and self.scale != 0,
            "mean must be finite": all(map(math.isfinite, self.mean)),
            "std must be finite and positive": all(0 < value < math.inf for value in self.std),
            f"mean and std must have {' or '.join(map(str, lengths))} values for "
            f"color={self.color}": len(self.mean) in lengths and len(self.std) in lengths,
        }
        for rule, kept in rules.items():
            if not kept:
                raise preprocess_error(rule)

    @property
    def only_labels(self) -> bool:
        """Whether nothing is asked of the pixels: it may differ from the default in labels only."""
        return self == Preprocess(label_offset=self.label_offset)

    def for_channels(self, channels: int | None) -> Preprocess:
        """Settle an unstated colour from the model's channel count (1: gray, 3: rgb).

        Args:
            channels: The model's fixed channel dimension; None when it is dynamic.

        Returns:
            This preprocessing with `color` set where the count decides it.
        """
        if self.color is not None or channels not in (1, 3):
            return self
        return replace(self, color="gray" if channels == 1 else "rgb")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values, for reports and fingerprints."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def apply(
        self,
        images: Iterable[npt.NDArray[np.uint8]],
        *,
        dtype: npt.DTypeLike = np.float32,
        names: Sequence[str] | None = None,
    ) -> npt.NDArray[Any]:
        """Turn images into one batch.

        Args:
            images: A uint8 array [N,H,W,C] or [N,H,W], or images [H,W,C] or [H,W] of any sizes
                (then resize and crop must make them equal). C is 1, or 3 for RGB.
            dtype: Type of the result: a floating type; or uint8, when no arithmetic is asked for.
            names: What to call each image in a message; `image 0` and so on by default.

        Returns:
            [N,C,H,W] or [N,H,W,C], as `layout` says, rounded once from float64.

        Raises:
            DataError: An image is not uint8 or too small, or the images end up differing in size.
        """
        batch: list[npt.NDArray[np.uint8]] = []
        for index, image in enumerate(images):
            name = f"image {index}" if names is None else names[index]
            try:
                batch.append(self._pixels(image))
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
            if batch[-1].shape != batch[0].shape:
                first = "image 0" if names is None else names[0]
                raise DataError(
                    f"{name} is {_size(batch[-1])} and {first} is {_size(batch[0])} after "
                    "preprocessing: add resize=[h,w], or resize and crop, and set color"
                )
        if not batch:
            raise DataError("there are no images to preprocess")
        return self._tensor(np.stack(batch), np.dtype(dtype))

    def _pixels(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Geometry and colour of one image: uint8 [H,W,C] in the model's colour order."""
        if image.dtype != np.uint8 or 0 in image.shape:
            raise DataError(f"expected uint8 pixels, got {image.dtype} of shape {image.shape}")
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] == 3):
            raise DataError(f"expected an image [H,W], [H,W,1] or [H,W,3], got {image.shape}")
        if self.color == "gray" and image.ndim == 3:
            image = np.asarray(Image.fromarray(image).convert("L"))
        if self.resize is not None:
            image = _resized(image, self.resize)
        if self.crop is not None:
            image = _cropped(image, self.crop)
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3 if self.color in ("rgb", "bgr") else 1, axis=2)
        return image[:, :, ::-1] if self.color == "bgr" else image

    def _tensor(self, batch: npt.NDArray[np.uint8], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Arithmetic and layout of uint8 [N,H,W,C]."""
        channels = batch.shape[3]
        if max(len(self.mean), len(self.std)) > channels:
            raise DataError(
                "mean and std have 3 values but the images have 1 channel: give one value, or color"
            )
        if dtype == np.uint8 and (self.scale, {*self.mean}, {*self.std}) != (1.0, {0.0}, {1.0}):
            raise DataError("the model takes uint8 pixels: leave scale, mean and std out")
        # A pixel has 256 levels: a table is exact, rounded once, and spares a float64 copy.
        levels = np.arange(256, dtype=np.float64)[None]
        mean, std = np.array(self.mean)[:, None], np.array(self.std)[:, None]
        with np.errstate(over="ignore"):  # whoever delivers the batch looks for Inf
            table = ((levels * self.scale - mean) / std).astype(dtype)
        table = np.broadcast_to(table, (channels, 256))
        nchw = self.layout == "nchw"
        shape = (len(batch), channels, *batch.shape[1:3]) if nchw else batch.shape
        result = np.empty(shape, dtype=dtype)
        for channel in range(channels):
            target = result[:, channel] if nchw else result[..., channel]
            np.take(table[channel], batch[..., channel], out=target)
        return result


def _size(image: npt.NDArray[np.uint8]) -> str:
    return "x".join(map(str, image.shape))


def _resized(image: npt.NDArray[np.uint8], resize: int | tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Bilinear with PIL, which widens the filter when it shrinks (antialiasing)."""
    if isinstance(resize, int):
        shorter = min(image.shape[:2])
        height, width = (resize * side // shorter for side in image.shape[:2])
    else:
        height, width = resize
    if height * width > MAX_PIXELS:
        raise DataError(f"resize={resize} would make {_size(image)} into {height}x{width} pixels")
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _cropped(image: npt.NDArray[np.uint8], crop: tuple[int, int]) -> npt.NDArray[np.uint8]:
    (height, width), (rows, columns) = image.shape[:2], crop
    if rows > height or columns > width:
        raise DataError(
            f"crop=[{rows},{columns}] is larger than the image ({height}x{width}): add resize"
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    return image[top : top + rows, left : left + columns]


def preprocess_error(problem: str) -> UsageError:
    """An error about `--preprocess` that lists the accepted keys."""
    keys = ", ".join(field.name for field in fields(Preprocess))
    return UsageError(f"--preprocess: {problem}; the accepted keys are {keys}")
