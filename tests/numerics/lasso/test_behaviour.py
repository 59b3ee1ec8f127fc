"""What the group lasso must not depend on, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import OnnxCompressError
from onnxcompress.numerics.group_lasso import debias, lambda_max, solve
from onnxcompress.numerics.group_path import path
from onnxcompress.numerics.quadratic import Quadratic


def test_the_units_of_the_channels_do_not_matter_where_they_shall_not(lasso: Any) -> None:
    random = np.random.default_rng(12)
    inputs = np.maximum(random.standard_normal((300, 5)) @ random.standard_normal((5, 24)), 0)
    weight = random.standard_normal((6, 24))
    groups = np.arange(24) // 3
    units = np.repeat(10.0 ** random.uniform(-2, 2, 8), 3)
    one, two = (
        lasso.layer(inputs, weight, groups),
        lasso.layer(inputs * units, weight / units, groups),
    )
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


def test_the_whole_problem_may_change_units(lasso: Any) -> None:
    problem = lasso.relu_layer(13, width=30, height=4)
    tiny = replace(
        problem,
        gram=1e-9 * problem.gram,
        cross=1e-9 * problem.cross,
        energy=1e-9 * problem.energy,
    )
    for one, two in zip(path([problem], [0.3, 0.05]), path([tiny], [0.3, 0.05]), strict=True):
        assert one.active == two.active
        np.testing.assert_allclose(one.matrices[0], two.matrices[0], atol=1e-5)


def test_dead_and_duplicated_channels_go_at_no_cost(lasso: Any) -> None:
    problem = lasso.relu_layer(14, width=40, height=6, dead=5, twins=6)
    lam = 1e-4 * lambda_max([problem])
    matrix = debias(problem, [g for g in range(35) if g >= 6])
    assert problem.error(matrix) <= 1e-10 * problem.energy
    assert not set(solve([problem], lam).active) & set(range(35, 40))


def test_a_start_changes_nothing_but_the_effort(lasso: Any) -> None:
    problem = lasso.relu_layer(15, width=60, height=5)
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


def test_what_makes_no_sense_is_refused(lasso: Any) -> None:
    problem = lasso.layer(*lasso.reference())
    with pytest.raises(ValueError, match="lambda is -1"):
        solve([problem], -1.0)
    with pytest.raises(ValueError, match="12 numbers above 0"):
        solve([problem], 1.0, weights=np.zeros(12))
    with pytest.raises(ValueError, match="no problem"):
        solve([], 1.0)


def test_too_few_steps_are_an_error(lasso: Any) -> None:
    problem = lasso.layer(*lasso.reference())
    with pytest.raises(OnnxCompressError, match="after 3 iterations; raise"):
        solve([problem], 0.05 * lambda_max([problem]), max_iterations=3)
