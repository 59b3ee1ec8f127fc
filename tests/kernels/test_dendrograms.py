"""Trees of filters: what joins, at which distance, and what is drawn under the leaves."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy.signal import correlate2d

from onnxcompress.errors import ModelError, UsageError
from onnxcompress.kernels.dendrograms import (
    MOST_DRAWN,
    FilterTree,
    filter_tree,
    spatial_modes,
)
from onnxcompress.kernels.pictures import picture
from onnxcompress.numerics.ssim import ssim


def responses(weight: np.ndarray, images: np.ndarray) -> np.ndarray:
    """[samples, filters, height, width], by SciPy."""
    return np.array(
        [
            [
                sum(correlate2d(x, k, "valid") for x, k in zip(image, kernels, strict=True))
                for kernels in weight
            ]
            for image in images
        ]
    )


def test_equal_filters_join_at_once_and_others_at_their_distance() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.standard_normal((2, 3, 3, 3))
    weight = np.stack([one, other, one])
    seen = responses(weight, generator.standard_normal((4, 3, 20, 20)))
    tree = filter_tree("conv", weight, seen)
    assert set(tree.tree[0, :2]) == {0, 2}
    assert tree.tree[0, 2] == 0
    extent = seen.max() - seen.min()
    apart = np.mean([1 - ssim(image[0], image[1], extent) for image in seen])
    np.testing.assert_allclose(tree.tree[1, 2], apart, rtol=1e-12)
    assert (tree.left(0.0), tree.left(0.99 * apart), tree.left(1.01 * apart)) == (2, 2, 1)


def test_opposite_filters_are_farther_apart_than_strangers() -> None:
    generator = np.random.default_rng(0)
    images = generator.standard_normal((4, 3, 20, 20))
    one, other = generator.standard_normal((2, 3, 3, 3))
    # Without sums a kernel's answers have next to no mean, which SSIM sees as well.
    one, other = (k - k.mean(axis=(1, 2), keepdims=True) for k in (one, other))
    distances = []
    for pair in ([one, -one], [one, other]):
        weight = np.stack(pair)
        distances.append(filter_tree("conv", weight, responses(weight, images)).tree[0, 2])
    assert distances[0] > max(1.0, distances[1])


def test_the_mode_of_kernels_that_are_alike() -> None:
    generator = np.random.default_rng(1)
    kernel = generator.standard_normal((3, 3))
    kernel /= np.linalg.norm(kernel)
    weight = np.multiply.outer(np.array([2.0, -0.5, 1.0]), kernel)[np.newaxis]
    np.testing.assert_allclose(spatial_modes(weight)[0], kernel, atol=1e-12)
    np.testing.assert_allclose(spatial_modes(-weight)[0], -kernel, atol=1e-12)
    nothing = spatial_modes(np.zeros((2, 3, 3, 3)))
    assert np.isfinite(nothing).all()


def test_trees_that_are_too_deep_are_left_out() -> None:
    """Filters that are all equal make a chain; SciPy goes down it by recursion."""
    weight = np.zeros((MOST_DRAWN, 1, 3, 3))
    tree = filter_tree("conv", weight, np.zeros((1, MOST_DRAWN, 8, 8)))
    assert tree.left(0.0) == 1
    assert picture([], {}, [tree]).startswith(b"\x89PNG")
    more = FilterTree("conv", tree.tree, np.zeros((MOST_DRAWN + 1, 3, 3)))
    with pytest.raises(UsageError, match="no 3x3"):
        picture([], {}, [more])


def test_answers_that_are_not_finite() -> None:
    seen = np.zeros((1, 2, 8, 8))
    seen[0, 1, 3, 3] = np.inf
    with pytest.raises(ModelError, match="'conv' answers with numbers that are not finite"):
        filter_tree("conv", np.ones((2, 1, 3, 3)), seen)


def test_a_picture_has_a_row_per_tree() -> None:
    generator = np.random.default_rng(2)
    weight = generator.standard_normal((6, 2, 3, 3))
    tree = filter_tree("conv", weight, generator.standard_normal((2, 6, 9, 9)))
    one, two = (Image.open(io.BytesIO(picture([], {}, [tree] * n))) for n in (1, 2))
    assert one.size[0] == two.size[0]
    assert one.size[1] < two.size[1]
    colours = np.array(one.convert("RGB").resize((64, 64))).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 10
