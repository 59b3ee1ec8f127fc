"""Covariances from few rows."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.numerics.shrinkage import ENOUGH, intensity, shrunk

Array = np.ndarray


def truth(size: int) -> Array:
    """Features of very different size that hang together somewhat."""
    random = np.random.default_rng(1)
    mix = random.standard_normal((size, 3)) @ random.standard_normal((3, size)) / 2
    scale = np.diag(np.geomspace(1.0, 30.0, size))
    return np.asarray(scale @ (mix @ mix.T / size + np.eye(size)) @ scale)


def sample(size: int, rows: int) -> Array:
    x = np.random.default_rng(2).multivariate_normal(np.zeros(size), truth(size), rows)
    return np.asarray(np.cov(x.T, bias=True))


def test_enough_rows_are_believed() -> None:
    found, enough = sample(20, 30), int(20 * ENOUGH)
    assert shrunk(found, enough) is found
    assert shrunk(found, enough - 1) is not found


@pytest.mark.parametrize("rows", [5, 10, 30])
def test_nearer_to_the_truth_than_what_was_seen(rows: int) -> None:
    """In the features' own units; the variances stay."""
    seen, real = sample(40, rows), truth(40)
    found = shrunk(seen, rows)
    np.testing.assert_array_equal(np.diag(found), np.diag(seen))
    scale = np.sqrt(np.outer(np.diag(real), np.diag(real)))
    assert np.linalg.norm((found - real) / scale) < 0.85 * np.linalg.norm((seen - real) / scale)
    assert np.linalg.eigvalsh(found)[0] > 0.0 > np.linalg.eigvalsh(seen)[0] - 1e-9


def test_a_feature_does_not_follow_from_others_just_because_rows_are_few() -> None:
    """Of 40 independent features in 10 rows each one seems to; 9 rows in 10 of that is chance."""
    x = np.random.default_rng(3).standard_normal((10, 40))
    seen = np.cov(x.T, bias=True)

    def unexplained(matrix: Array) -> float:
        rest = matrix[0, 0] - matrix[0, 1:] @ np.linalg.pinv(matrix[1:, 1:]) @ matrix[1:, 0]
        return float(rest / matrix[0, 0])

    assert unexplained(seen) < 1e-9
    assert unexplained(shrunk(seen, 10)) > 0.8


def test_intensity() -> None:
    """By the formula, on the correlations; falls with the rows; units do not count."""
    seen = sample(12, 30)
    scale = np.sqrt(np.diag(seen))
    part = seen / np.outer(scale, scale)
    squares = (part * part).sum()
    expected = ((1 - 2 / 12) * squares + 144) / ((31 - 2 / 12) * (squares - 12))
    assert intensity(seen, 30) == pytest.approx(expected, rel=1e-12)
    units = np.diag(np.geomspace(1e-3, 1e3, 12))
    assert intensity(units @ seen @ units, 30) == pytest.approx(expected, rel=1e-9)
    assert intensity(seen, 20) > intensity(seen, 30) > intensity(seen, 300)
    assert intensity(np.eye(5), 10) == 1.0


def test_features_that_do_not_vary() -> None:
    seen = np.zeros((4, 4))
    assert intensity(seen, 5) == 0.0
    seen[:2, :2] = [[2.0, 1.9], [1.9, 2.0]]
    found = shrunk(seen, 5)
    assert np.count_nonzero(found[2:]) == 0
    assert 0.0 < found[0, 1] < 1.9
