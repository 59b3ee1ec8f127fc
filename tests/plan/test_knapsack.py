"""The choice is optimal: against every choice there is, on instances small enough to list them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest

from onnxcompress.plan import knapsack

Table = list[list[float]]
Choice = tuple[int | None, ...]
Conflicts = Sequence[tuple[int, int]]


def least_damage(
    damage: Table,
    savings: Mapping[str, Table],
    demands: Mapping[str, float],
    conflicts: Conflicts = (),
) -> list[int | None] | None:
    """The picks, of which the solver has to have proved that none are better."""
    found = knapsack.least_damage(damage, savings, demands, conflicts=conflicts)
    assert found is None or found.gap <= 1e-9
    return list(found.picks) if found is not None else None


def most_saved(
    damage: Table, saving: Table, budget: float | None, conflicts: Conflicts = ()
) -> list[int | None]:
    found = knapsack.most_saved(damage, saving, budget, conflicts=conflicts)
    assert found.gap <= 1e-9
    return list(found.picks)


def choices(sites: Table) -> Iterator[Choice]:
    return itertools.product(*[(None, *range(len(site))) for site in sites])


def total(values: Table, choice: Sequence[int | None]) -> float:
    return sum(v[c] for v, c in zip(values, choice, strict=True) if c is not None)


def instance(seed: int, *, whole: bool) -> tuple[Table, Table, Table]:
    """Damage and two resources for 0 to 5 sites with 0 to 3 candidates; some save nothing."""
    generator = np.random.default_rng(seed)
    sizes = [int(n) for n in generator.integers(0, 4, generator.integers(0, 6))]
    damage = [list(generator.uniform(0.0, 1.0, n)) for n in sizes]
    if whole:  # ties everywhere
        first = [[float(v) for v in generator.integers(-3, 9, n)] for n in sizes]
        second = [[float(v) for v in generator.integers(-3, 9, n)] for n in sizes]
    else:
        first = [list(generator.uniform(-0.3, 1.0, n)) for n in sizes]
        second = [list(generator.uniform(-0.3, 1.0, n)) for n in sizes]
    return damage, first, second


def close(found: float, best: float) -> bool:
    """Within the solver's gap of 1e-6, relative to the size of what is summed."""
    return abs(found - best) <= 1e-5 * max(1e-12, abs(best))


@pytest.mark.parametrize("whole", [False, True], ids=["fractions", "whole"])
@pytest.mark.parametrize("seed", range(25))
def test_least_damage_is_optimal(seed: int, *, whole: bool) -> None:
    damage, first, second = instance(seed, whole=whole)
    reach = [sum(max([0.0, *site]) for site in resource) for resource in (first, second)]
    for share in (0.0, 0.35, 0.8, 1.1):
        demands = {"a": share * reach[0] + 1e-3 * share, "b": 0.5 * share * reach[1]}
        feasible = [
            choice
            for choice in choices(damage)
            if total(first, choice) >= demands["a"] and total(second, choice) >= demands["b"]
        ]
        found = least_damage(damage, {"a": first, "b": second}, demands)
        if not feasible:
            assert found is None
            continue
        assert found is not None
        assert tuple(found) in feasible
        assert close(total(damage, found), min(total(damage, c) for c in feasible))


def rivals(seed: int, count: int) -> list[tuple[int, int]]:
    """Some pairs of sites."""
    generator = np.random.default_rng(1000 + seed)
    pairs = list(itertools.combinations(range(count), 2))
    return [pair for pair in pairs if generator.uniform() < 0.4]


def peaceful(choice: Choice, conflicts: list[tuple[int, int]]) -> bool:
    return not any(choice[a] is not None and choice[b] is not None for a, b in conflicts)


@pytest.mark.parametrize("whole", [False, True], ids=["fractions", "whole"])
@pytest.mark.parametrize("seed", range(12))
def test_optimal_among_choices_without_conflicts(seed: int, *, whole: bool) -> None:
    """Of two sites in conflict one at most is rewritten; sites without candidates may be named."""
    damage, first, second = instance(400 + seed, whole=whole)
    conflicts = rivals(seed, len(damage))
    peace = [choice for choice in choices(damage) if peaceful(choice, conflicts)]
    reach = max(total(first, choice) for choice in peace)
    for share in (0.4, 0.9, 1.2):
        demand = share * reach + 1e-3
        feasible = [choice for choice in peace if total(first, choice) >= demand]
        found = least_damage(damage, {"a": first}, {"a": demand}, conflicts=conflicts)
        if not feasible:
            assert found is None
        else:
            assert found is not None
            assert tuple(found) in feasible
            assert close(total(damage, found), min(total(damage, c) for c in feasible))
    for budget in (None, 0.5 * sum(max([0.0, *site]) for site in damage)):
        feasible = [c for c in peace if budget is None or total(damage, c) <= budget]
        taken = most_saved(damage, second, budget, conflicts=conflicts)
        assert tuple(taken) in feasible
        assert close(total(second, taken), max(total(second, c) for c in feasible))


def test_conflicts_bind() -> None:
    """Without them both sites would be taken."""
    damage, saving = [[0.1], [0.2], [0.3]], [[4.0], [5.0], [2.0]]
    assert most_saved(damage, saving, None) == [0, 0, 0]
    assert most_saved(damage, saving, None, conflicts=[(0, 1)]) == [None, 0, 0]
    assert most_saved(damage, saving, None, conflicts=[(0, 1), (1, 2)]) == [0, None, 0]
    assert least_damage(damage, {"a": saving}, {"a": 8.0}) == [0, 0, None]
    assert least_damage(damage, {"a": saving}, {"a": 6.5}, conflicts=[(0, 1)]) == [None, 0, 0]
    assert least_damage(damage, {"a": saving}, {"a": 8.0}, conflicts=[(0, 1)]) is None


@pytest.mark.parametrize("whole", [False, True], ids=["fractions", "whole"])
@pytest.mark.parametrize("seed", range(25))
def test_most_saved_is_optimal(seed: int, *, whole: bool) -> None:
    damage, saving, _ = instance(100 + seed, whole=whole)
    spent = sum(max([0.0, *site]) for site in damage)
    for share in (0.0, 0.2, 0.6, 2.0):
        budget = share * spent
        feasible = [c for c in choices(damage) if total(damage, c) <= budget]
        found = most_saved(damage, saving, budget)
        assert tuple(found) in feasible
        assert close(total(saving, found), max(total(saving, c) for c in feasible))


# Damages are relative squared errors: near 1e-7 for layers close to lossless, and a factor from
# a probe may bring them anywhere.
@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e-6, 1e-3, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("seed", range(6))
def test_the_unit_of_damage_does_not_matter(seed: int, scale: float) -> None:
    damage, saving, _ = instance(200 + seed, whole=False)
    scaled = [[scale * value for value in site] for site in damage]
    spent = sum(max([0.0, *site]) for site in damage)
    demand = {"a": 0.5 * sum(max([0.0, *site]) for site in saving)}
    for share in (0.1, 0.4):
        assert most_saved(scaled, saving, scale * share * spent) == most_saved(
            damage, saving, share * spent
        )
    assert least_damage(scaled, {"a": saving}, demand) == least_damage(
        damage, {"a": saving}, demand
    )


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e3, 1e12])
@pytest.mark.parametrize("seed", range(6))
def test_the_unit_of_saving_does_not_matter(seed: int, scale: float) -> None:
    damage, saving, _ = instance(300 + seed, whole=False)
    scaled = [[scale * value for value in site] for site in saving]
    demand = 0.5 * sum(max([0.0, *site]) for site in saving)
    assert least_damage(damage, {"a": scaled}, {"a": scale * demand}) == least_damage(
        damage, {"a": saving}, {"a": demand}
    )
    assert most_saved(damage, scaled, 1.0) == most_saved(damage, saving, 1.0)


def test_nearly_enough_is_not_enough() -> None:
    """One MAC short in a thousand million is short: the verdict counts them all."""
    damage, saving = [[0.1, 0.9]], [[1e9 - 1.0, 1e9]]
    assert least_damage(damage, {"macs": saving}, {"macs": 1e9}) == [1]
    assert least_damage(damage, {"macs": saving}, {"macs": 1e9 - 1.0}) == [0]
    assert least_damage(damage, {"macs": saving}, {"macs": 1e9 + 1.0}) is None


def test_nearly_within_the_budget_is_outside() -> None:
    assert most_saved([[2e-7]], [[5.0]], 1e-7) == [None]
    assert most_saved([[2e-7]], [[5.0]], 2e-7) == [0]


def test_the_smaller_damage_wins_among_equal_savings() -> None:
    assert most_saved([[0.5, 0.2, 0.3]], [[4.0, 4.0, 4.0]], 1.0) == [1]


def test_nothing_is_taken_that_only_costs() -> None:
    assert most_saved([[0.0], [0.0]], [[-1.0], [2.0]], 1.0) == [None, 0]
    assert least_damage([[0.3]], {"a": [[1.0]]}, {"a": 0.0}) == [None]


def test_without_candidates() -> None:
    assert most_saved([], [], 1.0) == []
    assert most_saved([[], []], [[], []], 1.0) == [None, None]
    assert least_damage([[], []], {"a": [[], []]}, {"a": 0.0}) == [None, None]
    assert least_damage([[], []], {"a": [[], []]}, {"a": 1.0}) is None


def test_an_unbounded_budget_takes_the_best_of_every_site() -> None:
    found = most_saved([[1e9, 5.0], [1e-9], [3.0]], [[1.0, 2.0], [1.0], [-1.0]], 1e30)
    assert found == [1, 0, None]


def test_many_sites_are_solved_exactly() -> None:
    """200 alike sites with two candidates: the demand decides how many take which."""
    damage, saving = [[1.0, 3.0]] * 200, [[1.0, 2.0]] * 200
    found = least_damage(damage, {"a": saving}, {"a": 250.0})
    assert found is not None
    # Savings of 1 cost 1 each, and raising one to 2 costs 2 more.
    assert total(damage, found) == 150 * 1.0 + 50 * 3.0


def test_the_solver_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard error belongs to the command line, whatever a solver finds worth telling."""
    generator = np.random.default_rng(1)
    saving = [sorted(generator.uniform(0.0, 1.0, 8)) for _ in range(20)]
    damage = [[float(v * v * generator.uniform(0.8, 1.2)) for v in site] for site in saving]
    most_saved(damage, saving, 0.3 * sum(max(site) for site in damage))
    least_damage(damage, {"a": saving}, {"a": 0.5 * sum(max(site) for site in saving)})
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
