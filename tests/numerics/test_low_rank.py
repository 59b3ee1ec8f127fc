from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.low_rank import (
    check_rank,
    column_signs,
    finite_array,
    relative_error,
    truncated_svd,
)


def best_approximation(matrix: np.ndarray, rank: int) -> np.ndarray:
    """Projection onto the leading eigenvectors of the Gram matrix."""
    vectors = np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :rank]
    return vectors @ (vectors.T @ matrix)


@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (5, 40), (40, 5)])
def test_it_is_the_best_approximation(shape: tuple[int, int], rank: int) -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal(shape) * 0.6 ** np.arange(shape[1])
    result = truncated_svd(matrix, rank)
    expected = best_approximation(matrix, rank)
    scale = np.linalg.norm(matrix, 2)
    assert result.left.shape == (shape[0], rank)
    assert result.right.shape == (rank, shape[1])
    # The oracle's subspace is good to eps over the gap of the squared singular values.
    np.testing.assert_allclose(result.reconstruct(), expected, rtol=0, atol=1e-10 * scale)
    np.testing.assert_array_equal(result.reconstruct(), result.left @ result.right)
    lost = np.linalg.norm(matrix - result.left @ result.right) / np.linalg.norm(matrix)
    assert result.relative_error == pytest.approx(lost, rel=1e-12, abs=1e-15)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 10**6), data=st.data()
)
def test_the_laws_of_the_two_factors(
    rows: int, columns: int, seed: int, data: st.DataObject
) -> None:
    matrix = np.random.default_rng(seed).standard_normal((rows, columns))
    rank = data.draw(st.integers(1, min(rows, columns)))
    result = truncated_svd(matrix, rank)
    values = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(result.left.T @ result.left, np.eye(rank), rtol=0, atol=1e-14)
    # Singular values, and only they, are in the right factor.
    np.testing.assert_allclose(
        result.right @ result.right.T, np.diag(values[:rank] ** 2), rtol=0, atol=1e-13 * values[0]
    )
    extremes = result.left[np.argmax(np.abs(result.left), axis=0), np.arange(rank)]
    assert (extremes > 0).all()
    expected = math.sqrt(np.sum(values[rank:] ** 2) / np.sum(values**2))
    assert result.relative_error == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (1, 4), (4, 1)])
def test_full_rank_reproduces_the_matrix(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(1).standard_normal(shape)
    result = truncated_svd(matrix, min(shape))
    np.testing.assert_allclose(result.reconstruct(), matrix, rtol=0, atol=1e-14)
    assert result.relative_error < 2e-15


def test_the_signs_of_lapack_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(2).standard_normal((6, 9))
    first = truncated_svd(matrix, 4)
    svd = scipy.linalg.svd

    def flipped(source, **options):
        left, values, right = svd(source, **options)
        signs = (-1.0) ** np.arange(values.size)
        return left * signs, values, signs[:, None] * right

    monkeypatch.setattr(scipy.linalg, "svd", flipped)
    second = truncated_svd(matrix, 4)
    np.testing.assert_array_equal(first.left, second.left)
    np.testing.assert_array_equal(first.right, second.right)


def test_column_signs() -> None:
    factor = np.array([[0.5, -0.9, 0.7, -0.7, 0.0], [-0.8, 0.1, -0.7 * (1 + 1e-12), 0.7, 0.0]])
    np.testing.assert_array_equal(column_signs(factor), [-1, -1, 1, -1, 1])
    assert column_signs(np.zeros((3, 0))).shape == (0,)


def test_relative_error() -> None:
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 1.0])) == pytest.approx(0.6)
    assert relative_error(np.zeros(2), np.zeros(2)) == 0


def test_a_zero_matrix_has_no_error() -> None:
    result = truncated_svd(np.zeros((4, 3)), 2)
    np.testing.assert_array_equal(result.reconstruct(), np.zeros((4, 3)))
    np.testing.assert_allclose(result.left.T @ result.left, np.eye(2), rtol=0, atol=1e-15)
    assert result.relative_error == 0


def test_single_precision_is_decomposed_in_double() -> None:
    matrix = np.random.default_rng(3).standard_normal((6, 4)).astype(np.float32)
    result = truncated_svd(matrix, 4)
    assert result.left.dtype == result.right.dtype == np.float64
    assert result.relative_error < 2e-15


@pytest.mark.parametrize("rank", [-1, 0, 4])
def test_ranks_out_of_range_are_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank is {rank}; it takes 1 to 3"):
        truncated_svd(np.ones((3, 5)), rank)
    with pytest.raises(ValueError, match="depth is"):
        check_rank(rank, full=3, name="depth")


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (0, 3)])
def test_arrays_that_are_not_matrices_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        truncated_svd(np.ones(shape), 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, np.nan]], "weight holds a NaN or an infinity"),
        ([[1.0, -np.inf]], "weight holds a NaN or an infinity"),
        ([[1.0, 2j]], "weight is complex"),
        ([1.0], "weight has shape"),
    ],
)
def test_what_cannot_be_decomposed_is_refused(values: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finite_array(values, name="weight", least_axes=2)
