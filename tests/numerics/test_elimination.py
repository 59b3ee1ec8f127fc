"""Backward elimination and exchanges against refitting by lstsq at every step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcompress.numerics import elimination
from onnxcompress.numerics.elimination import eliminate
from onnxcompress.numerics.group_swap import swap
from onnxcompress.numerics.quadratic import FREE, Quadratic, debias

TINY = 1e-11


class Layer:
    """A problem and the samples it came from."""

    def __init__(self, seed: int, groups: np.ndarray, height: int = 4, noise: float = 0.5) -> None:
        random = np.random.default_rng(seed)
        width = groups.size
        self.inputs = np.maximum(
            random.standard_normal((150, 5)) @ random.standard_normal((5, width))
            + 0.5 * random.standard_normal((150, width)),
            0,
        )
        weight = random.standard_normal((height, width))
        self.outputs = self.inputs @ weight.T + noise * random.standard_normal((150, height))
        self.groups = groups

    def problem(self) -> Quadratic:
        return Quadratic(
            self.inputs.T @ self.inputs / 150,
            self.outputs.T @ self.inputs / 150,
            float((self.outputs**2).sum() / 150),
            self.groups,
        )

    def refitted(self, kept: set[int]) -> float:
        """The relative error of least squares on the samples themselves."""
        columns = np.isin(self.groups, [*kept, FREE])
        if not columns.any():
            return 1.0
        inputs = self.inputs[:, columns]
        fit = np.linalg.lstsq(inputs, self.outputs, rcond=1e-9)[0]
        return float(((self.outputs - inputs @ fit) ** 2).sum() / (self.outputs**2).sum())


def brute_force(layers: list[Layer], count: int, fixed: set[int], keep: int):
    kept, order = set(range(count)), []
    errors = [sum(layer.refitted(kept) for layer in layers)]
    while len(kept) > keep and kept - fixed:
        after = {g: sum(layer.refitted(kept - {g}) for layer in layers) for g in kept - fixed}
        leaver = min(after, key=lambda g: after[g])
        kept.remove(leaver)
        order.append(leaver)
        errors.append(after[leaver])
    return tuple(order), errors


CASES = {
    "single columns": ([np.arange(14)], set(), 1),
    "blocks": ([np.arange(24) // 3], set(), 0),
    "unequal blocks": ([np.repeat(np.arange(7), [1, 4, 2, 2, 5, 1, 3])], set(), 1),
    "scattered": ([np.arange(21) % 7], set(), 0),
    "free columns": ([np.array([FREE, 0, 1, 2, FREE, 3, 3, 4, 5])], set(), 0),
    "fixed": ([np.arange(12) // 2], {1, 4}, 1),
    "two consumers": ([np.arange(24) // 3, np.array([7, 6, 5, 4, 3, 2, 1, 0])], set(), 1),
    "one that reads few": ([np.arange(16) // 2, np.array([3, 3, 1])], {2}, 0),
}


@pytest.mark.parametrize("pending", [1, 4, 256])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_removal_is_the_cheapest(
    monkeypatch: pytest.MonkeyPatch, case: tuple, pending: int
) -> None:
    monkeypatch.setattr(elimination, "_PENDING", pending)
    groups, fixed, keep = case
    layers = [Layer(seed, g) for seed, g in enumerate(groups)]
    count = 1 + max(int(g.max()) for g in groups)
    found = eliminate([layer.problem() for layer in layers], keep=keep, fixed=fixed, ridge=TINY)
    order, errors = brute_force(layers, count, fixed, keep)
    assert found.order == order
    np.testing.assert_allclose(found.errors, errors, rtol=1e-7)


def test_more_outputs_than_inputs() -> None:
    layer = Layer(3, np.arange(9) // 3, height=30)
    found = eliminate([layer.problem()], keep=0, ridge=TINY)
    order, errors = brute_force([layer], 3, set(), 0)
    assert found.order == order
    np.testing.assert_allclose(found.errors, errors, rtol=1e-7)


def test_the_errors_are_those_of_the_fits_with_the_ridge() -> None:
    problem = Layer(4, np.arange(24) // 2).problem()
    found = eliminate([problem], ridge=0.05)
    kept = set(range(12))
    for leaver, error in zip((None, *found.order), found.errors, strict=True):
        kept -= {leaver}
        exact = problem.error(debias(problem, kept, 0.05)) / problem.energy
        assert error == pytest.approx(exact, rel=1e-9)


def test_scales_weigh_the_problems() -> None:
    problems = [Layer(5, np.arange(10)).problem(), Layer(6, np.arange(10)).problem()]
    both = eliminate(problems, scales=[1.0, 1e9], keep=0)
    first = eliminate(problems[:1], keep=0)
    assert both.order == first.order
    assert both.order != eliminate(problems, keep=0).order
    np.testing.assert_allclose(both.errors, first.errors * problems[0].energy, rtol=1e-6)


def test_dead_and_duplicated_groups_go_first_at_no_cost() -> None:
    layer = Layer(7, np.arange(30) // 3, noise=0.0)
    layer.inputs[:, 6:9] = 0
    layer.inputs[:, 12:15] = layer.inputs[:, :3]
    layer.outputs = layer.inputs @ np.random.default_rng(8).standard_normal((30, 4))
    found = eliminate([layer.problem()])
    assert set(found.order[:2]) <= {0, 2, 4}
    assert 2 in found.order[:2]
    # A ridge e costs e^2 times what R is conditioned to.
    assert (found.errors[:3] < 1e-9).all()
    assert found.errors[3] > 1e-4


def test_a_partly_dead_group() -> None:
    layer = Layer(9, np.arange(12) // 3)
    layer.inputs[:, [1, 5, 6, 7, 8]] = 0
    found = eliminate([layer.problem()], keep=0, ridge=TINY)
    order, errors = brute_force([layer], 4, set(), 0)
    assert found.order == order
    np.testing.assert_allclose(found.errors, errors, rtol=1e-7)


def test_the_units_of_the_channels_do_not_matter() -> None:
    layer = Layer(10, np.arange(24) // 2)
    before = eliminate([layer.problem()])
    layer.inputs = layer.inputs * np.repeat(10.0 ** np.linspace(-2, 2, 12), 2)
    after = eliminate([layer.problem()])
    assert before.order == after.order
    np.testing.assert_allclose(before.errors, after.errors, rtol=1e-6)


def test_long_eliminations_stay_exact() -> None:
    random = np.random.default_rng(11)
    inputs = random.standard_normal((900, 40)) @ random.standard_normal((40, 300))
    inputs = np.maximum(inputs + 0.01 * random.standard_normal(inputs.shape), 0)
    weight = random.standard_normal((20, 300))
    gram = inputs.T @ inputs / 900
    energy = float(np.vdot(weight, weight @ gram))
    problem = Quadratic(gram, weight @ gram, energy, np.arange(300))
    found = eliminate([problem], keep=1)
    assert len(set(found.order)) == len(found.order) == 299
    for gone in (100, 150, 270, 299):
        kept = set(range(300)) - set(found.order[:gone])
        exact = problem.error(debias(problem, kept, 1e-6)) / problem.energy
        assert found.errors[gone] == pytest.approx(exact, rel=1e-6, abs=1e-12)
    assert (np.diff(found.errors) >= -1e-12).all()


def test_what_makes_no_sense_is_refused() -> None:
    problem = Layer(12, np.arange(4)).problem()
    with pytest.raises(ValueError, match="number above 0 for each problem"):
        eliminate([problem], scales=[0.0])
    with pytest.raises(ValueError, match="number above 0 for each problem"):
        eliminate([problem], scales=[1.0, 1.0])
    with pytest.raises(ValueError, match="keep is -1"):
        eliminate([problem], keep=-1)


def test_no_energy_at_all_is_no_error() -> None:
    silent = Quadratic(np.eye(3), np.zeros((2, 3)), 0.0, np.arange(3))
    np.testing.assert_array_equal(eliminate([silent], keep=0).errors, np.zeros(4))


@pytest.mark.parametrize("seed", range(4))
def test_an_exchange_is_the_best_of_all_pairs(seed: int) -> None:
    layers = [Layer(20 + seed, np.arange(20) // 2), Layer(30 + seed, np.arange(10)[::-1].copy())]
    problems = [layer.problem() for layer in layers]
    kept = {0, 1, 2, 3, 4}
    found = swap(problems, kept, ridge=TINY, rounds=1)
    pairs = {
        pair: sum(layer.refitted(kept - {pair[0]} | {pair[1]}) for layer in layers)
        for pair in itertools.product(kept, set(range(10)) - kept)
    }
    leaver, entering = min(pairs, key=lambda pair: pairs[pair])
    assert found.kept == tuple(sorted(kept - {leaver} | {entering}))
    np.testing.assert_allclose(
        found.errors,
        [sum(layer.refitted(kept) for layer in layers), pairs[leaver, entering]],
        rtol=1e-7,
    )
    assert not found.settled


@pytest.mark.parametrize("seed", range(4))
def test_exchanges_never_make_it_worse_and_end_where_none_helps(seed: int) -> None:
    layer = Layer(40 + seed, np.arange(20) // 2)
    kept = {1, 3, 5, 7}
    found = swap([layer.problem()], kept, fixed=(3, 8), ridge=TINY)
    assert found.settled
    assert (np.diff(found.errors) < 0).all()
    assert len(found.kept) == 4
    assert 3 in found.kept
    assert 8 not in found.kept
    now = set(found.kept)
    assert found.errors[-1] == pytest.approx(layer.refitted(now), rel=1e-7)
    for leaver, entering in itertools.product(now - {3}, set(range(10)) - now - {8}):
        assert layer.refitted(now - {leaver} | {entering}) >= found.errors[-1] * (1 - 1e-7)
    again = swap([layer.problem()], found.kept, fixed=(3, 8), ridge=TINY)
    assert again.kept == found.kept


def test_exchanges_among_dead_and_duplicated_groups() -> None:
    layer = Layer(50, np.arange(20) // 2)
    layer.inputs[:, 4:6] = 0
    layer.inputs[:, 8:10] = layer.inputs[:, 0:2]
    layer.inputs[:, 13] = 0
    found = swap([layer.problem()], {0, 2, 4})
    assert 2 not in found.kept
    assert not {0, 4} <= set(found.kept)
    assert found.errors[-1] < found.errors[0]


def test_a_large_ridge_does_not_let_the_error_rise() -> None:
    exchanges = 0
    for seed in range(20):
        problem = Layer(60 + seed, np.arange(20) // 2).problem()
        found = swap([problem], {0, 2, 4, 6, 8}, ridge=1.0)
        assert (np.diff(found.errors) < 0).all()
        exact = problem.error(debias(problem, found.kept, 1.0)) / problem.energy
        assert found.errors[-1] == pytest.approx(exact, rel=1e-12)
        exchanges += len(found.errors) - 1
    assert exchanges


def test_nothing_to_exchange() -> None:
    problem = Layer(51, np.arange(6)).problem()
    assert swap([problem], range(6)).kept == tuple(range(6))
    assert swap([problem], ()).kept == ()
    assert swap([problem], (0, 1), rounds=0).kept == (0, 1)
