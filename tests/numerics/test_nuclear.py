from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.errors import OnnxCompressError
from onnxcompress.numerics.nuclear import lambda_max, solve, threshold
from onnxcompress.numerics.quadratic import Quadratic


def samples(seed: int, *, width: int = 10, height: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    inputs = np.maximum(
        random.standard_normal((200, 6)) @ random.standard_normal((6, width))
        + 0.3 * random.standard_normal((200, width)),
        0,
    )
    weight = random.standard_normal((height, width)) * 0.7 ** np.arange(height)[:, None]
    return inputs, inputs @ weight.T + 0.3 * random.standard_normal((200, height))


def moments(inputs: np.ndarray, outputs: np.ndarray) -> Quadratic:
    energy = float((outputs**2).sum() / 200)
    groups = np.arange(inputs.shape[1])
    return Quadratic(inputs.T @ inputs / 200, outputs.T @ inputs / 200, energy, groups)


@pytest.mark.parametrize("fraction", [0.5, 0.1, 0.01])
@pytest.mark.parametrize(("width", "height"), [(10, 6), (5, 12), (8, 8)])
def test_the_optimality_conditions(width: int, height: int, fraction: float) -> None:
    problem = moments(*samples(0, width=width, height=height))
    top = lambda_max(problem)
    assert top == pytest.approx(np.linalg.svd(problem.cross, compute_uv=False)[0], rel=1e-12)
    lam = fraction * top
    found = solve(problem, lam)
    left, values, right = np.linalg.svd(found.matrix, full_matrices=False)
    rank = int((values > 1e-9 * values[0]).sum())
    assert found.rank == rank
    pull = -problem.gradient(found.matrix) / lam
    # In the row and column space of M the gradient balances the penalty; beside it, it is less.
    u, v = left[:, :rank], right[:rank]
    np.testing.assert_allclose(u.T @ pull, v, rtol=0, atol=1e-8 / fraction)
    np.testing.assert_allclose(pull @ v.T, u, rtol=0, atol=1e-8 / fraction)
    assert np.linalg.norm(pull - u @ v, 2) <= 1 + 1e-8 / fraction
    value = 0.5 * problem.error(found.matrix) + lam * values.sum()
    assert found.objective == pytest.approx(value, rel=1e-10)
    assert found.kkt <= 1e-9 * top


def test_the_rank_falls_to_nothing_as_lambda_grows() -> None:
    problem = moments(*samples(1))
    top = lambda_max(problem)
    ranks = [solve(problem, f * top).rank for f in (1e-3, 0.1, 0.5, 0.999, 1.0001)]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] == 6
    assert ranks[-2:] == [1, 0]
    nothing = solve(problem, 1.0001 * top)
    np.testing.assert_array_equal(nothing.matrix, 0)
    assert nothing.objective == pytest.approx(0.5 * problem.energy)


def test_equal_uncorrelated_inputs_have_a_closed_form() -> None:
    weight = np.random.default_rng(2).standard_normal((5, 7))
    problem = Quadratic(2.0 * np.eye(7), 2.0 * weight, 2.0 * float((weight**2).sum()), np.arange(7))
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    expected = (left * np.maximum(values - 1.5 / 2.0, 0)) @ right
    np.testing.assert_allclose(solve(problem, 1.5).matrix, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_singular_values_are_lowered(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(3).standard_normal(shape)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    amount = float(values[1:3].mean())
    lowered, kept = threshold(matrix, amount)
    expected = (left * np.maximum(values - amount, 0)) @ right
    np.testing.assert_allclose(lowered, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(np.sort(kept)[::-1], values[:2] - amount, rtol=0, atol=1e-14)


def test_a_start_changes_nothing_but_the_effort() -> None:
    problem = moments(*samples(4))
    lam = 0.05 * lambda_max(problem)
    cold = solve(problem, lam)
    warm = solve(problem, lam, start=cold.matrix)
    assert warm.iterations < cold.iterations
    np.testing.assert_allclose(warm.matrix, cold.matrix, rtol=0, atol=1e-6)


def test_duplicated_and_dead_inputs() -> None:
    inputs, outputs = samples(9)
    inputs = np.hstack([inputs, inputs[:, :2], np.zeros((200, 1))])
    problem = moments(inputs, outputs)
    found = solve(problem, 0.1 * lambda_max(problem))
    np.testing.assert_allclose(found.matrix[:, 12], 0, atol=1e-12)


def test_what_makes_no_sense_is_refused() -> None:
    problem = moments(*samples(10))
    with pytest.raises(ValueError, match="lambda is 0"):
        solve(problem, 0.0)
    with pytest.raises(OnnxCompressError, match="after 3 iterations; raise"):
        solve(problem, 0.01 * lambda_max(problem), max_iterations=3)
