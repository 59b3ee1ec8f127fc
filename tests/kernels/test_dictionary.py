from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.kernels.dictionary import LayerDictionary, learn, whole
from onnxcompress.kernels.feedback import damped
from onnxcompress.kernels.induction import relative_error
from onnxcompress.kernels.semantics import evaluate


def planted(seed: int, outputs: int = 8, channels: int = 6, entries: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    lines = generator.standard_normal((entries, 9))
    choice = generator.integers(entries, size=(outputs, channels))
    scales = generator.uniform(0.5, 2.0, (outputs, channels)) * generator.choice(
        [-1.0, 1.0], (outputs, channels)
    )
    return np.asarray(scales[:, :, np.newaxis] * lines[choice])


def covariance(seed: int, size: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((3 * size, size))
    return rows.T @ rows / len(rows)


@pytest.mark.parametrize("weighed", [False, True])
def test_planted_dictionary_is_found(weighed: bool) -> None:
    weight = planted(0)
    found = learn(weight, 3, covariance(1, 54) if weighed else None, rounds=4)
    assert relative_error(weight, found.weights) < 1e-10
    assert found.numbers == 3 * 9 + 48
    assert found.bits() == pytest.approx(32 * found.numbers + 48 * np.log2(3))


def test_an_entry_per_kernel_is_exact() -> None:
    weight = np.random.default_rng(2).standard_normal((4, 3, 9))
    for found in (whole(weight), learn(weight, 12, covariance(3, 27)), learn(weight, 99)):
        np.testing.assert_array_equal(found.weights, weight)


def test_error_is_no_less_than_that_of_as_many_spatial_modes() -> None:
    """K lines span at most K directions, of which the SVD takes the best (SEEDS 5(e))."""
    weight = np.random.default_rng(4).standard_normal((8, 8, 9))
    energies = np.linalg.svd(weight.reshape(-1, 9), compute_uv=False) ** 2
    for count in range(1, 9):
        bound = energies[count:].sum() / energies.sum()
        found = learn(weight, count)
        assert relative_error(weight, found.weights) >= bound - 1e-12
    one = learn(weight, 1)
    assert relative_error(weight, one.weights) == pytest.approx(energies[1:].sum() / energies.sum())


def test_the_metric_of_the_data_lowers_the_error_of_answers() -> None:
    weight = np.random.default_rng(5).standard_normal((16, 6, 9))
    mixing = np.random.default_rng(6).standard_normal((54, 12))
    metric = mixing @ mixing.T + 0.01 * np.eye(54)
    plain, weighed = learn(weight, 6), learn(weight, 6, metric)
    errors = [relative_error(weight, found.weights, metric) for found in (plain, weighed)]
    assert errors[1] < 0.3 * errors[0]


def test_scales_are_least_squares() -> None:
    """The error has no slope along any scale."""
    weight, metric = np.random.default_rng(7).standard_normal((6, 4, 9)), covariance(8, 36)
    firm = damped(metric)
    found = learn(weight, 5, metric, rounds=3)
    slope = ((found.weights - weight).reshape(6, -1) @ firm).reshape(6, 4, 9)
    by_scale = (slope * found.entries[found.choice]).sum(axis=2)
    size = np.abs(slope).max() * np.abs(found.entries).max()
    assert np.abs(by_scale).max() < 1e-6 * size


def test_rounds_do_not_make_it_worse() -> None:
    weight, metric = np.random.default_rng(12).standard_normal((8, 6, 9)), covariance(13, 54)
    firm = damped(metric)
    errors = [
        relative_error(weight, learn(weight, 6, metric, rounds=n).weights, firm) for n in (1, 2, 4)
    ]
    assert errors == sorted(errors, reverse=True)


def test_learning_is_repeatable_and_follows_its_seed() -> None:
    weight, metric = np.random.default_rng(9).standard_normal((8, 4, 9)), covariance(10, 36)
    one, same, other = (learn(weight, 4, metric, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.weights, same.weights)
    assert not np.array_equal(one.weights, other.weights)


def test_programs_are_entries_times_scales() -> None:
    weight = planted(11)
    found: LayerDictionary = learn(weight, 4)
    entries = {str(i): entry.reshape(3, 3) for i, entry in enumerate(found.entries)}
    kernel = evaluate(found.program(2, 3), 3, entries)
    np.testing.assert_allclose(kernel.ravel(), found.weights[2, 3], rtol=1e-14)
