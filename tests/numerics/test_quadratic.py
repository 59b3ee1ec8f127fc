from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.numerics.cholesky import Factored
from onnxcompress.numerics.quadratic import FREE, Quadratic, debias, group_count


def sampled(
    seed: int, *, count: int = 60, width: int = 8, height: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((count, width)) @ random.standard_normal((width, width))
    return inputs, random.standard_normal((count, height)) + inputs[:, :height]


def moments(inputs: np.ndarray, outputs: np.ndarray, groups: np.ndarray) -> Quadratic:
    count = len(inputs)
    return Quadratic(
        inputs.T @ inputs / count,
        outputs.T @ inputs / count,
        float((outputs**2).sum() / count),
        groups,
    )


def lstsq(inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(inputs, outputs, rcond=1e-10)[0].T


def mean_error(inputs: np.ndarray, outputs: np.ndarray, matrix: np.ndarray) -> float:
    return float(((outputs - inputs @ matrix.T) ** 2).sum() / len(inputs))


def test_error_and_gradient_are_those_of_the_samples() -> None:
    inputs, outputs = sampled(0)
    problem = moments(inputs, outputs, np.arange(8))
    matrix = np.random.default_rng(1).standard_normal((3, 8))
    assert problem.error(matrix) == pytest.approx(mean_error(inputs, outputs, matrix), rel=1e-12)
    slope = (inputs @ matrix.T - outputs).T @ inputs / len(inputs)
    np.testing.assert_allclose(
        problem.gradient(matrix), slope, rtol=0, atol=1e-12 * abs(slope).max()
    )


def test_rows_are_weighted_by_folding_a_factor_in() -> None:
    inputs, outputs = sampled(2)
    random = np.random.default_rng(3)
    root = np.tril(random.standard_normal((3, 3))) + 3 * np.eye(3)
    matrix = random.standard_normal((3, 8))
    residual = outputs - inputs @ matrix.T
    expected = np.einsum("ni,ij,nj->", residual, root @ root.T, residual) / len(inputs)
    folded = moments(inputs, outputs @ root, np.arange(8))
    assert folded.error(root.T @ matrix) == pytest.approx(expected, rel=1e-12)


def test_debiasing_is_least_squares_on_the_kept_groups_and_the_free_columns() -> None:
    inputs, outputs = sampled(4)
    groups = np.array([0, 0, 1, 1, FREE, 2, 2, 3])
    problem = moments(inputs, outputs, groups)
    matrix = debias(problem, (0, 3))
    columns = [0, 1, 4, 7]
    np.testing.assert_allclose(matrix[:, columns], lstsq(inputs[:, columns], outputs), atol=1e-12)
    np.testing.assert_array_equal(matrix[:, [2, 3, 5, 6]], 0)
    assert group_count([problem]) == 4


def test_debiasing_with_a_ridge_is_relative_to_each_variance() -> None:
    inputs, outputs = sampled(5)
    problem = moments(inputs, outputs, np.arange(8))
    lifted = problem.gram + 0.3 * np.diag(problem.gram.diagonal())
    expected = np.linalg.solve(lifted, problem.cross.T).T
    np.testing.assert_allclose(debias(problem, range(8), 0.3), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e5])
def test_dead_and_duplicated_columns_cost_nothing(unit: float) -> None:
    inputs, outputs = sampled(6, count=200)
    inputs = np.hstack([inputs, inputs[:, :3], np.zeros((200, 2)), inputs[:, :2] * 7.0]) * unit
    problem = moments(inputs, outputs, np.arange(inputs.shape[1]))
    matrix = debias(problem, range(inputs.shape[1]))
    best = mean_error(inputs, outputs, lstsq(inputs, outputs))
    assert mean_error(inputs, outputs, matrix) == pytest.approx(best, rel=1e-9)
    np.testing.assert_array_equal(matrix[:, 11:13], 0)
    assert np.abs(matrix).max() * unit < 100
    # What twins do together is as precise as without them: the tiny ridge has been refined away.
    together = matrix[:, :8].copy()
    together[:, :3] += matrix[:, 8:11]
    together[:, :2] += 7.0 * matrix[:, 13:15]
    np.testing.assert_allclose(
        together * unit, lstsq(inputs[:, :8] / unit, outputs), rtol=0, atol=1e-11
    )


def test_no_column_at_all_fits_nothing() -> None:
    inputs, outputs = sampled(7)
    problem = moments(inputs, outputs, np.arange(8))
    np.testing.assert_array_equal(debias(problem, ()), np.zeros((3, 8)))
    assert Factored(np.zeros((0, 0))).inverse().shape == (0, 0)


def test_the_inverse_of_a_factored_matrix() -> None:
    inputs, _ = sampled(8)
    gram = inputs.T @ inputs
    gram[2], gram[:, 2] = 0.0, 0.0
    others = [0, 1, 3, 4, 5, 6, 7]
    inverse = Factored(gram).inverse()
    expected = np.linalg.inv(gram[np.ix_(others, others)])
    np.testing.assert_allclose(
        inverse[np.ix_(others, others)], expected, rtol=0, atol=1e-10 * abs(expected).max()
    )
    np.testing.assert_array_equal(inverse[2], 0)


def test_what_is_no_gram_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="not positive semi-definite"):
        Factored(np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(ValueError, match="ridge is -1"):
        Factored(np.eye(2), -1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gram": np.eye(3)}, "do not fit"),
        ({"cross": np.ones((2, 3))}, "do not fit"),
        ({"cross": np.full((2, 2), np.nan)}, "a NaN or an infinity"),
        ({"energy": -1.0}, "energy is -1"),
        ({"groups": np.array([0, -2])}, "groups holds -2"),
    ],
)
def test_moments_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    parts = {"gram": np.eye(2), "cross": np.ones((2, 2)), "energy": 1.0, "groups": np.arange(2)}
    Quadratic(**parts)
    with pytest.raises(ValueError, match=message):
        Quadratic(**(parts | changes))


def test_no_problem_is_refused() -> None:
    with pytest.raises(ValueError, match="no problem"):
        group_count([])
