from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.tucker import ModeSpectra, Tucker2, hosvd, tucker2

# All extents distinct, then all equal; one, two, three and no spatial axes.
SHAPES = [(7, 5, 3), (11, 7, 3, 2), (7, 6, 5, 3, 2), (9, 6), (4, 4, 4), (5, 5, 5, 5), (3,) * 5]


def weight_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A weight whose modes decay, so that HOOI has one clear optimum to find."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal(shape)
    for axis, extent in enumerate(shape[:2]):
        mixing = random.standard_normal((extent, extent)) * 0.75 ** np.arange(extent)
        weight = np.moveaxis(np.tensordot(mixing, weight, axes=(1, axis)), 0, axis)
    return weight


def expand(core: np.ndarray, factor_out: np.ndarray, factor_in: np.ndarray) -> np.ndarray:
    return np.einsum("tr,sq,rq...->ts...", factor_out, factor_in, core)


def leading(matrix: np.ndarray, rank: int) -> np.ndarray:
    """Leading left singular vectors, by way of the Gram matrix."""
    return np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :rank]


def naive_hosvd(weight: np.ndarray, rank_out: int, rank_in: int) -> tuple[np.ndarray, np.ndarray]:
    flat = weight.reshape(*weight.shape[:2], -1)
    factor_out = leading(np.einsum("tsk->tsk", flat).reshape(flat.shape[0], -1), rank_out)
    factor_in = leading(np.einsum("tsk->stk", flat).reshape(flat.shape[1], -1), rank_in)
    return factor_out, factor_in


def naive_hooi(weight: np.ndarray, rank_out: int, rank_in: int, sweeps: int) -> float:
    """Relative error after some sweeps of the textbook iteration, from ||W||^2 - ||C||^2."""
    flat = weight.reshape(*weight.shape[:2], -1)
    factor_out, factor_in = naive_hosvd(weight, rank_out, rank_in)
    for _ in range(sweeps):
        seen = np.einsum("tsk,sq->tqk", flat, factor_in)
        factor_out = leading(seen.reshape(flat.shape[0], -1), rank_out)
        seen = np.einsum("tsk,tr->srk", flat, factor_out)
        factor_in = leading(seen.reshape(flat.shape[1], -1), rank_in)
    core = np.einsum("tsk,tr,sq->rqk", flat, factor_out, factor_in)
    return math.sqrt(1 - np.sum(core**2) / np.sum(flat**2))


def error_of(weight: np.ndarray, result: Tucker2) -> float:
    approximation = expand(result.core, result.factor_out, result.factor_in)
    return float(np.linalg.norm(weight - approximation) / np.linalg.norm(weight))


def assert_orthonormal(factor: np.ndarray) -> None:
    # Householder vectors are orthonormal to a small multiple of eps in each entry.
    np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), rtol=0, atol=1e-14)


def assert_signs(factor: np.ndarray) -> None:
    extremes = factor[np.argmax(np.abs(factor), axis=0), np.arange(factor.shape[1])]
    assert (extremes > 0).all()


# --- HOOI against an independent one -----------------------------------------------------------


@pytest.mark.parametrize("sweeps", [0, 1, 6])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_that_of_textbook_hooi(shape: tuple[int, ...], sweeps: int) -> None:
    weight = weight_of(shape)
    rank_out, rank_in = (shape[0] + 1) // 2, (shape[1] + 1) // 2
    result = tucker2(weight, rank_out, rank_in, iterations=sweeps, tolerance=0.0)
    expected = naive_hooi(weight, rank_out, rank_in, sweeps)
    assert result.relative_error == pytest.approx(expected, rel=1e-8)
    assert result.relative_error == pytest.approx(error_of(weight, result), rel=1e-12)


@pytest.mark.parametrize("ranks", [(3, 2), (2, 5), (6, 1), (8, 4)])
def test_the_defaults_converge(ranks: tuple[int, int]) -> None:
    weight = weight_of((11, 7, 3, 2))
    result = tucker2(weight, *ranks)
    # A sweep that gains less than 1e-9 is the last; what is left shrinks geometrically.
    expected = naive_hooi(weight, *ranks, sweeps=300)
    assert result.relative_error == pytest.approx(expected, abs=5e-9)


def test_a_flat_weight_gains_from_iterating() -> None:
    weight = np.random.default_rng(3).standard_normal((8, 9, 3, 2))
    start, end = (tucker2(weight, 3, 3, iterations=count).relative_error for count in (0, 50))
    assert end < start - 1e-3


def test_more_sweeps_never_raise_the_error() -> None:
    weight = np.random.default_rng(4).standard_normal((6, 8, 3))
    errors = [
        tucker2(weight, 3, 2, iterations=count, tolerance=0.0).relative_error for count in range(12)
    ]
    assert errors == sorted(errors, reverse=True)


def test_a_weight_without_spatial_axes_is_a_truncated_svd() -> None:
    weight = weight_of((9, 6))
    result = tucker2(weight, 4, 4)
    left, values, right = np.linalg.svd(weight)
    expected = left[:, :4] * values[:4] @ right[:4]
    np.testing.assert_allclose(result.reconstruct(), expected, rtol=0, atol=1e-13 * values[0])


# --- identities --------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 2, *[st.integers(1, 3)] * 2),
    seed=st.integers(0, 10**6),
    data=st.data(),
)
def test_every_decomposition_is_an_orthogonal_projection(
    shape: tuple[int, ...], seed: int, data: st.DataObject
) -> None:
    rank_out, rank_in = (data.draw(st.integers(1, extent)) for extent in shape[:2])
    weight = np.random.default_rng(seed).standard_normal(shape)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = tucker2(weight, rank_out, rank_in, iterations=4)
    assert result.core.shape == (rank_out, rank_in, *shape[2:])
    assert result.factor_out.shape == (shape[0], rank_out)
    assert result.factor_in.shape == (shape[1], rank_in)
    for factor in (result.factor_out, result.factor_in):
        assert_orthonormal(factor)
        assert_signs(factor)

    core = np.einsum("tsjk,tr,sq->rqjk", weight, result.factor_out, result.factor_in)
    scale = np.linalg.norm(weight)
    np.testing.assert_allclose(result.core, core, rtol=0, atol=1e-14 * scale)
    approximation = expand(core, result.factor_out, result.factor_in)
    np.testing.assert_allclose(result.reconstruct(), approximation, rtol=0, atol=1e-14 * scale)
    # ||K - Khat||^2 = ||K||^2 - ||C||^2, each side rounded at eps ||K||^2.
    assert result.relative_error**2 == pytest.approx(1 - np.sum(core**2) / scale**2, abs=1e-13)

    bound = hosvd(weight).truncated_energy_bound(rank_out, rank_in)
    assert bound / math.sqrt(2) - 1e-13 <= result.relative_error <= bound + 1e-13
    # Also where one rank is beyond what the other mode feeds, and is narrowed at the start.
    hosvd_out, hosvd_in = naive_hosvd(weight, rank_out, rank_in)
    start = np.einsum("tsjk,tr,sq->rqjk", weight, hosvd_out, hosvd_in)
    assert result.relative_error**2 <= 1 - np.sum(start**2) / scale**2 + 1e-13


@pytest.mark.parametrize("shape", [*SHAPES, (16, 3, 1, 1), (3, 16, 1), (40, 2, 3, 3), (1, 1, 3)])
def test_full_ranks_reproduce_the_weight(shape: tuple[int, ...]) -> None:
    weight = weight_of(shape)
    result = tucker2(weight, *shape[:2])
    assert result.relative_error < 1e-14
    assert_orthonormal(result.factor_out)
    assert_orthonormal(result.factor_in)
    scale = np.abs(weight).max()
    for exact in (result.reconstruct(), expand(result.core, result.factor_out, result.factor_in)):
        np.testing.assert_allclose(exact, weight, rtol=0, atol=1e-14 * scale * math.sqrt(shape[0]))


def test_one_full_mode_is_the_svd_of_the_other() -> None:
    # Tucker-1: with one mode in full, the best factor of the other is its singular vectors.
    weight = weight_of((8, 6, 3, 2))
    values = np.linalg.svd(np.swapaxes(weight, 0, 1).reshape(6, -1), compute_uv=False)
    expected = math.sqrt(np.sum(values[2:] ** 2) / np.sum(values**2))
    result = tucker2(weight, 8, 2)
    assert result.relative_error == pytest.approx(expected, rel=1e-12)
    kept = result.factor_in @ result.factor_in.T
    np.testing.assert_allclose(
        result.absorb_out(),
        np.einsum("tsjk,sq->tqjk", weight, result.factor_in),
        rtol=0,
        atol=1e-13 * np.abs(weight).max(),
    )
    np.testing.assert_allclose(
        result.reconstruct(),
        np.einsum("tsjk,sz->tzjk", weight, kept),
        rtol=0,
        atol=1e-13 * np.abs(weight).max(),
    )


@pytest.mark.parametrize("shape", [(7, 6, 5, 3, 2), (6, 6, 6, 6)])
def test_absorbing_a_factor(shape: tuple[int, ...]) -> None:
    result = tucker2(weight_of(shape), 4, 3)
    absorbed_in, absorbed_out = result.absorb_in(), result.absorb_out()
    assert absorbed_in.shape == (4, shape[1], *shape[2:])
    assert absorbed_out.shape == (shape[0], 3, *shape[2:])
    close = {"rtol": 0, "atol": 1e-14 * np.abs(result.core).max() * 10}
    np.testing.assert_allclose(
        absorbed_in, np.einsum("sq,rq...->rs...", result.factor_in, result.core), **close
    )
    np.testing.assert_allclose(
        absorbed_out, np.einsum("tr,rq...->tq...", result.factor_out, result.core), **close
    )


# --- spectra -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*SHAPES, (16, 3, 2), (2, 30, 3)])
def test_spectra_are_those_of_the_unfoldings(shape: tuple[int, ...]) -> None:
    weight = weight_of(shape)
    spectra = hosvd(weight)
    unfoldings = (weight.reshape(shape[0], -1), np.swapaxes(weight, 0, 1).reshape(shape[1], -1))
    for unfolding, factor, values in (
        (unfoldings[0], spectra.factor_out, spectra.values_out),
        (unfoldings[1], spectra.factor_in, spectra.values_in),
    ):
        expected = np.zeros(unfolding.shape[0])
        expected[: min(unfolding.shape)] = np.linalg.svd(unfolding, compute_uv=False)
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-14 * 10 * expected[0])
        assert factor.shape == (unfolding.shape[0],) * 2
        assert_orthonormal(factor)
        assert_signs(factor)
        # Left singular vectors make the rows of the rotated unfolding orthogonal.
        np.testing.assert_allclose(
            factor.T @ unfolding @ unfolding.T @ factor,
            np.diag(expected**2),
            rtol=0,
            atol=1e-13 * expected[0] ** 2,
        )


def test_small_singular_values_keep_their_accuracy() -> None:
    # By the Gram matrix anything below 1e-8 would drown.
    values = np.array([1.0, 1e-4, 1e-9, 1e-12])
    random = np.random.default_rng(2)
    left = np.linalg.qr(random.standard_normal((4, 4)))[0]
    right = np.linalg.qr(random.standard_normal((60, 4)))[0]
    weight = (left * values @ right.T).reshape(4, 12, 5)
    np.testing.assert_allclose(hosvd(weight).values_out, values, rtol=0, atol=1e-15)


def test_the_bound_is_the_root_of_the_discarded_energies() -> None:
    spectra = ModeSpectra(np.eye(3), np.eye(2), np.array([4.0, 3.0, 0.0]), np.array([5.0, 0.0]))
    assert spectra.truncated_energy_bound(3, 2) == 0
    assert spectra.truncated_energy_bound(1, 1) == pytest.approx(3 / 5)
    assert spectra.truncated_energy_bound(1, 0) == pytest.approx(math.sqrt(9 + 25) / 5)
    for ranks in ((4, 1), (1, 3), (-1, 1)):
        with pytest.raises(ValueError, match="it takes 0 to"):
            spectra.truncated_energy_bound(*ranks)


def test_spectra_at_hand_change_nothing() -> None:
    weight = weight_of((7, 5, 3, 2))
    one, other = tucker2(weight, 3, 2), tucker2(weight, 3, 2, spectra=hosvd(weight))
    np.testing.assert_array_equal(one.core, other.core)
    with pytest.raises(ValueError, match="another weight"):
        tucker2(weight, 3, 2, spectra=hosvd(weight_of((7, 6, 3, 2))))


# --- the same result every time ----------------------------------------------------------------


@pytest.mark.parametrize("ranks", [(4, 3), (8, 1), (8, 2), (1, 6), (8, 6)])
@pytest.mark.parametrize("taps", [(1, 1), (3, 2)])
def test_neither_global_randomness_nor_lapack_signs_matter(
    ranks: tuple[int, int], taps: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = weight_of((8, 6, *taps))
    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = tucker2(weight, *ranks)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002

    numpy_svd, scipy_svd, scipy_qr = np.linalg.svd, scipy.linalg.svd, scipy.linalg.qr

    def flipped(svd, matrix, **options):
        left, values, right = svd(matrix, **options)
        signs = (-1.0) ** np.arange(left.shape[1])
        # The signs of both vectors of a pair are free together.
        return left * signs, values, right * np.resize(signs, right.shape[0])[:, None]

    def flipped_qr(matrix, mode):
        factors = scipy_qr(matrix, mode=mode)
        return tuple(-factor for factor in factors)

    monkeypatch.setattr(np.linalg, "svd", lambda m, **o: flipped(numpy_svd, m, **o))
    monkeypatch.setattr(scipy.linalg, "svd", lambda m, **o: flipped(scipy_svd, m, **o))
    monkeypatch.setattr(scipy.linalg, "qr", flipped_qr)
    np.random.seed(2)  # noqa: NPY002
    second = tucker2(weight, *ranks)
    scale = np.abs(weight).max()
    for one, other in (
        (first.core / scale, second.core / scale),
        (first.factor_out, second.factor_out),
        (first.factor_in, second.factor_in),
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)


def test_of_two_equal_entries_the_first_carries_the_sign() -> None:
    weight = np.array([[1.0, 0.0], [-1.0, 0.0]])
    for tilt in (1 + 1e-12, 1 - 1e-12):
        column = tucker2(weight * [[tilt], [1.0]], 1, 1).factor_out[:, 0]
        np.testing.assert_allclose(column, [math.sqrt(0.5), -math.sqrt(0.5)], rtol=1e-11)


# --- ranks that cannot be used, degenerate weights ---------------------------------------------


@pytest.mark.parametrize(
    ("shape", "ranks"), [((16, 8, 1, 1), (10, 2)), ((8, 16, 1), (3, 9)), ((12, 5, 2), (9, 1))]
)
def test_ranks_beyond_what_the_other_mode_feeds_add_zeros(
    shape: tuple[int, ...], ranks: tuple[int, int]
) -> None:
    weight = weight_of(shape)
    taps = math.prod(shape[2:])
    usable = min(ranks[0], ranks[1] * taps), min(ranks[1], ranks[0] * taps)
    result, least = tucker2(weight, *ranks), tucker2(weight, *usable)
    assert_orthonormal(result.factor_out)
    assert_orthonormal(result.factor_in)
    assert result.relative_error == pytest.approx(least.relative_error, rel=1e-12)
    scale = 1e-13 * np.abs(weight).max()
    np.testing.assert_allclose(result.reconstruct(), least.reconstruct(), rtol=0, atol=scale)


def test_a_weight_of_exactly_low_rank_needs_no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weight_of((9, 8, 3, 3))
    low = tucker2(weight, 3, 2).reconstruct()
    monkeypatch.setattr("onnxcompress.numerics.tucker.partial_tucker", None)
    result = tucker2(low, 3, 2)
    assert result.relative_error < 1e-14
    np.testing.assert_allclose(result.reconstruct(), low, rtol=0, atol=1e-13 * np.abs(low).max())


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (3, 3, 3)])
def test_a_zero_weight_has_a_zero_core(shape: tuple[int, ...]) -> None:
    result = tucker2(np.zeros(shape), 2, 2)
    np.testing.assert_array_equal(result.core, np.zeros((2, 2, *shape[2:])))
    assert_orthonormal(result.factor_out)
    assert result.relative_error == 0
    assert hosvd(np.zeros(shape)).truncated_energy_bound(1, 1) == 0


def test_single_precision_is_decomposed_in_double() -> None:
    weight = weight_of((7, 5, 3)).astype(np.float32)
    result = tucker2(weight, 7, 5)
    assert {a.dtype for a in (result.core, result.factor_out, result.factor_in)} == {np.dtype("f8")}
    assert result.relative_error < 1e-14


@pytest.mark.parametrize("ranks", [(0, 2), (8, 2), (3, 0), (3, 6)])
def test_ranks_out_of_range_are_refused(ranks: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"rank_(out|in) is \d; it takes 1 to"):
        tucker2(weight_of((7, 5, 3)), *ranks)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    weight = weight_of((7, 5, 3))
    weight[1, 2, 0] = bad
    for decompose in (hosvd, lambda values: tucker2(values, 2, 2)):
        with pytest.raises(ValueError, match="NaN or an infinity"):
            decompose(weight)


@pytest.mark.parametrize("shape", [(3,), (3, 0, 2)])
def test_arrays_that_are_not_weights_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        hosvd(np.ones(shape))
