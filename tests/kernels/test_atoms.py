from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.kernels.atoms import learn_atoms
from onnxcompress.kernels.descent import descended
from onnxcompress.kernels.induction import relative_error


def covariance(seed: int, size: int, rank: int) -> np.ndarray:
    mixing = np.random.default_rng(seed).standard_normal((size, rank))
    return mixing @ mixing.T + 0.01 * np.eye(size)


def test_without_a_metric_atoms_are_the_spatial_modes() -> None:
    weight = np.random.default_rng(0).standard_normal((7, 5, 9))
    energies = np.linalg.svd(weight.reshape(-1, 9), compute_uv=False) ** 2
    for count in range(1, 10):
        found = learn_atoms(weight, count)
        expected = energies[count:].sum() / energies.sum()
        assert relative_error(weight, found.weights) == pytest.approx(expected, abs=1e-12)


def test_an_atom_per_cell_is_exact() -> None:
    weight = np.random.default_rng(1).standard_normal((3, 2, 9))
    np.testing.assert_array_equal(learn_atoms(weight, 9, covariance(2, 18, 4)).weights, weight)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_planted_atoms_are_found_in_the_metric_of_the_data(count: int) -> None:
    generator = np.random.default_rng(3)
    weight = generator.standard_normal((8, 6, count)) @ generator.standard_normal((count, 9))
    metric = covariance(4, 54, 54)
    assert relative_error(weight, learn_atoms(weight, count, metric).weights, metric) < 1e-9


def test_the_metric_of_the_data_lowers_the_error_of_answers() -> None:
    weight = np.random.default_rng(5).standard_normal((8, 6, 9))
    metric = covariance(6, 54, 20)
    errors = [
        relative_error(weight, learn_atoms(weight, 3, m).weights, metric) for m in (None, metric)
    ]
    assert errors[1] < 0.8 * errors[0]


def test_descent_solves_small_systems() -> None:
    """Four rows of one matrix: as many different directions as it has sizes, and no more."""
    generator = np.random.default_rng(7)
    mixing = generator.standard_normal((6, 6))
    matrix, right = mixing @ mixing.T + np.eye(6), generator.standard_normal((4, 6))
    found = descended(lambda x: x @ matrix, right, np.zeros((4, 6)))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right.T).T, rtol=1e-8)
    again = descended(lambda x: x @ matrix, right, found)
    np.testing.assert_allclose(again, found, rtol=1e-8)
