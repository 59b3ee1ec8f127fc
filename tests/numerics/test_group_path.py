from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.numerics.group_lasso import debias, lambda_max, solve
from onnxcompress.numerics.group_path import path, select
from onnxcompress.numerics.quadratic import Quadratic


def relu_layer(
    seed: int, *, width: int = 48, height: int = 6, size: int = 3, units: np.ndarray | None = None
) -> Quadratic:
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((400, width // 3)) @ random.standard_normal((width // 3, width))
    inputs = np.maximum(inputs + 0.3 * random.standard_normal(inputs.shape), 0)
    weight = random.standard_normal((height, width))
    if units is not None:
        inputs, weight = inputs * units, weight / units
    gram = inputs.T @ inputs / 400
    energy = float(np.trace(weight @ gram @ weight.T))
    return Quadratic(gram, weight @ gram, energy, np.arange(width) // size)


def test_a_path_holds_the_solutions_of_its_lambdas() -> None:
    problem = relu_layer(0)
    fractions = [1.0, 0.6, 0.3, 0.1, 0.03]
    top = lambda_max([problem])
    for fraction, found in zip(fractions, path([problem], fractions), strict=True):
        alone = solve([problem], fraction * top)
        assert found.lam == pytest.approx(fraction * top, rel=1e-14)
        assert found.active == alone.active
        assert found.objective == pytest.approx(alone.objective, rel=1e-10)


def test_the_debiased_error_falls_along_the_path() -> None:
    problem = relu_layer(1)
    found = path([problem], np.geomspace(0.95, 0.01, 25).tolist())
    errors, kept = [], set()
    for solution in found:
        # Groups seldom leave again; the error is monotone in the set, so look at all so far.
        kept |= set(solution.active)
        errors.append(problem.error(debias(problem, kept)))
    assert len(kept) == 16
    assert (np.diff(errors) <= 1e-10 * problem.energy).all()
    assert errors[0] > 0.1 * problem.energy
    assert errors[-1] < 1e-10 * problem.energy


@pytest.mark.parametrize("reweighted", [0, 2])
@pytest.mark.parametrize("scale_invariant", [False, True])
def test_every_number_of_groups_can_be_had(scale_invariant: bool, reweighted: int) -> None:
    problem = relu_layer(2)
    before: float = np.inf
    for count in range(17):
        chosen = select([problem], count, scale_invariant=scale_invariant, reweighted=reweighted)
        assert len(chosen.kept) == count
        assert list(chosen.kept) == sorted(set(chosen.kept))
        if chosen.exact:
            assert chosen.kept == chosen.solution.active
        error = problem.error(debias(problem, chosen.kept))
        assert error <= before * 1.3
        before = error
    assert before < 1e-10 * problem.energy


def test_the_choice_is_that_of_the_lasso() -> None:
    problem = relu_layer(3)
    chosen = select([problem], 7)
    assert chosen.exact
    assert solve([problem], chosen.solution.lam).active == chosen.kept


def test_the_units_of_the_channels_do_not_matter_where_they_shall_not() -> None:
    units = np.repeat(10.0 ** np.random.default_rng(5).uniform(-2, 2, 16), 3)
    one, two = relu_layer(4), relu_layer(4, units=units)
    plain = 0
    for count in (3, 6, 9, 12):
        for rounds in (0, 1):
            before = select([one], count, scale_invariant=True, reweighted=rounds)
            after = select([two], count, scale_invariant=True, reweighted=rounds)
            assert before.kept == after.kept
        plain += select([one], count).kept != select([two], count).kept
    assert plain


def test_twins_are_told_apart_the_same_way_every_time() -> None:
    base = relu_layer(6, width=24)
    twice = np.tile(base.gram, (2, 2))
    problem = Quadratic(
        twice, np.tile(base.cross, 2), base.energy, np.concatenate([base.groups, base.groups + 8])
    )
    chosen = select([problem], 5)
    assert len(chosen.kept) == 5
    assert chosen.kept == select([problem], 5).kept
    everything = select([problem], 16)
    assert everything.kept == tuple(range(16))


def test_dead_groups_come_last() -> None:
    live = relu_layer(7, width=24)
    gram, cross = np.zeros((30, 30)), np.zeros((6, 30))
    gram[6:, 6:], cross[:, 6:] = live.gram, live.cross
    problem = Quadratic(gram, cross, live.energy, np.arange(30) // 3)
    assert select([problem], 8).kept == tuple(range(2, 10))
    assert select([problem], 9).kept == (0, *range(2, 10))


def test_reweighting_changes_the_choice_and_lowers_the_error_on_the_whole() -> None:
    gained, changed = [], 0
    for seed in range(8):
        problem = relu_layer(20 + seed, width=60, size=1)
        plain, again = select([problem], 20), select([problem], 20, reweighted=2)
        changed += plain.kept != again.kept
        errors = [problem.error(debias(problem, c.kept)) for c in (plain, again)]
        gained.append(np.log(errors[0] / errors[1]))
    assert changed >= 4
    assert np.mean(gained) > 0


def test_a_round_of_reweighting_penalises_by_the_inverse_of_the_norm() -> None:
    problem = relu_layer(9, width=30, size=1)
    first, second = select([problem], 12), select([problem], 12, reweighted=1)
    norms = first.solution.norms
    weights = norms.max() / (norms + norms.max())
    found = solve([problem], second.solution.lam, weights=weights)
    assert second.exact
    assert found.active == second.kept
    np.testing.assert_allclose(
        found.matrices[0], second.solution.matrices[0], rtol=0, atol=1e-3 * norms.max()
    )


def test_what_makes_no_sense_is_refused() -> None:
    problem = relu_layer(8)
    with pytest.raises(ValueError, match="count is 17; it takes 0 to 16"):
        select([problem], 17)
    with pytest.raises(ValueError, match="decreasing"):
        path([problem], [0.1, 0.2])
