"""The group lasso against values pinned by the seed, and its closed forms and bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.numerics.accelerated import iterates, largest_eigenvalue
from onnxcompress.numerics.group_descent import group_threshold
from onnxcompress.numerics.group_lasso import debias, lambda_max, solve
from onnxcompress.numerics.quadratic import FREE, Quadratic

TIGHT = 5e-10


@pytest.mark.parametrize(
    ("fraction", "objective", "active"),
    [
        (1.0001, 32.724691881, 0),
        (0.5, 28.326994167, 2),
        (0.2, 18.957987444, 6),
        (0.1, 12.407699281, 7),
        (0.05, 7.949188637, 9),
        (0.01, 2.311068644, 12),
    ],
)
def test_the_pinned_objectives(lasso: Any, fraction: float, objective: float, active: int) -> None:
    problem = lasso.layer(*lasso.reference())
    lam = fraction * lambda_max([problem])
    found = solve([problem], lam, tolerance=TIGHT)
    assert found.objective == pytest.approx(objective, abs=2e-9 + 1e-9 * objective)
    assert len(found.active) == active
    assert found.kkt <= 1e-8
    assert lasso.violation([problem], found.matrices, lam, np.ones(12)) <= 1e-8
    (matrix,) = found.matrices
    norms = np.linalg.norm(matrix, axis=0)
    value = 0.5 * problem.error(matrix) + lam * norms.sum()
    assert found.objective == pytest.approx(value, rel=1e-12)
    np.testing.assert_array_equal(np.flatnonzero(norms), found.active)
    np.testing.assert_allclose(found.norms, norms, rtol=1e-14)
    if fraction > 1:
        np.testing.assert_array_equal(matrix, 0)


def test_the_pinned_scales(lasso: Any) -> None:
    problem = lasso.layer(*lasso.reference())
    assert lambda_max([problem]) == pytest.approx(11.531018219, abs=1e-9)
    assert largest_eigenvalue(problem.gram) == pytest.approx(8.451337054, abs=1e-9)
    assert problem.energy == pytest.approx(65.449384, abs=1e-6)


def test_without_a_penalty_the_weight_itself_comes_back(lasso: Any) -> None:
    inputs, weight = lasso.reference()
    (matrix,) = solve([lasso.layer(inputs, weight)], 0.0).matrices
    np.testing.assert_allclose(matrix, weight, rtol=0, atol=2e-10)


def test_the_pinned_errors_at_a_tenth(lasso: Any) -> None:
    inputs, weight = lasso.reference()
    problem = lasso.layer(inputs, weight)
    found = solve([problem], 0.1 * lambda_max([problem]), tolerance=TIGHT)
    assert found.active == (0, 2, 3, 4, 5, 9, 11)
    kept, gone = list(found.active), [1, 6, 7, 8, 10]
    assert problem.error(found.matrices[0]) == pytest.approx(8.949656, abs=1e-6)
    debiased = problem.error(debias(problem, kept))
    assert debiased == pytest.approx(4.067194, abs=1e-6)
    gram = problem.gram
    schur = gram[np.ix_(gone, gone)] - gram[np.ix_(gone, kept)] @ np.linalg.solve(
        gram[np.ix_(kept, kept)], gram[np.ix_(kept, gone)]
    )
    assert debiased == pytest.approx(
        np.trace(weight[:, gone] @ schur @ weight[:, gone].T), rel=1e-10
    )
    masked = np.where(np.isin(np.arange(12), kept), weight, 0)
    assert problem.error(masked) == pytest.approx(19.698491, abs=1e-6)
    with_bias = lasso.layer(inputs - inputs.mean(axis=0), weight)
    assert with_bias.error(debias(with_bias, kept)) == pytest.approx(3.876148, abs=1e-6)
    # The bias is the coefficient of a column of ones that is free.
    ones = np.hstack([inputs, np.ones((400, 1))])
    padded = np.hstack([weight, np.zeros((5, 1))])
    free = lasso.layer(ones, padded, np.array([*range(12), FREE]))
    assert free.error(debias(free, kept)) == pytest.approx(3.876148, abs=1e-6)


@pytest.mark.parametrize(("size", "lam"), [(1, 3.0), (3, 8.0)])
def test_equal_uncorrelated_inputs_have_a_closed_form(size: int, lam: float) -> None:
    weight = np.random.default_rng(1).standard_normal((4, 12))
    scale = 2.5
    problem = Quadratic(
        scale * np.eye(12), scale * weight, scale * float((weight**2).sum()), np.arange(12) // size
    )
    norms = np.sqrt((weight.reshape(4, -1, size) ** 2).sum(axis=(0, 2)))
    shrunk = weight * np.repeat(np.maximum(0, 1 - lam / scale / norms), size)
    assert 0 < (shrunk == 0).sum() < shrunk.size
    (matrix,) = solve([problem], lam, tolerance=1e-14).matrices
    np.testing.assert_allclose(matrix, shrunk, rtol=0, atol=4e-15)
    (prox,) = group_threshold([weight], [problem], np.full(12 // size, lam / scale))
    np.testing.assert_allclose(prox, shrunk, rtol=0, atol=1e-15)


def test_the_rate_of_the_accelerated_gradient_method(lasso: Any) -> None:
    problem = lasso.layer(*lasso.reference())
    lam = 0.05 * lambda_max([problem])
    best = solve([problem], lam, tolerance=1e-12)
    bound = 2 * largest_eigenvalue(problem.gram) * np.sum(best.matrices[0] ** 2)
    for state in iterates(
        [problem],
        lambda points, step: group_threshold(points, [problem], np.full(12, step * lam)),
        [np.zeros((5, 12))],
    ):
        (matrix,) = state.matrices
        value = 0.5 * problem.error(matrix) + lam * np.linalg.norm(matrix, axis=0).sum()
        assert value - best.objective <= bound / state.number**2 + 1e-10
        np.testing.assert_allclose(state.gradients[0], problem.gradient(matrix), atol=1e-12)
        active = np.linalg.norm(matrix, axis=0) > 0
        pull = lam * matrix[:, active] / np.linalg.norm(matrix[:, active], axis=0)
        np.testing.assert_allclose(
            state.residuals[0][:, active], state.gradients[0][:, active] + pull, atol=1e-11
        )
        if state.number == 200:
            break
    assert value - best.objective < 1e-8
