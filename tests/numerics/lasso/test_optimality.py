"""The group lasso against its optimality conditions and slow solvers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize

from onnxcompress.numerics import group_descent
from onnxcompress.numerics.group_lasso import GroupLasso, lambda_max, solve
from onnxcompress.numerics.group_newton import newton
from onnxcompress.numerics.quadratic import FREE, Quadratic

TIGHT = 5e-10


def test_free_columns_are_minimised_out(lasso: Any) -> None:
    inputs, weight = lasso.reference()
    centred = lasso.layer(inputs - inputs.mean(axis=0), weight)
    ones = np.hstack([np.ones((400, 1)), inputs])
    free = lasso.layer(ones, np.hstack([np.ones((5, 1)), weight]), np.array([FREE, *range(12)]))
    top = lambda_max([centred])
    assert lambda_max([free]) == pytest.approx(top, rel=1e-12)
    one = solve([centred], 0.1 * top, tolerance=TIGHT)
    two = solve([free], 0.1 * top, tolerance=TIGHT)
    np.testing.assert_allclose(two.matrices[0][:, 1:], one.matrices[0], atol=1e-8)
    assert two.objective == pytest.approx(one.objective, rel=1e-9)
    assert lasso.violation([free], two.matrices, 0.1 * top, np.ones(12)) < 1e-8


def test_newtons_method_alone_finds_the_minimum_on_groups_that_stay(lasso: Any) -> None:
    one = lasso.relu_layer(16, width=24, height=5, size=3)
    other = lasso.relu_layer(17, width=8, height=3)
    joint = [one, other]
    penalty = np.random.default_rng(18).uniform(0.005, 0.015, 8) * lambda_max(joint)
    start = [np.ones((5, 24)), np.ones((3, 8))]
    found, steps = newton(joint, penalty, start, 1e-10 * penalty.max())
    assert all(m.any(axis=0).all() for m in found)
    assert lasso.violation(joint, found, 1.0, penalty) <= 1e-9 * penalty.max()
    # Convergence is quadratic; with a wrong curvature it would not be within these few.
    assert steps <= 12


@pytest.mark.parametrize("without_newton", [False, True])
@pytest.mark.parametrize("fraction", [0.6, 0.2, 0.03])
@pytest.mark.parametrize(
    ("height", "size", "dead", "twins"), [(5, 1, 0, 0), (70, 3, 6, 0), (2, 3, 3, 3), (9, 2, 4, 4)]
)
def test_optimality_on_hard_grams(
    lasso: Any,
    monkeypatch: pytest.MonkeyPatch,
    without_newton: bool,
    fraction: float,
    height: int,
    size: int,
    dead: int,
    twins: int,
) -> None:
    if without_newton:
        monkeypatch.setattr(group_descent, "worthwhile", lambda _: False)
    problem = lasso.relu_layer(7, width=60, height=height, size=size, dead=dead, twins=twins)
    groups = 60 // size
    weights = np.random.default_rng(8).uniform(0.5, 2.0, groups)
    ready = GroupLasso([problem], weights)
    found = ready.solve(fraction * ready.lambda_max)
    gap = lasso.violation([problem], found.matrices, found.lam, weights)
    assert gap <= 1.01e-8 * ready.scale
    assert found.kkt == pytest.approx(gap, abs=1e-10 * ready.scale)
    assert not set(found.active) & set(range((60 - dead) // size, groups))


def test_a_joint_problem_of_equal_grams_is_the_stacked_one(lasso: Any) -> None:
    random = np.random.default_rng(9)
    inputs = np.maximum(random.standard_normal((200, 4)) @ random.standard_normal((4, 12)), 0)
    first, second = random.standard_normal((3, 12)), random.standard_normal((5, 12))
    groups = np.arange(12) // 2
    joint = [lasso.layer(inputs, first, groups), lasso.layer(inputs, second, groups)]
    stacked = lasso.layer(inputs, np.vstack([first, second]), groups)
    top = lambda_max([stacked])
    assert lambda_max(joint) == pytest.approx(top, rel=1e-12)
    one = solve([stacked], 0.1 * top, tolerance=TIGHT)
    two = solve(joint, 0.1 * top, tolerance=TIGHT)
    assert two.active == one.active
    assert two.objective == pytest.approx(one.objective, rel=1e-10)
    assert (
        lasso.violation([stacked], [np.vstack(two.matrices)], 0.1 * top, np.ones(6)) <= 2e-9 * top
    )


def test_a_joint_problem_of_different_consumers_against_a_slow_solver(lasso: Any) -> None:
    one = lasso.relu_layer(10, width=12, height=3, size=3)
    small = lasso.relu_layer(11, width=6, height=2)
    # Another order of columns, another size of group, and a group that it does not read.
    two = Quadratic(small.gram, small.cross, small.energy, np.array([3, 0, 1, 3, 0, 1]))
    joint = [one, two]
    lam = 0.15 * lambda_max(joint)
    found = solve(joint, lam, tolerance=TIGHT)
    assert 0 < len(found.active) < 4
    assert lasso.violation(joint, found.matrices, lam, np.ones(4)) <= 1e-8 * lam
    member = [
        np.concatenate([np.tile(p.groups, len(p.cross)) for p in joint]) == g for g in range(4)
    ]

    def smoothed(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parts = [flat[:36].reshape(3, 12), flat[36:].reshape(2, 6)]
        value = sum(0.5 * p.error(m) for p, m in zip(joint, parts, strict=True))
        slope = np.concatenate([p.gradient(m).ravel() for p, m in zip(joint, parts, strict=True)])
        for inside in member:
            norm = np.sqrt((flat[inside] ** 2).sum() + 1e-12)
            value += lam * norm
            slope[inside] += lam * flat[inside] / norm
        return value, slope

    slow = scipy.optimize.minimize(
        smoothed, np.full(48, 0.1), jac=True, method="L-BFGS-B",
        options={"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-9},
    )  # fmt: skip
    # Smoothing adds at most 1e-6 lambda a group.
    assert slow.fun == pytest.approx(found.objective, abs=4e-6 * lam + 1e-7 * found.objective)
    assert slow.fun >= found.objective * (1 - 1e-9)
