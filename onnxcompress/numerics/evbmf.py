"""Rank and noise of a matrix by global analytic empirical variational Bayes (EVBMF).

Y [L, M], L <= M, alpha = L / M, is read as a low-rank matrix plus Gaussian noise of variance
sigma2. With x_h = s_h^2 / (M sigma2) the free energy is, up to scale and constants,

    Omega = sum_{x_h <= x_low} (x_h - log x_h) + (number of zero s_h) log sigma2
          + sum_{x_h > x_low} (x_h - tau_h + log((tau_h + 1) / x_h) + alpha log(tau_h / alpha + 1))

    tau_low: the zero of Phi(t) + Phi(t / alpha), where Phi(z) = log(1 + z) / z - 1/2
    x_low  = (1 + tau_low) (1 + alpha / tau_low)
    tau_h  = (x_h - (1 + alpha) + sqrt((x_h - (1 + alpha))^2 - 4 alpha)) / 2

and the rank is the number of s_h above sqrt(M sigma2 x_low). Since x = (1 + tau)(1 + alpha / tau),
the derivative collapses to

    dOmega / dlog sigma2 = L + sum_{x_h > x_low} tau_h - sum_h x_h,

which falls by tau_low wherever sigma2 rises past a kink s_h^2 / (M x_low). Omega therefore has
several minima: where this derivative, smooth between kinks, rises through zero; and, only if
tau_low is approximate, at the kinks, where Omega then jumps (with the exact one it is continuous).

References:
    S. Nakajima, M. Sugiyama, S. D. Babacan and R. Tomioka, "Global analytic solution of
    fully-observed variational Bayesian matrix factorization", JMLR 14 (2013).
    S. Nakajima, R. Tomioka, M. Sugiyama and S. D. Babacan, "Condition for perfect dimensionality
    recovery by variational Bayesian PCA", JMLR 16 (2015): the bounds on sigma2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
import scipy.optimize
from numpy.typing import ArrayLike, NDArray

from onnxcompress.numerics.low_rank import Array, finite_array

Tau = Literal["exact", "approximate"]

# tau_low / sqrt(alpha) for a square matrix, used for every shape by the approximate variant.
_APPROXIMATE_TAU = 2.5129
_NEARLY = 1e-6
"""Slopes this far on the wrong side of zero are looked at more closely."""

_GRID_POINTS = 400


@dataclass(frozen=True, eq=False)
class EvbmfResult:
    """What is signal and what is noise in a matrix.

    Attributes:
        rank: Number of singular values above the threshold; 0 where all is noise.
        noise_variance: sigma2, in the squared units of the matrix; 0 for a matrix without noise.
        threshold: Smallest singular value that counts as signal, in the units of the matrix.
        singular_values: The estimate of the noise-free singular values, [rank], largest first.
    """

    rank: int
    noise_variance: float
    threshold: float
    singular_values: Array


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """The singular values that are not zero, scaled so that the mean square of Y is 1."""

    values: Array
    rows: int
    columns: int
    tau_low: float

    @property
    def alpha(self) -> float:
        return self.rows / self.columns

    @property
    def x_low(self) -> float:
        return (1 + self.tau_low) * (1 + self.alpha / self.tau_low)

    @property
    def zeros(self) -> int:
        return self.rows - self.values.size

    def log_kinks(self) -> Array:
        """Where each singular value turns from signal into noise, in log sigma2, falling."""
        return 2 * np.log(self.values) - math.log(self.columns * self.x_low)

    def terms(self, log_variance: float, signals: int) -> tuple[Array, Array]:
        """Split into tau_h of the first `signals` singular values, and x_h of the others."""
        x = np.square(self.values) / (self.columns * math.exp(log_variance))
        excess = x[:signals] - (1 + self.alpha)
        return (excess + np.sqrt(np.square(excess) - 4 * self.alpha)) / 2, x[signals:]

    def omega(self, log_variance: float, signals: int) -> float:
        tau, x = self.terms(log_variance, signals)
        # x - tau = 1 + alpha + alpha / tau, which does not cancel where both are very large.
        ratio = self.alpha / tau
        signal = 1 + self.alpha + ratio - np.log1p(ratio) + self.alpha * np.log1p(1 / ratio)
        return float(signal.sum() + np.sum(x - np.log(x)) + self.zeros * log_variance)

    def slope(self, log_variance: float, signals: int) -> float:
        tau, x = self.terms(log_variance, signals)
        return float(np.sum(1 - x) - self.alpha * np.sum(1 + 1 / tau) + self.zeros)

    def slopes(self, log_variances: Array, signals: NDArray[np.intp]) -> Array:
        """Slopes at many points at once, up to the order of summation."""
        x = np.square(self.values) / (self.columns * np.exp(log_variances[:, np.newaxis]))
        signal = np.arange(self.values.size) < signals[:, np.newaxis]
        excess = np.where(signal, x - (1 + self.alpha), 2.0 * math.sqrt(self.alpha))
        tau = (excess + np.sqrt(np.maximum(np.square(excess) - 4 * self.alpha, 0.0))) / 2
        terms = np.where(signal, -self.alpha * (1 + 1 / tau), 1 - x)
        return np.asarray(terms.sum(axis=1) + self.zeros)


def evbmf(y: ArrayLike, *, noise_variance: float | None = None, tau: Tau = "exact") -> EvbmfResult:
    """Estimate the rank of a matrix observed with Gaussian noise.

    The result depends on the singular values alone, not on the scale: rank(c y) = rank(y), and
    the noise variance of c y is c^2 times that of y.

    Args:
        y: The matrix, of either orientation; finite.
        noise_variance: sigma2 where it is known; estimated where it is None.
        tau: How tau_low is found: from its equation, or by the approximation 2.5129 sqrt(alpha),
            which is 11 % short at alpha = 0.01 but is what published ranks were made with.

    Returns:
        Rank, noise variance, threshold and the shrunk singular values. A matrix without noise
        (fewer than L / (1 + alpha) singular values above rounding, where Omega has no minimum)
        has its numerical rank, and its singular values as they are.

    Raises:
        ValueError: y is not a finite matrix, or the noise variance is not a positive number.
    """
    matrix = finite_array(y, name="y", least_axes=2)
    if matrix.ndim != 2:
        raise ValueError(f"y has shape {matrix.shape}; evbmf takes a matrix")
    if noise_variance is not None and not 0 < noise_variance < math.inf:
        raise ValueError(f"noise_variance is {noise_variance}; it takes a positive number")
    # One orientation in one layout: y and its transpose agree to the last bit, unless square.
    wide = np.ascontiguousarray(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)
    rows, columns = wide.shape
    turning_point = tau_low(rows / columns, tau)
    peak = float(np.abs(wide).max())
    if peak == 0:
        return EvbmfResult(0, noise_variance or 0.0, 0.0, np.zeros(0))
    # In two steps, because the squares of very small or very large weights leave the range.
    wide = wide / peak
    relative_scale = math.sqrt(float(np.mean(np.square(wide))))
    scale = peak * relative_scale

    values: Array = scipy.linalg.svdvals(wide / relative_scale)
    floor = float(columns * np.finfo(np.float64).eps * values[0])
    spectrum = _Spectrum(values[values >= floor], rows, columns, turning_point)
    if noise_variance is not None:
        log_variance = math.log(noise_variance) - 2 * math.log(scale)
    elif (estimate := _log_noise_variance(spectrum)) is None:
        return EvbmfResult(spectrum.values.size, 0.0, scale * floor, scale * spectrum.values)
    else:
        log_variance = estimate

    rank = int(np.count_nonzero(spectrum.log_kinks() > log_variance))
    relative_variance = math.exp(log_variance)
    return EvbmfResult(
        rank=rank,
        noise_variance=noise_variance or relative_variance * scale * scale,
        threshold=scale * math.sqrt(columns * relative_variance * spectrum.x_low),
        singular_values=scale * _shrunk(spectrum.values[:rank], spectrum, relative_variance),
    )


def tau_low(alpha: float, method: Tau = "exact") -> float:
    """Find the value of tau at which a component turns from noise into signal.

    Args:
        alpha: Rows over columns, 0 < alpha <= 1.
        method: "exact" solves Phi(t) + Phi(t / alpha) = 0; "approximate" is 2.5129 sqrt(alpha).

    Returns:
        tau_low.

    Raises:
        ValueError: The method is neither of the two.
    """
    if method == "approximate":
        return _APPROXIMATE_TAU * math.sqrt(alpha)
    if method != "exact":
        raise ValueError(f"tau is {method!r}; it takes 'exact' or 'approximate'")

    def xi(t: float) -> float:
        return math.log1p(t) / t + alpha * math.log1p(t / alpha) / t - 1

    # Phi falls through zero between 2.5 and 2.52: both terms are positive at one end of the
    # bracket, and both negative at the other.
    eps = float(np.finfo(np.float64).eps)
    return float(scipy.optimize.brentq(xi, 2.5 * alpha, 2.52, xtol=eps * alpha, rtol=4 * eps))


def _log_noise_variance(spectrum: _Spectrum) -> float | None:
    """Minimise Omega over all sigma2; None where it falls without end towards sigma2 = 0."""
    rows, columns, values = spectrum.rows, spectrum.columns, spectrum.values
    # No more than this many components can be signal (Nakajima et al. 2015).
    most = math.ceil(rows / (1 + spectrum.alpha)) - 1
    tail = np.square(values[most:])
    if tail.size == 0:
        return None
    kinks = spectrum.log_kinks()
    lowest = max(float(kinks[most]), math.log(tail.sum() / (columns * (rows - most))))
    # The noise is the whole matrix, whose mean square is 1.
    highest = max(lowest, 0.0)

    inside = kinks[(kinks > lowest) & (kinks < highest)]
    nodes = np.union1d(np.linspace(lowest, highest, _GRID_POINTS), inside)
    candidates: list[float] = [
        lowest,
        highest,
        *inside.tolist(),
        *_stationary(spectrum, nodes, kinks),
    ]
    return min(
        candidates, key=lambda point: spectrum.omega(point, int(np.count_nonzero(kinks > point)))
    )


def _stationary(spectrum: _Spectrum, nodes: Array, kinks: Array) -> Iterator[float]:
    """Find the minimum in each segment between two nodes, where Omega is smooth."""
    starts, ends = nodes[:-1], nodes[1:]
    counts = np.count_nonzero(kinks >= ends[:, np.newaxis], axis=1)
    near = (spectrum.slopes(starts, counts) <= _NEARLY) & (
        spectrum.slopes(ends, counts) >= -_NEARLY
    )
    for at in np.flatnonzero(near):
        start, end, signals = float(starts[at]), float(ends[at]), int(counts[at])
        if spectrum.slope(start, signals) <= 0 <= spectrum.slope(end, signals):
            yield float(
                scipy.optimize.brentq(spectrum.slope, start, end, args=(signals,), xtol=1e-14)
            )


def _shrunk(values: Array, spectrum: _Spectrum, variance: float) -> Array:
    """Shrink the singular values that are signal (Nakajima et al. 2013, EVB solution)."""
    rows, columns = spectrum.rows, spectrum.columns
    noise = variance / np.square(values)
    kept = 1 - (rows + columns) * noise
    root: Array = np.sqrt(np.square(kept) - 4 * rows * columns * np.square(noise))
    return values * (kept + root) / 2
