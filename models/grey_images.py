"""Grey 28x28 images of the shared folder, and their splits, for the scripts that train on them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

MODELS = Path(__file__).resolve().parent
SPLIT_SEED = 0


@dataclass(frozen=True)
class Part:
    """One part of the data: pixels [N, 28, 28] (uint8, 0..255), labels [N] (int64)."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def read(folder: str, file: str) -> Part:
    """The images of one of a data set's official files.

    Args:
        folder: of the data set, below ``data`` in the shared folder.
        file: without its ending.
    """
    root = MODELS.parent / os.environ.get("ONNXCOMPRESS_DATA", "../shared")
    with np.load(root / "data" / folder / f"{file}.npz") as arrays:
        return Part(arrays["x"], arrays["y"].astype(np.int64))


def in_proportion(whole: Part, first: int) -> tuple[Part, Part]:
    """The ``first`` images and the rest, every class in the same proportion, always the same ones.

    Returns:
        Both parts, each in the order of ``whole``.
    """
    rows = np.arange(len(whole.labels))
    parts = train_test_split(rows, train_size=first, stratify=whole.labels, random_state=SPLIT_SEED)
    one, other = (Part(whole.pixels[np.sort(p)], whole.labels[np.sort(p)]) for p in parts)
    return one, other
