"""Samples from image files: a folder of images, or of one folder per class, decoded on demand."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate.array_samples import NEEDS_PREPROCESS, image_channels
from onnxcompress.calibrate.preprocess import Preprocess
from onnxcompress.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"})
# Pillow sniffs content, not suffixes: without this list a hostile .png could reach any decoder.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")
_UNDECODABLE = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow raises it for broken PNG chunks
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_HASH_BYTES = 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSamples:
    """Images of a folder; a batch is decoded when it is read, and not kept.

    Attributes:
        root: The folder.
        names: Image files relative to it, in sample order.
        spec: The one input of the model.
        preprocess: How images become that input.
        labels: [N], label offset already added; None for a flat folder.
    """

    root: Path
    names: tuple[str, ...]
    spec: InputSpec
    preprocess: Preprocess
    labels: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """Decode and preprocess these images.

        Raises:
            DataError: An image is unreadable or does not suit the preprocessing; it is named.
        """
        chosen = [self.names[row] for row in rows]
        images = (decode(self.root / name, called=name) for name in chosen)
        batch = self.preprocess.apply(images, dtype=self.spec.dtype, names=chosen)
        return {self.spec.name: batch}

    def content(self) -> Iterator[bytes]:
        """Yield names, labels, sizes and bytes of all files, a bounded block at a time.

        Raises:
            DataError: A file cannot be read.
        """
        labels = None if self.labels is None else self.labels.tolist()
        yield json.dumps([self.names, labels]).encode()
        for name in self.names:
            try:
                with (self.root / name).open("rb") as file:
                    yield f"{name}\0{(self.root / name).stat().st_size}\0".encode()
                    while block := file.read(_HASH_BYTES):
                        yield block
            except OSError as error:
                raise DataError(f"{self.root / name}: cannot read it ({error.strerror})") from error


def open_folder(
    root: Path,
    inputs: tuple[InputSpec, ...],
    *,
    preprocess: Preprocess | None,
    limit: int | None = None,
) -> ImageSamples:
    """List the images of a folder for the one image input of a model; none is decoded.

    Args:
        root: A folder of images, or of one folder per class. Classes are numbered in sorted
            order of their names, or by their names where all are decimal digits; images inside
            a class folder may lie deeper. Names that start with a dot are ignored.
        inputs: The inputs of the model: one, of rank 4, floating or uint8.
        preprocess: How images become that input.
        limit: Take this many images, spread evenly over the sorted list.

    Returns:
        The samples, sorted by class folder and name.

    Raises:
        DataError: No image, images beside class folders, or a model that takes no single image.
    """
    suits = [
        len(spec.shape) == 4 and (spec.dtype.kind == "f" or spec.dtype == np.uint8)
        for spec in inputs
    ]
    if suits != [True]:
        found = ", ".join(f"{spec.name!r} {spec.dtype}{list(spec.shape)}" for spec in inputs)
        raise DataError(
            "a folder of images feeds exactly one floating or uint8 input of rank 4, but the "
            f"model takes {found}: give a .npz"
        )
    if preprocess is None and inputs[0].dtype.kind == "f":
        raise DataError(NEEDS_PREPROCESS)
    settings = preprocess or Preprocess()
    settings = settings.for_channels(image_channels(inputs[0], settings))
    names, classes = _listed(root)
    if not names:
        raise DataError(f"holds no image; image files end in {' '.join(sorted(SUFFIXES))}")
    count = len(names)
    kept = min(count, count if limit is None else limit)
    # Files are sorted by class, so the first ones would be few classes.
    chosen = [index * count // kept for index in range(kept)]
    labels = None
    if classes is not None:
        labels = np.array(classes, dtype=np.int64)[chosen] + settings.label_offset
        if labels.min() < 0:
            raise DataError(f"label_offset={settings.label_offset} makes labels negative")
    return ImageSamples(
        root=root,
        names=tuple(names[index] for index in chosen),
        spec=inputs[0],
        preprocess=settings,
        labels=labels,
    )


def decode(path: Path, *, called: str) -> npt.NDArray[np.uint8]:
    """Decode one image file as RGB or as a single channel.

    Transparency is dropped, and the EXIF orientation is ignored, as training pipelines do.

    Args:
        path: The file.
        called: Its name in messages.

    Returns:
        uint8 [H,W,3] or [H,W].

    Raises:
        DataError: The file is unreadable, corrupt, absurdly large, or not 8 bits deep.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Pillow only warns up to twice its limit: a bomb all the same.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                if image.mode[0] in "IF":
                    raise DataError(f"{called}: {image.mode} pixels; convert it to 8 bits")
                grey = image.mode in ("1", "L", "LA", "La")
                return np.asarray(image.convert("L" if grey else "RGB"))
    except DataError:
        raise
    except _UNDECODABLE as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{called}: cannot decode this image ({reason}); remove it") from error


def _listed(root: Path) -> tuple[list[str], list[int] | None]:
    """Find the image files in sample order, and their classes if there are class folders."""
    try:
        entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
        flat = [entry.name for entry in entries if _is_image(entry)]
        folders = [entry for entry in entries if entry.is_dir()]
        nested = [
            sorted(
                file.relative_to(root).as_posix() for file in folder.rglob("*") if _is_image(file)
            )
            for folder in folders
        ]
    except OSError as error:
        raise DataError(f"cannot list the folder ({error.strerror})") from error
    if not any(nested):
        return flat, None
    if flat:
        raise DataError(
            f"holds images ({flat[0]}, ...) beside folders of images ({folders[0].name}, ...): "
            "keep one kind"
        )
    names = [folder.name for folder in folders]
    by_name = all(name.isascii() and name.isdigit() for name in names)
    numbers = [int(name) for name in names] if by_name else range(len(names))
    classes = [number for number, files in zip(numbers, nested, strict=True) for _ in files]
    return [name for files in nested for name in files], classes


def _is_image(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in SUFFIXES and path.is_file()
