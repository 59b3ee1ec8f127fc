from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.errors import OnnxCompressError
from onnxcompress.numerics.nuclear import lambda_max, reduced_rank, solve, threshold
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


@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize(("width", "height"), [(10, 6), (6, 12)])
def test_the_hard_version_is_the_best_of_its_rank(width: int, height: int, rank: int) -> None:
    inputs, outputs = samples(5, width=width, height=height)
    problem = moments(inputs, outputs)
    left, right = reduced_rank(problem, rank)
    assert left.shape == (height, rank)
    assert right.shape == (rank, width)
    np.testing.assert_allclose(left.T @ left, np.eye(rank), rtol=0, atol=1e-13)
    # The fitted outputs' best approximation, from the samples themselves.
    fit = np.linalg.lstsq(inputs, outputs, rcond=None)[0]
    u, values, v = np.linalg.svd(inputs @ fit, full_matrices=False)
    best = (u[:, :rank] * values[:rank]) @ v[:rank]
    expected = float(((outputs - best) ** 2).sum() / 200)
    assert problem.error(left @ right) == pytest.approx(expected, rel=1e-10)


def test_the_hard_version_against_alternating_least_squares() -> None:
    problem = moments(*samples(6))
    left, right = reduced_rank(problem, 2)
    best = np.inf
    for seed in range(5):
        p = np.random.default_rng(seed).standard_normal((6, 2))
        for _ in range(500):
            q = np.linalg.solve(p.T @ p, np.linalg.solve(problem.gram, problem.cross.T @ p).T)
            p = np.linalg.solve(q @ problem.gram @ q.T, q @ problem.cross.T).T
        best = min(best, problem.error(p @ q))
    assert problem.error(left @ right) == pytest.approx(best, rel=1e-8)


def test_full_rank_is_least_squares_and_a_weight_is_reproduced() -> None:
    inputs, _ = samples(7)
    weight = np.random.default_rng(8).standard_normal((6, 10))
    left, right = reduced_rank(moments(inputs, inputs @ weight.T), 6)
    np.testing.assert_allclose(left @ right, weight, rtol=0, atol=1e-10)
    left, right = reduced_rank(moments(inputs, inputs @ weight.T), 3)
    np.testing.assert_allclose(left @ right, left @ left.T @ weight, rtol=0, atol=1e-10)
    extremes = left[np.abs(left).argmax(axis=0), np.arange(3)]
    assert (extremes > 0).all()


def test_soft_and_hard_on_duplicated_and_dead_inputs() -> None:
    inputs, outputs = samples(9)
    inputs = np.hstack([inputs, inputs[:, :2], np.zeros((200, 1))])
    problem, plain = moments(inputs, outputs), moments(inputs[:, :10], outputs)
    hard = [p.error(np.matmul(*reduced_rank(p, 2))) for p in (problem, plain)]
    assert hard[0] == pytest.approx(hard[1], rel=1e-9)
    found = solve(problem, 0.1 * lambda_max(problem))
    np.testing.assert_allclose(found.matrix[:, 12], 0, atol=1e-12)


def test_what_makes_no_sense_is_refused() -> None:
    problem = moments(*samples(10))
    with pytest.raises(ValueError, match="lambda is 0"):
        solve(problem, 0.0)
    with pytest.raises(ValueError, match="rank is 7; it takes 1 to 6"):
        reduced_rank(problem, 7)
    with pytest.raises(OnnxCompressError, match="after 3 iterations; raise"):
        solve(problem, 0.01 * lambda_max(problem), max_iterations=3)
