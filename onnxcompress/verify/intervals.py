"""Confidence intervals for everything that onnxcompress claims to have measured.

Right/wrong metrics use score intervals, which stay meaningful when nothing disagrees: Wilson's for
one proportion, Tango's for the difference of two proportions measured on the same samples. Scores,
signal-to-noise ratios and latencies use the bootstrap, resampling whole samples or whole rounds so
that what was measured together stays together.

Everywhere, counts or samples that cannot be right raise DataError, and a level or another option
that makes no sense raises UsageError.

Reference:
    T. Tango, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17 (1998) 891-908.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import isinf, isnan, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from onnxcompress.errors import DataError, UsageError

FloatArray = npt.NDArray[np.float64]

# The jackknife behind BCa's acceleration costs n² per interval, and its correction shrinks with √n.
_BCA_LIMIT = 10_000
# Resampled values held at once: 32 MiB of float64, and as much again of indices.
_VALUES_PER_BATCH = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval at ``level``, in the unit of what it is about."""

    low: float
    high: float
    level: float
    method: str

    def bounds(self) -> list[float | str | None]:
        """Both ends in a form that strict JSON can hold."""
        return [json_number(self.low), json_number(self.high)]

    def to_dict(self) -> dict[str, Any]:
        """The interval as JSON-serialisable values."""
        low, high = self.bounds()
        return {"low": low, "high": high, "level": self.level, "method": self.method}


@dataclass(frozen=True)
class Estimate:
    """A measured value and its confidence interval."""

    value: float
    interval: Interval

    def to_dict(self) -> dict[str, Any]:
        """The estimate as JSON-serialisable values."""
        return {"value": json_number(self.value), "interval": self.interval.to_dict()}


def json_number(value: float) -> float | str | None:
    """``value`` for strict JSON, which knows no infinity: ``"inf"``, ``"-inf"``; NaN is null."""
    value = float(value)
    if isnan(value):
        return None
    return str(value) if isinf(value) else value


def proportion_interval(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion.

    Args:
        successes: How many of the samples are right.
        n: How many samples there are, at least one.
        level: Confidence level between 0 and 1.

    Returns:
        The interval for the proportion, within [0, 1].
    """
    _check_level(level)
    if not 0 <= successes <= n or n < 1:
        raise DataError(f"{successes} successes of {n} samples: give at least one sample")
    ends = stats.binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    return Interval(max(0.0, float(ends.low)), min(1.0, float(ends.high)), level, "wilson")


def tango_interval(
    only_before_right: int, only_after_right: int, n: int, *, level: float = 0.95
) -> Interval:
    """Tango's score interval for the accuracy lost, measured on the same samples.

    The interval holds every difference δ that the score test of p_before - p_after = δ does not
    reject. With no disagreement at all it is ±z²/(n + z²), not empty as a Wald interval would be.

    Args:
        only_before_right: Samples that only the network before is right about.
        only_after_right: Samples that only the network after is right about.
        n: All samples, those included on which both agree.
        level: Confidence level between 0 and 1.

    Returns:
        The interval for p_before - p_after within [-1, 1]; positive means accuracy lost.
    """
    _check_counts(only_before_right, only_after_right, n)
    z = _normal_quantile(level)
    # The lower end is the upper end of the swapped comparison: exact symmetry by construction.
    low = -_tango_upper(only_after_right, only_before_right, n, z)
    return Interval(low, _tango_upper(only_before_right, only_after_right, n, z), level, "tango")


def samples_for_half_width(
    only_before_right: int,
    only_after_right: int,
    n: int,
    *,
    points: float,
    level: float = 0.95,
) -> int:
    """How many paired samples Tango's interval needs to become as narrow as wanted.

    Approximate: it supposes that the networks go on disagreeing at the observed rates.

    Args:
        only_before_right: Samples that only the network before is right about.
        only_after_right: Samples that only the network after is right about.
        n: All samples, those included on which both agree.
        points: The wanted half-width in percentage points, between 0 and 100.
        level: Confidence level between 0 and 1.

    Returns:
        The smallest number of samples at which the half-width is at most ``points``.
    """
    _check_counts(only_before_right, only_after_right, n)
    z = _normal_quantile(level)
    if not 0.0 < points < 100.0:
        raise UsageError(f"a half-width of {points} points: give more than 0 and less than 100")

    def too_wide(samples: int) -> bool:
        b, c = only_before_right * samples / n, only_after_right * samples / n
        width = _tango_upper(b, c, samples, z) + _tango_upper(c, b, samples, z)
        return 50.0 * width > points

    enough = 1
    while too_wide(enough):
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        too_few, enough = (middle, enough) if too_wide(middle) else (too_few, middle)
    return enough


def bootstrap_mean_difference(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 9999,
) -> Interval:
    """Paired bootstrap interval for mean(before) - mean(after), BCa where it exists.

    Args:
        before: Scores [N] of the network before.
        after: Scores [N] of the network after, on the same samples.
        seed: Seed of the resampling.
        level: Confidence level between 0 and 1.
        resamples: How many resamples are drawn.

    Returns:
        The interval in the unit of the scores. It has no width when all differences are equal,
        hence also for a single sample; it is a percentile interval where BCa is undefined, and
        above 10,000 samples, where the two hardly differ.
    """
    pairs = _paired_samples(before, after)

    def mean(differences: FloatArray, axis: int) -> Any:
        return np.mean(differences, axis=axis)

    # To resample the differences is to resample the pairs, at half the cost.
    return _bootstrap((pairs[0] - pairs[1],), mean, level, seed, resamples, smooth=True)


def bootstrap_snr(
    signal: npt.ArrayLike,
    noise: npt.ArrayLike,
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 9999,
) -> Interval:
    """Bootstrap interval for the signal-to-noise ratio 10·log10(Σ signal / Σ noise).

    Args:
        signal: Energy [N] of the reference output of every sample.
        noise: Energy [N] of the difference to it.
        seed: Seed of the resampling.
        level: Confidence level between 0 and 1.
        resamples: How many resamples are drawn.

    Returns:
        The interval in dB; an end is infinite where a resample may hold no noise (or no signal).
    """
    pairs = _paired_samples(signal, noise)

    # The share of noise is finite where the ratio is not, and orders the resamples the same way.
    def noise_share(s: FloatArray, d: FloatArray, axis: int) -> Any:
        total = np.sum(s, axis=axis) + np.sum(d, axis=axis)
        return np.sum(d, axis=axis) / np.where(total > 0.0, total, 1.0)

    share = _bootstrap(pairs, noise_share, level, seed, resamples, smooth=True)
    ends = np.array([share.high, share.low])
    with np.errstate(divide="ignore"):
        low, high = 10.0 * np.log10((1.0 - ends) / ends)
    return Interval(float(low), float(high), level, share.method)


def bootstrap_statistic(
    samples: npt.ArrayLike,
    statistic: str = "median",
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 9999,
) -> Interval:
    """Bootstrap interval for a quantile of latency samples.

    A percentile interval: the jackknife that BCa rests on is inconsistent for quantiles. No
    interval for a quantile reaches beyond the samples, so p95 wants a hundred of them or more.

    Args:
        samples: Measurements [N], in any unit.
        statistic: ``median``, or ``pQ`` with a percentage, such as ``p95``.
        seed: Seed of the resampling.
        level: Confidence level between 0 and 1.
        resamples: How many resamples are drawn.

    Returns:
        The interval in the unit of the samples.
    """
    q = _quantile_of(statistic)
    (values,) = _paired_samples(samples)

    def quantile(x: FloatArray, axis: int) -> Any:
        return np.quantile(x, q, axis=axis)

    return _bootstrap((values,), quantile, level, seed, resamples, smooth=False)


def bootstrap_ratio(
    rounds_a: npt.ArrayLike,
    rounds_b: npt.ArrayLike,
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = 9999,
) -> Estimate:
    """How much longer B takes than A: the median over rounds of b/a, with its interval.

    A and B are measured in turn within every round, so a disturbance that lasts for a round hits
    both and cancels in the ratio; whole rounds are resampled.

    Args:
        rounds_a: Median latency [R] of A in every round, above zero.
        rounds_b: Median latency [R] of B in the same rounds.
        seed: Seed of the resampling.
        level: Confidence level between 0 and 1.
        resamples: How many resamples are drawn.

    Returns:
        The median ratio (below one where B is faster) and its percentile interval.
    """
    a, b = _paired_samples(rounds_a, rounds_b)
    if np.any(a <= 0.0) or np.any(b <= 0.0):
        raise DataError("a round took no time at all: measure more runs per round")
    ratios = b / a
    interval = bootstrap_statistic(ratios, seed=seed, level=level, resamples=resamples)
    return Estimate(float(np.median(ratios)), interval)


def _tango_upper(b: float, c: float, n: float, z: float) -> float:
    """The largest δ in [-1, 1] with (b - c - nδ) / √(n(2·p21 + δ(1 - δ))) >= -z (Tango 1998).

    p21 is the maximum-likelihood estimate under p12 - p21 = δ, the larger root of
    2n·x² + (-b - c + (2n - b + c)δ)·x - cδ(1 - δ) = 0.
    """
    # Where all pairs fall into one cell the statistic is 0/0 at the estimate: solved by hand.
    if b == n:
        return 1.0
    if b == c == 0:
        return z * z / (n + z * z)
    if c == n:
        return (z * z - n) / (n + z * z)

    def excess(delta: float) -> float:
        linear = -b - c + (2.0 * n - b + c) * delta
        constant = -c * delta * (1.0 - delta)
        root = sqrt(max(0.0, linear * linear - 8.0 * n * constant))
        # The root as written cancels when the linear term is positive: use its conjugate there.
        p21 = (root - linear) / (4.0 * n) if linear <= 0.0 else -2.0 * constant / (root + linear)
        return b - c - n * delta + z * sqrt(max(0.0, n * (2.0 * p21 + delta * (1.0 - delta))))

    return float(optimize.brentq(excess, (b - c) / n, 1.0, xtol=1e-15, rtol=1e-14))


def _bootstrap(
    data: tuple[FloatArray, ...],
    statistic: Callable[..., Any],
    level: float,
    seed: int,
    resamples: int,
    *,
    smooth: bool,
) -> Interval:
    """BCa interval for a smooth statistic, percentile where that is undefined or too costly."""
    _check_level(level)
    n = data[0].size
    alone = statistic(*(values[:, np.newaxis] for values in data), axis=1)
    if np.all(alone == alone[0]):
        return Interval(float(alone[0]), float(alone[0]), level, "bootstrap of equal samples")
    for method in ("BCa", "percentile") if smooth and n <= _BCA_LIMIT else ("percentile",):
        with warnings.catch_warnings():
            # BCa is undefined where all resamples lie on one side: seen in its result below.
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            ends = stats.bootstrap(
                data,
                statistic,
                paired=True,
                vectorized=True,
                n_resamples=resamples,
                batch=max(1, _VALUES_PER_BATCH // n),
                confidence_level=level,
                method=method,
                # The keyword `rng` is younger than the oldest SciPy that is supported.
                random_state=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite([ends.low, ends.high]).all():
            break
    return Interval(float(ends.low), float(ends.high), level, f"{method} bootstrap")


def _paired_samples(*samples: npt.ArrayLike) -> tuple[FloatArray, ...]:
    """The samples as float64 vectors of one length."""
    vectors = tuple(np.asarray(values, dtype=np.float64) for values in samples)
    shapes = {vector.shape for vector in vectors}
    if len(shapes) != 1 or vectors[0].ndim != 1 or not vectors[0].size:
        found = ", ".join(str(vector.shape) for vector in vectors)
        raise DataError(f"samples of shape {found}: give non-empty vectors of the same length")
    if not all(np.isfinite(vector).all() for vector in vectors):
        raise DataError("the samples hold NaN or infinite values: leave them out or repair them")
    return vectors


def _quantile_of(statistic: str) -> float:
    """The quantile, between 0 and 1, that ``median`` or ``p95`` stands for."""
    if statistic == "median":
        return 0.5
    match = re.fullmatch(r"p(\d+(?:\.\d+)?)", statistic)
    if match is None or not 0.0 < float(match[1]) < 100.0:
        raise UsageError(f"unknown statistic {statistic!r}: use median, or pQ such as p95")
    return float(match[1]) / 100.0


def _check_counts(only_before_right: int, only_after_right: int, n: int) -> None:
    if min(only_before_right, only_after_right) < 0 or only_before_right + only_after_right > n:
        found = f"{only_before_right} and {only_after_right}"
        raise DataError(f"{found} disagreements of {n} samples: counts must add up to n at most")
    if n < 1:
        raise DataError("no samples were compared: give at least one")


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise UsageError(f"a confidence level of {level}: give one between 0 and 1, such as 0.95")


def _normal_quantile(level: float) -> float:
    """Give z such that a standard normal variable lies within ±z with probability ``level``."""
    _check_level(level)
    return float(stats.norm.ppf(0.5 + 0.5 * level))
