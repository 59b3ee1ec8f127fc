from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.numerics.ssim import similarities, ssim


def slow(one: np.ndarray, other: np.ndarray, data_range: float, window: int) -> float:
    """Window by window, by NumPy's own statistics."""
    tall, wide = min(window, one.shape[0]), min(window, one.shape[1])
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = []
    for top in range(one.shape[0] - tall + 1):
        for left in range(one.shape[1] - wide + 1):
            x = one[top : top + tall, left : left + wide].ravel()
            y = other[top : top + tall, left : left + wide].ravel()
            (vx, vxy), (_, vy) = np.cov(x, y)
            light = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
            found.append(light * (2 * vxy + c2) / (vx + vy + c2))
    return float(np.mean(found))


@pytest.mark.parametrize("shape", [(12, 9), (7, 7), (4, 11), (3, 5)])
def test_ssim_is_the_slow_one(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    one = generator.standard_normal(shape)
    other = one + 0.5 * generator.standard_normal(shape) + 0.2
    assert ssim(one, other, 4.0) == pytest.approx(slow(one, other, 4.0, 7), rel=1e-10)
    assert ssim(one, other, 4.0) == pytest.approx(ssim(other, one, 4.0), rel=1e-12)
    assert ssim(one, one, 4.0) == 1.0


def test_similarities_are_means_over_samples() -> None:
    images = np.random.default_rng(1).uniform(size=(3, 4, 10, 8))
    table = similarities(images, 1.0)
    for i in range(4):
        for j in range(4):
            each = [slow(images[s, i], images[s, j], 1.0, 7) for s in range(3)]
            assert table[i, j] == pytest.approx(np.mean(each), rel=1e-9)
    np.testing.assert_array_equal(table, table.T)


def test_ssim_is_what_scikit_image_says() -> None:
    """scikit-image 0.26.0, structural_similarity(one, other, data_range=1.0)."""
    one, other = np.random.default_rng(2).uniform(size=(2, 20, 15))
    assert ssim(one, other, 1.0) == pytest.approx(-0.09310034365967144, rel=1e-12)
