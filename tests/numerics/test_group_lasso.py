"""The group lasso against pinned values, its optimality conditions and slow solvers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize

from onnxcompress.errors import OnnxCompressError
from onnxcompress.numerics import group_descent
from onnxcompress.numerics.accelerated import iterates, largest_eigenvalue
from onnxcompress.numerics.group_descent import group_threshold
from onnxcompress.numerics.group_lasso import GroupLasso, debias, lambda_max, solve
from onnxcompress.numerics.group_newton import newton
from onnxcompress.numerics.group_path import path
from onnxcompress.numerics.quadratic import FREE, Quadratic

TIGHT = 5e-10


def reference() -> tuple[np.ndarray, np.ndarray]:
    """The toy layer whose numbers are pinned: inputs [400, 12] and weight [5, 12]."""
    random = np.random.RandomState(0)
    linear = random.randn(400, 4) @ random.randn(4, 12) + 0.3 * random.randn(400, 12)
    return np.maximum(linear, 0), random.randn(5, 12)


def layer(inputs: np.ndarray, weight: np.ndarray, groups: np.ndarray | None = None) -> Quadratic:
    gram = inputs.T @ inputs / len(inputs)
    energy = float(np.trace(weight @ gram @ weight.T))
    if groups is None:
        groups = np.arange(inputs.shape[1])
    return Quadratic(gram, weight @ gram, energy, groups)


def relu_layer(
    seed: int, *, width: int, height: int, size: int = 1, dead: int = 0, twins: int = 0
) -> Quadratic:
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((500, width // 3)) @ random.standard_normal((width // 3, width))
    inputs = np.maximum(inputs + 0.3 * random.standard_normal(inputs.shape), 0)
    inputs[:, width - dead :] = 0
    inputs[:, :twins] = inputs[:, twins : 2 * twins]
    return layer(inputs, random.standard_normal((height, width)), np.arange(width) // size)


def violation(problems: list[Quadratic], matrices, lam: float, weights: np.ndarray) -> float:
    """The optimality conditions, written out group by group."""
    worst = 0.0
    for group, weight in enumerate(weights):
        blocks, slopes = [], []
        for problem, matrix in zip(problems, matrices, strict=True):
            columns = np.flatnonzero(problem.groups == group)
            blocks.append(matrix[:, columns].ravel())
            slopes.append((matrix @ problem.gram - problem.cross)[:, columns].ravel())
        block, slope = np.concatenate(blocks), np.concatenate(slopes)
        if block.any():
            gap = np.linalg.norm(slope + lam * weight * block / np.linalg.norm(block))
        else:
            gap = max(np.linalg.norm(slope) - lam * weight, 0.0)
        worst = max(worst, float(gap))
    for problem, matrix in zip(problems, matrices, strict=True):
        slope = (matrix @ problem.gram - problem.cross)[:, problem.groups == FREE]
        worst = max(worst, float(np.abs(slope).max(initial=0.0)))
    return worst


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
def test_the_pinned_objectives(fraction: float, objective: float, active: int) -> None:
    problem = layer(*reference())
    lam = fraction * lambda_max([problem])
    found = solve([problem], lam, tolerance=TIGHT)
    assert found.objective == pytest.approx(objective, abs=2e-9 + 1e-9 * objective)
    assert len(found.active) == active
    assert found.kkt <= 1e-8
    assert violation([problem], found.matrices, lam, np.ones(12)) <= 1e-8
    (matrix,) = found.matrices
    norms = np.linalg.norm(matrix, axis=0)
    value = 0.5 * problem.error(matrix) + lam * norms.sum()
    assert found.objective == pytest.approx(value, rel=1e-12)
    np.testing.assert_array_equal(np.flatnonzero(norms), found.active)
    np.testing.assert_allclose(found.norms, norms, rtol=1e-14)
    if fraction > 1:
        np.testing.assert_array_equal(matrix, 0)


def test_the_pinned_scales() -> None:
    problem = layer(*reference())
    assert lambda_max([problem]) == pytest.approx(11.531018219, abs=1e-9)
    assert largest_eigenvalue(problem.gram) == pytest.approx(8.451337054, abs=1e-9)
    assert problem.energy == pytest.approx(65.449384, abs=1e-6)


def test_without_a_penalty_the_weight_itself_comes_back() -> None:
    inputs, weight = reference()
    (matrix,) = solve([layer(inputs, weight)], 0.0).matrices
    np.testing.assert_allclose(matrix, weight, rtol=0, atol=2e-10)


def test_the_pinned_errors_at_a_tenth() -> None:
    inputs, weight = reference()
    problem = layer(inputs, weight)
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
    with_bias = layer(inputs - inputs.mean(axis=0), weight)
    assert with_bias.error(debias(with_bias, kept)) == pytest.approx(3.876148, abs=1e-6)
    # The bias is the coefficient of a column of ones that is free.
    ones = np.hstack([inputs, np.ones((400, 1))])
    padded = np.hstack([weight, np.zeros((5, 1))])
    free = layer(ones, padded, np.array([*range(12), FREE]))
    assert free.error(debias(free, kept)) == pytest.approx(3.876148, abs=1e-6)


def test_free_columns_are_minimised_out() -> None:
    inputs, weight = reference()
    centred = layer(inputs - inputs.mean(axis=0), weight)
    ones = np.hstack([np.ones((400, 1)), inputs])
    free = layer(ones, np.hstack([np.ones((5, 1)), weight]), np.array([FREE, *range(12)]))
    top = lambda_max([centred])
    assert lambda_max([free]) == pytest.approx(top, rel=1e-12)
    one = solve([centred], 0.1 * top, tolerance=TIGHT)
    two = solve([free], 0.1 * top, tolerance=TIGHT)
    np.testing.assert_allclose(two.matrices[0][:, 1:], one.matrices[0], atol=1e-8)
    assert two.objective == pytest.approx(one.objective, rel=1e-9)
    assert violation([free], two.matrices, 0.1 * top, np.ones(12)) < 1e-8


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


def test_the_rate_of_the_accelerated_gradient_method() -> None:
    problem = layer(*reference())
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


def test_newtons_method_alone_finds_the_minimum_on_groups_that_stay() -> None:
    one = relu_layer(16, width=24, height=5, size=3)
    other = relu_layer(17, width=8, height=3)
    joint = [one, other]
    penalty = np.random.default_rng(18).uniform(0.005, 0.015, 8) * lambda_max(joint)
    start = [np.ones((5, 24)), np.ones((3, 8))]
    found, steps = newton(joint, penalty, start, 1e-10 * penalty.max())
    assert all(m.any(axis=0).all() for m in found)
    assert violation(joint, found, 1.0, penalty) <= 1e-9 * penalty.max()
    # Convergence is quadratic; with a wrong curvature it would not be within these few.
    assert steps <= 12


@pytest.mark.parametrize("without_newton", [False, True])
@pytest.mark.parametrize("fraction", [0.6, 0.2, 0.03])
@pytest.mark.parametrize(
    ("height", "size", "dead", "twins"), [(5, 1, 0, 0), (70, 3, 6, 0), (2, 3, 3, 3), (9, 2, 4, 4)]
)
def test_optimality_on_hard_grams(
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
    problem = relu_layer(7, width=60, height=height, size=size, dead=dead, twins=twins)
    groups = 60 // size
    weights = np.random.default_rng(8).uniform(0.5, 2.0, groups)
    ready = GroupLasso([problem], weights)
    found = ready.solve(fraction * ready.lambda_max)
    gap = violation([problem], found.matrices, found.lam, weights)
    assert gap <= 1.01e-8 * ready.scale
    assert found.kkt == pytest.approx(gap, abs=1e-10 * ready.scale)
    assert not set(found.active) & set(range((60 - dead) // size, groups))


def test_a_joint_problem_of_equal_grams_is_the_stacked_one() -> None:
    random = np.random.default_rng(9)
    inputs = np.maximum(random.standard_normal((200, 4)) @ random.standard_normal((4, 12)), 0)
    first, second = random.standard_normal((3, 12)), random.standard_normal((5, 12))
    groups = np.arange(12) // 2
    joint = [layer(inputs, first, groups), layer(inputs, second, groups)]
    stacked = layer(inputs, np.vstack([first, second]), groups)
    top = lambda_max([stacked])
    assert lambda_max(joint) == pytest.approx(top, rel=1e-12)
    one = solve([stacked], 0.1 * top, tolerance=TIGHT)
    two = solve(joint, 0.1 * top, tolerance=TIGHT)
    assert two.active == one.active
    assert two.objective == pytest.approx(one.objective, rel=1e-10)
    assert violation([stacked], [np.vstack(two.matrices)], 0.1 * top, np.ones(6)) <= 2e-9 * top


def test_a_joint_problem_of_different_consumers_against_a_slow_solver() -> None:
    one = relu_layer(10, width=12, height=3, size=3)
    small = relu_layer(11, width=6, height=2)
    # Another order of columns, another size of group, and a group that it does not read.
    two = Quadratic(small.gram, small.cross, small.energy, np.array([3, 0, 1, 3, 0, 1]))
    joint = [one, two]
    lam = 0.15 * lambda_max(joint)
    found = solve(joint, lam, tolerance=TIGHT)
    assert 0 < len(found.active) < 4
    assert violation(joint, found.matrices, lam, np.ones(4)) <= 1e-8 * lam
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


def test_the_units_of_the_channels_do_not_matter_where_they_shall_not() -> None:
    random = np.random.default_rng(12)
    inputs = np.maximum(random.standard_normal((300, 5)) @ random.standard_normal((5, 24)), 0)
    weight = random.standard_normal((6, 24))
    groups = np.arange(24) // 3
    units = np.repeat(10.0 ** random.uniform(-2, 2, 8), 3)
    one, two = layer(inputs, weight, groups), layer(inputs * units, weight / units, groups)
    top = lambda_max([one], scale_invariant=True)
    assert lambda_max([two], scale_invariant=True) == pytest.approx(top, rel=1e-9)
    for fraction in (0.5, 0.2, 0.05):
        before = solve([one], fraction * top, scale_invariant=True)
        after = solve([two], fraction * top, scale_invariant=True)
        assert before.active == after.active
        np.testing.assert_allclose(after.matrices[0] * units, before.matrices[0], atol=1e-5)
        plain = [solve([p], fraction * lambda_max([p])).active for p in (one, two)]
        if fraction == 0.2:
            assert plain[0] != plain[1]
    contribution = [
        np.sqrt(np.mean((inputs[:, groups == g] @ before.matrices[0][:, groups == g].T) ** 2) * 6)
        for g in range(8)
    ]
    np.testing.assert_allclose(before.norms, contribution, rtol=1e-6, atol=1e-9)


def test_the_whole_problem_may_change_units() -> None:
    problem = relu_layer(13, width=30, height=4)
    tiny = replace(
        problem,
        gram=1e-9 * problem.gram,
        cross=1e-9 * problem.cross,
        energy=1e-9 * problem.energy,
    )
    for one, two in zip(path([problem], [0.3, 0.05]), path([tiny], [0.3, 0.05]), strict=True):
        assert one.active == two.active
        np.testing.assert_allclose(one.matrices[0], two.matrices[0], atol=1e-5)


def test_dead_and_duplicated_channels_go_at_no_cost() -> None:
    problem = relu_layer(14, width=40, height=6, dead=5, twins=6)
    lam = 1e-4 * lambda_max([problem])
    matrix = debias(problem, [g for g in range(35) if g >= 6])
    assert problem.error(matrix) <= 1e-10 * problem.energy
    assert not set(solve([problem], lam).active) & set(range(35, 40))


def test_a_start_changes_nothing_but_the_effort() -> None:
    problem = relu_layer(15, width=60, height=5)
    lam = 0.05 * lambda_max([problem])
    cold = solve([problem], lam)
    warm = solve([problem], lam, start=cold.matrices)
    assert warm.iterations == 0
    assert warm.active == cold.active
    far = solve([problem], lam, start=[np.full((5, 60), 3.0)])
    assert far.objective == pytest.approx(cold.objective, rel=1e-9)


def test_nothing_to_explain_is_explained_by_nothing() -> None:
    empty = Quadratic(np.eye(3), np.zeros((2, 3)), 1.0, np.arange(3))
    assert lambda_max([empty]) == 0
    assert solve([empty], 0.0).objective == pytest.approx(0.5)
    assert solve([empty], 0.1).active == ()


def test_what_makes_no_sense_is_refused() -> None:
    problem = layer(*reference())
    with pytest.raises(ValueError, match="lambda is -1"):
        solve([problem], -1.0)
    with pytest.raises(ValueError, match="12 numbers above 0"):
        solve([problem], 1.0, weights=np.zeros(12))
    with pytest.raises(ValueError, match="no problem"):
        solve([], 1.0)


def test_too_few_steps_are_an_error() -> None:
    problem = layer(*reference())
    with pytest.raises(OnnxCompressError, match="after 3 iterations; raise"):
        solve([problem], 0.05 * lambda_max([problem]), max_iterations=3)
