"""Write scikit-learn's digits as the two small .npz files that onnxcompress embeds.

``digits_train.npz`` holds 1,000 images without labels: the calibration inputs of the demo.
``digits_test.npz`` holds the other 797 with their labels. Both are float32 in [0, 1] and of shape
[N, 1, 8, 8], under the keys that the command line's data options expect, so that onnxcompress
itself never needs scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

MODELS = Path(__file__).resolve().parent
TRAIN_IMAGES = 1000
SPLIT_SEED = 0
GREY_LEVELS = 16


@dataclass(frozen=True)
class Part:
    """One part of the data: images [N, 1, 8, 8] in [0, 1] (float32), labels [N] (int64)."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.int64]) -> Part:
        """The images and labels at ``rows``."""
        return Part(self.images[rows], self.labels[rows])


def split_part(part: Part, *, first: int, seed: int) -> tuple[Part, Part]:
    """Split ``part`` into ``first`` images and the rest, every class in the same proportion.

    Args:
        part: what to split.
        first: the number of images in the first half.
        seed: of the shuffle.

    Returns:
        Both parts, each in the order of the original data.
    """
    rows = np.arange(len(part.labels), dtype=np.int64)
    one, two = train_test_split(rows, train_size=first, stratify=part.labels, random_state=seed)
    return part.take(np.sort(one)), part.take(np.sort(two))


def digits() -> tuple[Part, Part]:
    """Scikit-learn's digits, normalised, as (training part, test part).

    Returns:
        1,000 training and 797 test images; pixels are k/16 with k = 0..16, exact in float32.
    """
    bunch = load_digits()
    images = (bunch.images / GREY_LEVELS).astype(np.float32)[:, np.newaxis]
    whole = Part(images, bunch.target.astype(np.int64))
    return split_part(whole, first=TRAIN_IMAGES, seed=SPLIT_SEED)


def write(folder: Path) -> None:
    """Write ``digits_train.npz`` and ``digits_test.npz`` into ``folder``."""
    train, test = digits()
    # No labels here: calibration needs none, and the network has already seen these.
    np.savez_compressed(folder / "digits_train.npz", x=train.images)
    np.savez_compressed(folder / "digits_test.npz", x=test.images, y=test.labels)


if __name__ == "__main__":
    write(MODELS)
