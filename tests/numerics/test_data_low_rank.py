"""Low rank in the metric of the data, against brute force and closed forms of other kinds."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from onnxcompress.numerics.data_low_rank import (
    answers,
    data_lost_energy_tucker2,
    data_svd,
    data_tucker2,
    input_projection,
    projection_loss,
    variances,
)
from onnxcompress.numerics.low_rank import truncated_svd
from onnxcompress.numerics.tucker import tucker2

Array = np.ndarray
MATRICES = [(4, 7), (7, 4), (5, 5)]
# T, S, kernel; all distinct and all equal.
KERNELS = [(6, 5, 3, 2), (3, 3, 3, 3), (4, 6, 3)]


def covariance_of(features: int, seed: int = 0, decay: float = 0.6) -> Array:
    """A covariance whose spectrum falls: directions differ in how much they matter."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((features, features)))[0]
    return (basis * np.maximum(decay ** np.arange(features), 1e-4)) @ basis.T


def weight_of(shape: tuple[int, ...], seed: int = 5) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def loss(weight: Array, other: Array, covariance: Array) -> float:
    """E|W x - M x|^2."""
    rest = (weight - other).reshape(len(weight), -1)
    return float(np.trace(rest @ covariance @ rest.T))


def alternating(weight: Array, covariance: Array, rank: int, seed: int) -> float:
    """The loss that alternating least squares ends at from a random start."""
    left = np.random.default_rng(seed).standard_normal((len(weight), rank))
    right = np.zeros((rank, weight.shape[1]))
    for _ in range(400):
        right = np.linalg.lstsq(left, weight, rcond=None)[0]
        cross = weight @ covariance @ right.T
        left = np.linalg.solve(right @ covariance @ right.T, cross.T).T
    return loss(weight, left @ right, covariance)


@pytest.mark.parametrize("shape", MATRICES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_no_other_matrix_of_that_rank_comes_closer(shape: tuple[int, int], rank: int) -> None:
    weight, covariance = weight_of(shape), covariance_of(shape[1])
    found = data_svd(weight, covariance, rank)
    assert np.linalg.matrix_rank(found.reconstruct()) == rank
    assert found.left.shape == (shape[0], rank)
    assert found.right.shape == (rank, shape[1])
    reached = loss(weight, found.reconstruct(), covariance)
    # Alternating least squares arrives at the same loss, never below it.
    others = [alternating(weight, covariance, rank, seed) for seed in range(4)]
    assert reached <= min(others) * (1 + 1e-9)
    assert reached == pytest.approx(min(others), rel=1e-4)
    # Nor does anything near by.
    generator = np.random.default_rng(1)
    for size in (1e-3, 1e-2, 1e-1):
        left = found.left + size * generator.standard_normal(found.left.shape)
        right = found.right + size * generator.standard_normal(found.right.shape)
        assert loss(weight, left @ right, covariance) > reached
    plain = truncated_svd(weight, rank).reconstruct()
    assert reached < loss(weight, plain, covariance)


@pytest.mark.parametrize("shape", MATRICES)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_it_is_reduced_rank_regression(shape: tuple[int, int], rank: int) -> None:
    """M = [W R^(1/2)]_r R^(-1/2), by a plain truncated SVD of the whitened problem."""
    weight, covariance = weight_of(shape, 6), covariance_of(shape[1], 2)
    root = np.real(scipy.linalg.sqrtm(covariance))
    left, values, right = np.linalg.svd(weight @ root)
    cut = (left[:, :rank] * values[:rank]) @ right[:rank]
    expected = np.linalg.solve(root, cut.T).T
    np.testing.assert_allclose(
        data_svd(weight, covariance, rank).reconstruct(), expected, atol=1e-8
    )


@pytest.mark.parametrize("shape", MATRICES)
def test_lost_shares_are_what_is_lost(shape: tuple[int, int]) -> None:
    weight, covariance = weight_of(shape, 7), covariance_of(shape[1], 3)
    lost = answers(weight, covariance).lost
    assert len(lost) == shape[0] + 1
    assert lost[0] == 1.0
    assert lost[-1] == 0.0
    whole = loss(weight, np.zeros(shape), covariance)
    for rank in range(1, min(shape) + 1):
        left = loss(weight, data_svd(weight, covariance, rank).reconstruct(), covariance)
        assert lost[rank] == pytest.approx(left / whole, abs=1e-9)
    assert (np.diff(lost) <= 0).all()
    nothing = answers(weight, np.zeros_like(covariance)).lost
    np.testing.assert_array_equal(nothing, [1.0] * shape[0] + [0.0])


def test_full_rank_is_the_weight_itself() -> None:
    for shape in MATRICES:
        weight, covariance = weight_of(shape), covariance_of(shape[1])
        found = data_svd(weight, covariance, shape[0])
        np.testing.assert_allclose(found.reconstruct(), weight, atol=1e-12)
        assert found.relative_error <= 1e-12


@pytest.mark.parametrize("shape", KERNELS)
def test_tucker2_is_exact_at_full_rank(shape: tuple[int, ...]) -> None:
    weight = weight_of(shape)
    covariance = covariance_of(int(np.prod(shape[1:])))
    found = data_tucker2(weight, covariance, *shape[:2])
    np.testing.assert_allclose(found.reconstruct(), weight, atol=1e-12)
    assert found.core.shape == shape
    # A weight that has these ranks is found, though neither side is full.
    thin = tucker2(weight, 2, 2).reconstruct()
    again = data_tucker2(thin, covariance, 2, 2).reconstruct()
    assert loss(thin, again, covariance) <= 1e-7 * loss(thin, 0 * thin, covariance)


@pytest.mark.parametrize("shape", KERNELS)
def test_tucker2_errors_fall_with_ranks_and_sweeps(shape: tuple[int, ...]) -> None:
    weight = weight_of(shape)
    covariance = covariance_of(int(np.prod(shape[1:])), decay=0.8)

    def error(rows: int, columns: int, sweeps: int = 8) -> float:
        found = data_tucker2(weight, covariance, rows, columns, sweeps=sweeps)
        assert found.core.shape == (rows, columns, *shape[2:])
        assert found.factor_out.shape == (shape[0], rows)
        assert found.factor_in.shape == (shape[1], columns)
        np.testing.assert_allclose(found.factor_out.T @ found.factor_out, np.eye(rows), atol=1e-9)
        return loss(weight, found.reconstruct(), covariance)

    whole = loss(weight, 0 * weight, covariance)
    table = np.array(
        [[error(r, c) for c in range(1, shape[1] + 1)] for r in range(1, shape[0] + 1)]
    )
    assert (np.diff(table, axis=0) <= 1e-3 * whole).all()
    assert (np.diff(table, axis=1) <= 1e-3 * whole).all()
    assert table[0, 0] > table[1, 1] > table[-1, -1]
    gains = []
    for rows, columns in ((2, 2), (shape[0], 2), (2, shape[1] - 1)):
        errors = [error(rows, columns, sweeps) for sweeps in (0, 1, 2, 4, 8)]
        # The ridge that guards the normal equations is 1e-9 of their diagonal.
        assert (np.diff(errors) <= 1e-7 * whole).all()
        gains.append(1 - errors[-1] / errors[0])
    assert min(gains) > 1e-6
    assert max(gains) > 1e-3


@pytest.mark.parametrize("shape", KERNELS)
def test_tucker2_beats_the_metric_of_the_weights(shape: tuple[int, ...]) -> None:
    weight = weight_of(shape)
    covariance = covariance_of(int(np.prod(shape[1:])))
    for rows, columns in ((2, 2), (1, 2), (shape[0], 2), (2, shape[1])):
        ours = data_tucker2(weight, covariance, rows, columns).reconstruct()
        plain = tucker2(weight, rows, columns).reconstruct()
        assert loss(weight, ours, covariance) < 0.95 * loss(weight, plain, covariance)
        # Under white inputs both count the same.
        white = np.eye(len(covariance))
        same = data_tucker2(weight, white, rows, columns, sweeps=40).reconstruct()
        assert loss(weight, same, white) <= loss(weight, plain, white) * 1.02


@pytest.mark.parametrize("shape", MATRICES)
@pytest.mark.parametrize("rank", [1, 3])
def test_tucker2_of_a_pointwise_kernel_is_the_svd(shape: tuple[int, int], rank: int) -> None:
    weight, covariance = weight_of(shape), covariance_of(shape[1])
    expected = data_svd(weight, covariance, rank).reconstruct()
    found = data_tucker2(weight[:, :, None, None], covariance, rank, shape[1])
    np.testing.assert_allclose(found.reconstruct()[:, :, 0, 0], expected, atol=1e-10)
    # From the side of the inputs it is the same problem, which the whitening solves.
    other = data_tucker2(weight[:, :, None, None], covariance, shape[0], rank)
    np.testing.assert_allclose(other.reconstruct()[:, :, 0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("shape", KERNELS)
def test_table_of_losses(shape: tuple[int, ...]) -> None:
    weight = weight_of(shape)
    covariance = covariance_of(int(np.prod(shape[1:])))
    table = data_lost_energy_tucker2(weight, covariance)
    assert table.shape == (shape[0] + 1, shape[1] + 1)
    assert table[0, 0] == 1.0
    assert table[-1, -1] == 0.0
    assert (table <= 1.0).all()
    assert (table >= 0.0).all()
    assert (np.diff(table, axis=0) <= 0).all()
    assert (np.diff(table, axis=1) <= 0).all()
    np.testing.assert_array_equal(table[0], 1.0)
    np.testing.assert_array_equal(table[:, 0], 1.0)
    whole = loss(weight, 0 * weight, covariance)
    flat = weight.reshape(len(weight), -1)
    for rank in range(1, shape[0]):
        one = data_svd(flat, covariance, rank).reconstruct()
        assert table[rank, -1] == pytest.approx(loss(flat, one, covariance) / whole, abs=1e-9)
    # With at most eight channels every input rank lies on the grid.
    for rank in range(1, shape[1]):
        one = data_tucker2(weight, covariance, shape[0], rank, sweeps=0).reconstruct()
        assert table[-1, rank] == pytest.approx(loss(weight, one, covariance) / whole, abs=1e-6)


def test_table_between_the_points_of_the_grid() -> None:
    """20 channels: every third rank is exact, the others lie on the line between."""
    weight, covariance = weight_of((12, 20, 2)), covariance_of(40, decay=0.9)
    inner = data_lost_energy_tucker2(weight, covariance)[-1]
    whole = loss(weight, 0 * weight, covariance)
    for rank in (3, 6, 12, 18):
        one = data_tucker2(weight, covariance, 12, rank, sweeps=0).reconstruct()
        assert inner[rank] == pytest.approx(loss(weight, one, covariance) / whole, abs=1e-6)
    assert inner[4] == pytest.approx((2 * inner[3] + inner[6]) / 3)
    assert inner[19] == pytest.approx(inner[18] / 2)


def test_table_of_zero_inputs() -> None:
    table = data_lost_energy_tucker2(weight_of((3, 4, 2)), np.zeros((8, 8)))
    assert table[-1, -1] == 0.0
    assert (table[:-1, :-1] == 1.0).all()


@pytest.mark.parametrize("shape", KERNELS)
def test_projection_loss_is_that_of_least_squares(shape: tuple[int, ...]) -> None:
    """On rows x: y = W x is fitted from the mixed channels."""
    generator = np.random.default_rng(3)
    taps = int(np.prod(shape[2:]))
    x = generator.standard_normal((200, shape[1], taps)) * np.geomspace(1, 3, taps)
    x[:, 1:] += x[:, :1]
    flat = x.reshape(200, -1)
    weight, mixture = weight_of(shape), generator.standard_normal((shape[1], 2))
    y = flat @ weight.reshape(len(weight), -1).T
    mixed = np.einsum("nsk,sr->nrk", x, mixture).reshape(200, -1)
    rest = y - mixed @ np.linalg.lstsq(mixed, y, rcond=None)[0]
    found = projection_loss(weight, flat.T @ flat / 200, mixture)
    assert found == pytest.approx(float(np.square(rest).sum()) / 200, rel=1e-5)


def test_signs_are_determined() -> None:
    """Other orders of rows and rounding errors do not turn factors around."""
    weight, covariance = weight_of((5, 4, 3)), covariance_of(12)
    found = data_tucker2(weight, covariance, 3, 2)
    noise = 1e-11 * weight_of((5, 4, 3), 9)
    again = data_tucker2(weight + noise, covariance * (1 + 1e-12), 3, 2)
    for name in ("core", "factor_out", "factor_in"):
        np.testing.assert_allclose(getattr(again, name), getattr(found, name), atol=1e-6)
    turned = data_tucker2(-weight, covariance, 3, 2)
    np.testing.assert_allclose(turned.factor_in, found.factor_in, atol=1e-6)
    np.testing.assert_allclose(turned.factor_out, found.factor_out, atol=1e-6)
    for factor in (found.factor_out, found.factor_in):
        assert (np.take_along_axis(factor, np.abs(factor).argmax(0)[None], 0) > 0).all()
    left = data_svd(weight.reshape(5, -1), covariance, 3).left
    assert (np.take_along_axis(left, np.abs(left).argmax(0)[None], 0) > 0).all()


def test_whitened_mixtures_of_a_pointwise_layer_explain_its_answers() -> None:
    """Energies add up to the variance of the answers, for a kernel of one tap exactly."""
    weight, covariance = weight_of((5, 4, 1)), covariance_of(4)
    mixture, energies = input_projection(weight, covariance)
    whole = loss(weight, 0 * weight, covariance)
    assert energies.sum() == pytest.approx(whole, rel=1e-9)
    for rank in (1, 2, 3):
        left = projection_loss(weight, covariance, mixture[:, :rank])
        assert left == pytest.approx(energies[rank:].sum(), abs=1e-7 * whole)


def test_variances() -> None:
    pairs = [(weight_of((3, 4), s), (s + 1.0) * covariance_of(4, s)) for s in range(3)]
    each = [loss(w, 0 * w, r) for w, r in pairs]
    np.testing.assert_allclose(variances(pairs), np.array(each) / sum(each))
    none = [(w, 0 * r) for w, r in pairs]
    np.testing.assert_allclose(variances(none), 1 / 3)
