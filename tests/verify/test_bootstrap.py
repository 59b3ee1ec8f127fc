from __future__ import annotations

from math import inf, log, nan, sqrt

import numpy as np
import pytest
from scipy import stats

from onnxcompress.errors import DataError, UsageError
from onnxcompress.verify.bootstrap import (
    bootstrap_mean_difference,
    bootstrap_ratio,
    bootstrap_snr,
    bootstrap_statistic,
)
from onnxcompress.verify.intervals import Estimate

Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution, from tables


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_mean_difference([], [], seed=0),
        lambda: bootstrap_mean_difference([1.0, 2.0], [1.0], seed=0),
        lambda: bootstrap_mean_difference([1.0, nan], [1.0, 2.0], seed=0),
        lambda: bootstrap_statistic([[1.0, 2.0]], seed=0),
        lambda: bootstrap_ratio([1.0, 0.0], [1.0, 1.0], seed=0),
        lambda: bootstrap_snr([1.0, inf], [1.0, 1.0], seed=0),
    ],
)
def test_impossible_samples_are_refused(call):
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("level", [0.0, 1.0, 95, nan])
def test_impossible_levels_are_refused(level):
    for call in (
        lambda: bootstrap_mean_difference([1.0, 1.0], [1.0, 1.0], seed=0, level=level),
        lambda: bootstrap_statistic([1.0, 2.0], seed=0, level=level),
    ):
        with pytest.raises(UsageError):
            call()


def bca_of_mean(d, level, seed, resamples):
    """Efron's BCa written out, with the mean's jackknife in closed form."""
    rng = np.random.default_rng(seed)
    means = np.sort([d[rng.integers(d.size, size=d.size)].mean() for _ in range(resamples)])
    below = np.mean(means < d.mean()) + 0.5 * np.mean(means == d.mean())
    bias = stats.norm.ppf(below)
    spread = d - d.mean()  # the jackknife values are mean - spread/(n - 1)
    acceleration = np.sum(spread**3) / (6.0 * np.sum(spread**2) ** 1.5)
    tails = bias + stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    return np.quantile(means, stats.norm.cdf(bias + tails / (1.0 - acceleration * tails)))


def test_mean_difference_is_bca_of_the_paired_differences():
    rng = np.random.default_rng(3)
    after = rng.normal(5.0, 100.0, 40)  # its spread cancels only if pairs stay together
    d = np.exp(1.2 * stats.norm.ppf((np.arange(40) + 0.5) / 40))  # quantiles of a skewed law
    rng.shuffle(d)
    found = bootstrap_mean_difference(after + d, after, seed=7)
    error = d.std(ddof=1) / sqrt(40)
    # An end is an order statistic near the 0.5 % to 5 % tail of 9,999: known to 0.03 to 0.06
    # standard errors, more in the stretched upper tail; BCa itself shifts it by about half of one.
    expected = bca_of_mean(d, 0.95, 11, 9999)
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.25 * error)
    assert found.method == "BCa bootstrap"
    percentile = np.quantile([rng.choice(d, 40).mean() for _ in range(9999)], [0.025, 0.975])
    assert np.all(expected - percentile > 0.25 * error)  # so the comparison tells the two apart


def test_mean_difference_is_reproducible_and_depends_on_the_seed():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 30))
    one = bootstrap_mean_difference(before, after, seed=1, resamples=500)
    assert bootstrap_mean_difference(before, after, seed=1, resamples=500) == one
    assert bootstrap_mean_difference(before, after, seed=2, resamples=500) != one


def test_bootstrap_level_is_the_share_of_resamples_inside():
    d = np.tile([1.0, -1.0], 200)  # standard error 1/20, no skew
    for level, z in ((0.5, 0.6744897501960817), (0.95, Z)):
        found = bootstrap_mean_difference(d, np.zeros_like(d), seed=0, level=level)
        assert found.level == level
        # The mean moves in steps of 2/400, a tenth of a standard error; 9,999 resamples add 0.03.
        np.testing.assert_allclose(20.0 * np.array([found.low, found.high]), [-z, z], atol=0.15)


@pytest.mark.parametrize("n", [1, 6])
def test_equal_differences_have_no_width(n):
    before = 0.5 * np.arange(n)
    found = bootstrap_mean_difference(before, before - 0.25, seed=0)
    assert (found.low, found.high) == (0.25, 0.25)


def test_many_samples_fall_back_to_percentiles():
    # ±1 in equal numbers: mean 0, standard error 1/√n, no skew
    d = np.tile([1.0, -1.0], 5001)
    found = bootstrap_mean_difference(d, np.zeros_like(d), seed=0, resamples=999)
    assert found.method == "percentile bootstrap"
    # 999 resamples know the 2.5 % tail to √(.025·.975/999)/φ(1.96) = 0.085 standard errors
    np.testing.assert_allclose(
        np.array([found.low, found.high]) * sqrt(d.size), [-Z, Z], atol=4 * 0.085
    )


def test_snr_interval_matches_percentiles_of_resampled_sums():
    rng = np.random.default_rng(5)
    signal = rng.uniform(90.0, 110.0, 60)
    noise = rng.uniform(0.5, 1.5, 60) * signal / 100.0
    found = bootstrap_snr(signal, noise, seed=3)
    picks = rng.integers(60, size=(9999, 60))
    ratios = 10.0 * np.log10(signal[picks].sum(axis=1) / noise[picks].sum(axis=1))
    # Nearly symmetric data: BCa and percentile agree to about 0.1 of the spread, as do two seeds.
    np.testing.assert_allclose(
        [found.low, found.high], np.quantile(ratios, [0.025, 0.975]), atol=0.2 * ratios.std()
    )


def test_snr_interval_at_the_extremes():
    silent = bootstrap_snr([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], seed=0)
    assert (silent.low, silent.high) == (inf, inf)
    drowned = bootstrap_snr([0.0, 0.0], [1.0, 2.0], seed=0)
    assert (drowned.low, drowned.high) == (-inf, -inf)
    sometimes = bootstrap_snr([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0], seed=0)
    assert sometimes.high == inf
    # no resample is worse than all four being the noisy one: 0 dB
    assert 0.0 <= sometimes.low < 10 * log(4) / log(10)


@pytest.mark.parametrize(("statistic", "q"), [("median", 0.5), ("p95", 0.95), ("p12.5", 0.125)])
def test_quantile_interval_matches_order_statistics(statistic, q):
    samples = np.random.default_rng(9).exponential(size=401)
    found = bootstrap_statistic(samples, statistic, seed=4)
    # The bootstrap of a quantile is a binomial count of order statistics: the ends lie at the
    # ranks whose binomial tail is 2.5 %, give or take two ranks for interpolation and resampling.
    ordered = np.sort(samples)
    for end, tail in ((found.low, 0.025), (found.high, 0.975)):
        rank = int(stats.binom.ppf(tail, 401, q))
        assert ordered[rank - 3] <= end <= ordered[rank + 2]
    assert found.low < np.quantile(samples, q) < found.high


@pytest.mark.parametrize("statistic", ["mean", "p0", "p100", "95", "p-5", "p"])
def test_unknown_statistics_are_refused(statistic):
    with pytest.raises(UsageError, match="unknown statistic"):
        bootstrap_statistic([1.0, 2.0], statistic, seed=0)


def test_ratio_is_paired_by_round():
    rng = np.random.default_rng(2)
    disturbance = rng.uniform(1.0, 10.0, 25)  # hits both networks of a round alike
    ratios = rng.uniform(0.58, 0.62, 25)
    found = bootstrap_ratio(disturbance, disturbance * ratios, seed=1)
    assert isinstance(found, Estimate)
    # a·r/a is r to one unit in the last place
    assert found.value == pytest.approx(np.sort(ratios)[12], rel=1e-15)
    assert 0.58 <= found.interval.low < found.value < found.interval.high <= 0.62
    swapped = bootstrap_ratio(disturbance * ratios, disturbance, seed=1)
    assert swapped.value == pytest.approx(1 / np.sort(ratios)[12], rel=1e-15)
