"""Bootstrap intervals: of a mean difference, a signal-to-noise ratio, a quantile, a ratio."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from onnxcompress.errors import DataError, UsageError
from onnxcompress.verify.intervals import Estimate, FloatArray, Interval, check_level

# The jackknife behind BCa's acceleration costs n² per interval, and its correction shrinks with √n.
_BCA_LIMIT = 10_000


# Resampled values held at once: 32 MiB of float64, and as much again of indices.
_VALUES_PER_BATCH = 1 << 22


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
    check_level(level)
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
