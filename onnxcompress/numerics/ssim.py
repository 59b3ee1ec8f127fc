"""Structural similarity of images (Wang et al. 2004), and of many with each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

WINDOW = 7
_K1, _K2 = 0.01, 0.03


def ssim(one: Array, other: Array, data_range: float, *, window: int = WINDOW) -> float:
    """Mean structural similarity of two images.

    Windows are square and uniform, variances those of a sample (divided by one less than the
    pixels of a window); only windows that lie wholly inside count. An image smaller than a window
    is one window.

    Args:
        one: [height, width].
        other: of the same shape.
        data_range: largest possible difference of two values, positive.
        window: width of the window in pixels.
    """
    return float(similarities(np.stack([one, other])[np.newaxis], data_range, window=window)[0, 1])


def similarities(images: Array, data_range: float, *, window: int = WINDOW) -> Array:
    """Mean structural similarity of every two of several series of images.

    Args:
        images: [samples, series, height, width].
        data_range: largest possible difference of two values, positive.
        window: as for `ssim`.

    Returns:
        [series, series], ones on the diagonal; means over windows and samples.
    """
    samples, count, height, width = images.shape
    tall, wide = min(window, height), min(window, width)
    pixels = tall * wide
    scale = pixels / max(1, pixels - 1)
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    total = np.zeros((count, count))
    for series in images:
        mean = _windowed(series, tall, wide)
        spread = scale * (_windowed(series**2, tall, wide) - mean**2)
        for at in range(count):
            # Against all behind it at once.
            both = _windowed(series[at] * series[at:], tall, wide)
            joint = scale * (both - mean[at] * mean[at:])
            light = (2.0 * mean[at] * mean[at:] + c1) / (mean[at] ** 2 + mean[at:] ** 2 + c1)
            form = (2.0 * joint + c2) / (spread[at] + spread[at:] + c2)
            total[at, at:] += (light * form).mean(axis=(1, 2))
    total /= samples
    found = np.triu(total) + np.triu(total, 1).T
    np.fill_diagonal(found, 1.0)
    return found


def _windowed(values: Array, tall: int, wide: int) -> Array:
    """Means over all windows that lie inside, [..., height - tall + 1, width - wide + 1]."""
    sums = np.cumsum(np.cumsum(values, axis=-2), axis=-1)
    sums = np.pad(sums, [(0, 0)] * (values.ndim - 2) + [(1, 0), (1, 0)])
    inside = (
        sums[..., tall:, wide:]
        - sums[..., :-tall, wide:]
        - sums[..., tall:, :-wide]
        + sums[..., :-tall, :-wide]
    )
    return np.asarray(inside / (tall * wide))
