from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcompress.numerics.evbmf import evbmf, tau_low


def pinned_matrix() -> np.ndarray:
    """Rank 5 in noise of variance 0.01: the matrix the published implementations were run on."""
    random = np.random.RandomState(0)
    left, right, noise = random.randn(20, 5), random.randn(5, 50), random.randn(20, 50)
    return left @ right / math.sqrt(5) + 0.1 * noise


def planted(shape: tuple[int, int], rank: int, noise: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    left, right = random.standard_normal((shape[0], rank)), random.standard_normal((rank, shape[1]))
    return left @ right / math.sqrt(rank) + noise * random.standard_normal(shape)


def diagonal(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    matrix = np.zeros(shape)
    np.fill_diagonal(matrix, values)
    return matrix


def free_energy(values: np.ndarray, shape: tuple[int, int], variance: float) -> float:
    """The evidence bound of the papers, with each component at the cheaper of its two solutions.

    Written from the free energy itself: no tau_low, no threshold and no derivative.
    """
    rows, columns = sorted(shape)
    alpha = rows / columns
    energy = rows * columns * math.log(2 * math.pi * variance) + np.sum(values**2) / variance
    for value in values:
        excess = value**2 / (columns * variance) - (1 + alpha)
        if excess > 2 * math.sqrt(alpha):
            tau = (excess + math.sqrt(excess**2 - 4 * alpha)) / 2
            gain = columns * (math.log1p(tau) - tau) + rows * math.log1p(tau / alpha)
            energy += min(gain, 0.0)
    return energy / 2


# --- published numbers -------------------------------------------------------------------------


def test_the_pinned_matrix_gives_the_published_numbers() -> None:
    result = evbmf(pinned_matrix(), tau="approximate")
    assert result.rank == 5
    # Half a unit of the last digit printed.
    assert result.noise_variance == pytest.approx(0.0098727395, abs=5e-11, rel=0)
    assert result.threshold == pytest.approx(1.264859, abs=5e-7, rel=0)
    published = [18.868906, 18.289440, 15.110221, 9.755218, 6.422307]
    np.testing.assert_allclose(result.singular_values, published, rtol=0, atol=5.1e-7)


def test_the_pinned_matrix_at_a_known_noise_variance() -> None:
    result = evbmf(pinned_matrix(), noise_variance=0.01, tau="approximate")
    assert (result.rank, result.noise_variance) == (5, 0.01)
    assert result.threshold == pytest.approx(1.272985, abs=5e-7, rel=0)
    published = [18.868435, 18.288953, 15.109633, 9.754309, 6.420933]
    np.testing.assert_allclose(result.singular_values, published, rtol=0, atol=5.1e-7)


def test_the_exact_tau_moves_only_the_threshold_of_the_pinned_matrix() -> None:
    exact, approximate = evbmf(pinned_matrix()), evbmf(pinned_matrix(), tau="approximate")
    assert exact.threshold == pytest.approx(1.26634, abs=5e-6, rel=0)
    assert exact.noise_variance == approximate.noise_variance
    np.testing.assert_array_equal(exact.singular_values, approximate.singular_values)


def test_the_oracle_gives_the_published_free_energy() -> None:
    matrix = pinned_matrix()
    values = np.linalg.svd(matrix, compute_uv=False)
    assert free_energy(values, matrix.shape, 0.0098728882) == pytest.approx(169.786709, abs=5e-7)


@pytest.mark.parametrize(
    ("alpha", "exact", "approximate"),
    [
        (1.0, 2.512862, 2.512900),
        (0.5, 1.782640, 1.776889),
        (0.25, 1.272608, 1.256450),
        (0.1, 0.822211, 0.794649),
        (0.01, 0.282876, 0.251290),
    ],
)
def test_tau_low(alpha: float, exact: float, approximate: float) -> None:
    assert tau_low(alpha) == pytest.approx(exact, abs=5e-7, rel=0)
    assert tau_low(alpha, "approximate") == pytest.approx(approximate, abs=5e-7, rel=0)


@pytest.mark.parametrize("alpha", [1.0, 0.37, 1e-2, 1e-4, 1e-6])
def test_tau_low_is_where_signal_becomes_cheaper_than_noise(alpha: float) -> None:
    tau = tau_low(alpha)
    gain = math.log1p(tau) + alpha * math.log1p(tau / alpha) - tau
    # Each of the three terms is at most tau, and is rounded a few times.
    assert abs(gain) < 8 * np.finfo(float).eps * tau


@pytest.mark.parametrize(
    ("exponent", "exact", "approximate"), [(1.0, 54, 54), (0.5, 30, 31), (0.25, 11, 11)]
)
def test_power_law_spectra(exponent: float, exact: int, approximate: int) -> None:
    # Flat objectives with several minima, where the search decides the rank: the widely copied one
    # stops at 9, 22 to 29 and 12 to 16, by the scale of the matrix.
    matrix = diagonal(np.arange(1, 129.0) ** -exponent, (128, 1152))
    for scale in (1.0, 1e-2):
        assert evbmf(scale * matrix).rank == exact
        assert evbmf(scale * matrix, tau="approximate").rank == approximate


# --- against the oracle ------------------------------------------------------------------------


def power_law(exponent: float, count: int) -> np.ndarray:
    return np.arange(1, count + 1.0) ** -exponent


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        *(
            (shape, power_law(exponent, shape[0]))
            for shape in ((40, 360), (40, 40), (30, 70))
            for exponent in (1.0, 0.5, 0.25, 0.1)
        ),
        # Zeros count as noise.
        ((20, 60), np.pad(power_law(0.5, 18), (0, 2))),
        ((20, 60), np.pad(power_law(1.0, 16), (0, 4))),
        # One wide gap between kinks, in which the derivative changes its sign twice.
        ((20, 200), np.repeat([1.0, 1e-2], [17, 3])),
    ],
)
def test_the_noise_variance_minimises_the_free_energy(
    shape: tuple[int, int], values: np.ndarray
) -> None:
    result = evbmf(diagonal(values, shape))
    least = values[values > 0].min()
    grid = np.geomspace(least**2 / shape[1] / 100, np.sum(values**2) / np.prod(shape), 3000)
    energies = np.array([free_energy(values, shape, variance) for variance in grid])
    best = free_energy(values, shape, result.noise_variance)
    assert best <= energies.min() + 1e-11 * abs(energies.min())
    # A stationary point, not merely the best of a grid: nearby on either side it is worse.
    for factor in (1 - 1e-4, 1 + 1e-4):
        assert free_energy(values, shape, result.noise_variance * factor) > best


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.25])
def test_the_threshold_is_where_the_free_energy_turns(exponent: float) -> None:
    # A single value just above the threshold lowers the oracle's energy, one just below does not.
    shape, variance = (12, 30), 0.7
    values = np.arange(1, 13.0) ** -exponent
    threshold = evbmf(diagonal(values, shape), noise_variance=variance).threshold

    def gain(value: float) -> float:
        single = np.array([value])
        null = shape[0] * shape[1] * math.log(2 * math.pi * variance) + value**2 / variance
        return free_energy(single, shape, variance) - null / 2

    assert gain(threshold * (1 + 1e-7)) < 0
    assert gain(threshold * (1 - 1e-7)) == 0


def test_shrunk_values_solve_the_stationary_equation() -> None:
    # d satisfies s = d + (L + M) sigma2 / s + L M sigma2^2 / (d s^2) (EVB estimator).
    matrix = planted((17, 43), 4, 0.2, seed=1)
    result = evbmf(matrix)
    s = np.linalg.svd(matrix, compute_uv=False)[: result.rank]
    d, noise = result.singular_values, result.noise_variance
    assert d.shape == (4,)
    recovered = d + (17 + 43) * noise / s + 17 * 43 * noise**2 / (d * s**2)
    np.testing.assert_allclose(recovered, s, rtol=1e-12)


# --- what it must find -------------------------------------------------------------------------


@pytest.mark.parametrize("tau", ["exact", "approximate"])
@pytest.mark.parametrize(
    ("shape", "rank", "noise"),
    [
        ((64, 576), 16, 0.05),
        ((128, 1152), 32, 0.5),
        ((100, 100), 10, 1.0),
        ((64, 27), 8, 0.1),
    ],
)
def test_planted_ranks_are_recovered(
    shape: tuple[int, int], rank: int, noise: float, tau: str
) -> None:
    result = evbmf(planted(shape, rank, noise, seed=3), tau=tau)
    assert result.rank == rank
    # chi^2 with (L - r)(M - r) degrees of freedom, to five standard deviations, and the bias of
    # order r / L that shrinking leaves.
    freedom = (shape[0] - rank) * (shape[1] - rank)
    allowed = 5 * math.sqrt(2 / freedom) + 0.03
    assert result.noise_variance == pytest.approx(noise**2, rel=allowed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(64, 576), (50, 50), (90, 20)])
def test_pure_noise_has_rank_0(shape: tuple[int, int], seed: int) -> None:
    matrix = 0.3 * np.random.default_rng(seed).standard_normal(shape)
    result = evbmf(matrix)
    assert (result.rank, result.singular_values.shape) == (0, (0,))
    assert result.noise_variance == pytest.approx(np.mean(matrix**2), rel=1e-12)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)])
@pytest.mark.parametrize("rank", [1, 6, 10])
def test_without_noise_the_rank_is_the_numerical_one(shape: tuple[int, int], rank: int) -> None:
    matrix = planted(shape, rank, 0.0, seed=rank)
    result = evbmf(matrix)
    assert (result.rank, result.noise_variance) == (rank, 0.0)
    values = np.linalg.svd(matrix, compute_uv=False)
    # Singular values are good to eps * s_1 each.
    np.testing.assert_allclose(
        result.singular_values, values[:rank], rtol=0, atol=1e-13 * values[0]
    )
    assert values[rank] < result.threshold < values[rank - 1]


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (5, 5)])
def test_a_zero_matrix_has_rank_0(shape: tuple[int, int]) -> None:
    result = evbmf(np.zeros(shape))
    assert (result.rank, result.noise_variance, result.threshold) == (0, 0.0, 0.0)
    assert result.singular_values.shape == (0,)


def test_zero_rows_are_singular_values_of_zero() -> None:
    # Half the rows pruned: what is left is signal, and the zero rows must not break the logarithms.
    matrix = planted((24, 60), 3, 0.1, seed=5)
    matrix[18:] = 0
    assert evbmf(matrix).rank == 3


# --- what must not matter ----------------------------------------------------------------------


@pytest.mark.parametrize("tau", ["exact", "approximate"])
@pytest.mark.parametrize("factor", [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-120, 1e120])
def test_scale(factor: float, tau: str) -> None:
    matrix = planted((30, 80), 7, 0.4, seed=7)
    reference, scaled = evbmf(matrix, tau=tau), evbmf(factor * matrix, tau=tau)
    assert scaled.rank == reference.rank == 7
    # sigma2 is a root found to 1e-14 in its logarithm, of a function of the singular values.
    assert scaled.noise_variance == pytest.approx(factor**2 * reference.noise_variance, rel=1e-12)
    assert scaled.threshold == pytest.approx(factor * reference.threshold, rel=1e-12)
    np.testing.assert_allclose(
        scaled.singular_values, factor * reference.singular_values, rtol=1e-12
    )


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_scales_whose_squares_leave_the_range(factor: float) -> None:
    matrix = planted((30, 80), 7, 0.4, seed=7)
    reference, scaled = evbmf(matrix), evbmf(factor * matrix)
    assert scaled.rank == 7
    assert scaled.threshold == pytest.approx(factor * reference.threshold, rel=1e-12)


@pytest.mark.parametrize("shape", [(13, 47), (31, 31)])
def test_the_transpose_gives_the_same_result(shape: tuple[int, int]) -> None:
    matrix = planted(shape, 3, 0.5, seed=11)
    one, other = evbmf(matrix), evbmf(matrix.T)
    # A square matrix keeps its orientation, and LAPACK's rounding differs between the two.
    tolerance = 0 if shape[0] != shape[1] else 1e-12
    assert one.rank == other.rank == 3
    np.testing.assert_allclose(
        [one.noise_variance, one.threshold, *one.singular_values],
        [other.noise_variance, other.threshold, *other.singular_values],
        rtol=tolerance,
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(2, 14), columns=st.integers(2, 14), data=st.data()
)
def test_order_and_sign_of_rows_and_columns_do_not_matter(
    seed: int, rows: int, columns: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(1, min(rows, columns)))
    matrix = planted((rows, columns), rank, 0.3, seed)
    random = np.random.default_rng(seed + 1)
    shuffled = matrix[random.permutation(rows)][:, random.permutation(columns)]
    shuffled = shuffled * random.choice([-1.0, 1.0], size=columns)
    one, other = evbmf(matrix), evbmf(shuffled)
    assert one.rank == other.rank
    assert one.noise_variance == pytest.approx(other.noise_variance, rel=1e-10)


def test_single_precision_is_read_as_it_stands() -> None:
    matrix = pinned_matrix().astype(np.float32)
    one, other = evbmf(matrix), evbmf(matrix.astype(np.float64))
    assert one.noise_variance == other.noise_variance
    assert one.singular_values.dtype == np.float64


# --- what it must refuse -----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    matrix = pinned_matrix()
    matrix[3, 4] = bad
    with pytest.raises(ValueError, match="NaN or an infinity"):
        evbmf(matrix)


@pytest.mark.parametrize("shape", [(4,), (0, 3), (2, 3, 4)])
def test_arrays_that_are_not_matrices_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape"):
        evbmf(np.ones(shape))


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf])
def test_noise_variances_that_are_not_positive_are_refused(variance: float) -> None:
    with pytest.raises(ValueError, match="noise_variance"):
        evbmf(pinned_matrix(), noise_variance=variance)


def test_unknown_tau_is_refused() -> None:
    with pytest.raises(ValueError, match="'exact' or 'approximate'"):
        evbmf(np.zeros((2, 2)), tau="nearly")  # type: ignore[arg-type]
