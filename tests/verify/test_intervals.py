from __future__ import annotations

import json
from math import comb, inf, nan, sqrt

import numpy as np
import pytest
from scipy import optimize, special

from onnxcompress.errors import DataError, UsageError
from onnxcompress.verify.intervals import (
    Estimate,
    Interval,
    json_number,
    proportion_interval,
    samples_for_upper_end,
    tango_interval,
)

Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution, from tables


def constrained_p21(b, c, n, delta):
    """Maximises the multinomial likelihood under p12 - p21 = delta by search."""

    def minus_log_likelihood(p21):
        p12, rest = p21 + delta, 1.0 - 2.0 * p21 - delta
        return -float(
            special.xlogy(b, max(p12, 0.0))
            + special.xlogy(c, max(p21, 0.0))
            + special.xlogy(n - b - c, max(rest, 0.0))
        )

    bounds = (max(0.0, -delta), (1.0 - delta) / 2.0)
    found = optimize.minimize_scalar(
        minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-12}
    )
    # The search never tries the bounds themselves, where the maximum is when a count is zero.
    return min((found.x, *bounds), key=minus_log_likelihood)


def score_statistic(b, c, n, delta):
    p21 = constrained_p21(b, c, n, delta)
    variance = max((2.0 * p21 + delta * (1.0 - delta)) / n, 1e-300)
    return ((b - c) / n - delta) / sqrt(variance)


def brute_force_tango(b, c, n):
    """Bisects the outermost differences that the score test at 5 % does not reject."""

    def bisect(rejected, accepted):
        for _ in range(50):
            middle = (rejected + accepted) / 2.0
            if abs(score_statistic(b, c, n, middle)) > Z:
                rejected = middle
            else:
                accepted = middle
        return (rejected + accepted) / 2.0

    inside = (b - c) / n
    return bisect(-1.0, inside), bisect(1.0, inside)


@pytest.mark.parametrize(
    ("b", "c", "n"),
    [(1, 7, 21), (12, 5, 1000), (3, 3, 7), (3, 2, 5), (4, 0, 100), (0, 4, 30), (0, 0, 50)],
)
def test_tango_matches_brute_force_likelihood(b, c, n):
    low, high = brute_force_tango(b, c, n)
    found = tango_interval(b, c, n)
    # The search finds the flat top of the likelihood to √eps of p21, which moves T by as much.
    assert found.low == pytest.approx(low, abs=1e-6)
    assert found.high == pytest.approx(high, abs=1e-6)
    assert (found.level, found.method) == (0.95, "tango")


def test_oracle_is_the_score_test_of_the_likelihood():
    """Rao's statistic from the derivative of the likelihood and the inverted information."""
    b, c, n, delta = 9, 4, 60, -0.03
    p21 = constrained_p21(b, c, n, delta)
    p12, rest = p21 + delta, 1.0 - 2.0 * p21 - delta
    slope = b / p12 - (n - b - c) / rest
    jacobian = np.array([[1.0, 1.0], [0.0, 1.0], [-1.0, -2.0]])  # cells by (delta, p21)
    information = n * jacobian.T @ np.diag([1.0 / p12, 1.0 / p21, 1.0 / rest]) @ jacobian
    rao = slope * sqrt(np.linalg.inv(information)[0, 0])
    # p21 is known to about √eps, relative to slopes of order n/p.
    assert rao == pytest.approx(score_statistic(b, c, n, delta), abs=1e-4)


def test_tango_published_example():
    # Airway hyper-responsiveness before and after transplantation (Bentur et al. 2009: 1, 1, 7,
    # 12), as worked by Fagerland, Lydersen and Laake, Stat. Med. 33 (2014): -0.517 to -0.026.
    found = tango_interval(1, 7, 21)
    assert (round(found.low, 3), round(found.high, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize(("b", "c", "n"), [(1, 7, 21), (12, 5, 1000), (5, 0, 5), (3, 0, 7)])
def test_tango_is_antisymmetric(b, c, n):
    one, other = tango_interval(b, c, n), tango_interval(c, b, n)
    assert (one.low, one.high) == (-other.high, -other.low)
    assert -1.0 <= one.low < (b - c) / n <= one.high <= 1.0


def test_tango_without_disagreement_is_not_empty():
    found = tango_interval(0, 0, 1000)
    # z²/(n + z²), solved by hand; z² = 3.8414588
    assert found.high == pytest.approx(3.841458820694124 / 1003.841458820694124, rel=1e-12)
    assert found.low == -found.high
    assert round(100 * found.high, 2) == 0.38


@pytest.mark.parametrize("n", [1, 5, 40])
def test_tango_total_disagreement(n):
    found = tango_interval(n, 0, n)
    # There p21 = (1 - d)/2, so T² = n(1 - d)/(1 + d); brute force cannot divide 0 by 0 at d = 1.
    assert found.low == pytest.approx((n - Z**2) / (n + Z**2), abs=1e-12)
    assert found.high == 1.0


def test_tango_approaches_wald_for_many_samples():
    b, c, n = 30_000, 20_000, 1_000_000
    half = Z * sqrt((b + c) / n - ((b - c) / n) ** 2) / sqrt(n)
    found = tango_interval(b, c, n)
    # The intervals differ by O(z²/n) = 4e-6 of a half-width of 4.4e-4.
    assert found.low == pytest.approx(0.01 - half, abs=4e-6)
    assert found.high == pytest.approx(0.01 + half, abs=4e-6)


def test_tango_level_widens():
    ends = [tango_interval(12, 5, 300, level=level).high for level in (0.8, 0.9, 0.95, 0.99)]
    assert ends == sorted(set(ends))


@pytest.mark.parametrize(("n", "p12", "p21"), [(50, 0.1, 0.04), (40, 0.1, 0.02), (50, 0.03, 0.01)])
def test_tango_coverage_by_enumeration(n, p12, p21):
    """Exact coverage: every table of n pairs, weighted by its probability."""
    covered = covered_by_wald = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            probability = (
                comb(n, b) * comb(n - b, c) * p12**b * p21**c * (1 - p12 - p21) ** (n - b - c)
            )
            if probability < 1e-9:  # 1,326 tables at most: no more than 2e-6 in all
                continue
            found = tango_interval(b, c, n)
            covered += probability * (found.low <= p12 - p21 <= found.high)
            wald = Z * sqrt(max(0.0, (b + c) / n - ((b - c) / n) ** 2) / n)
            covered_by_wald += probability * (abs((b - c) / n - (p12 - p21)) <= wald)
    # A score interval of counts scatters about its level, upwards where disagreements are rare.
    assert 0.945 <= covered <= 0.99
    assert covered_by_wald < 0.94


def test_samples_for_upper_end_is_the_smallest():
    b, c, n, limit = 12, 5, 1000, 1.2
    samples = samples_for_upper_end(b, c, n, limit=limit)

    def upper(m):
        return 100.0 * brute_force_tango(b * m / n, c * m / n, m)[1]

    assert upper(samples) <= limit * (1 + 1e-5)
    assert upper(samples - 1) > limit * (1 - 1e-5)
    # The distance from the drop changes by half its relative change in n: a clear bracket.
    assert upper(samples - 30) > limit > upper(samples + 30)


@pytest.mark.parametrize(("b", "c", "n"), [(12, 5, 1000), (4, 1, 797), (30, 30, 200)])
def test_what_does_not_fit_yet_takes_more_samples(b, c, n):
    """And what fits already takes no more; the interval is not symmetric about the drop."""
    upper = 100.0 * tango_interval(b, c, n).high
    assert samples_for_upper_end(b, c, n, limit=upper * 0.98) > n
    assert samples_for_upper_end(b, c, n, limit=upper * 1.02) < n


def test_samples_for_upper_end_without_disagreement():
    # z²/(n + z²) <= u is solved by n = z²(1/u - 1) = 764.45
    assert samples_for_upper_end(0, 0, 100, limit=0.5) == 765


@pytest.mark.parametrize(
    ("limit", "level"), [(10.0, 0.95), (-1.0, 0.95), (101.0, 0.95), (nan, 0.95), (11.0, 1.0)]
)
def test_samples_for_upper_end_refuses(limit, level):
    """One sample in ten is lost: an upper end of ten points is out of reach."""
    with pytest.raises(UsageError):
        samples_for_upper_end(2, 1, 10, limit=limit, level=level)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 7), (926, 1000)])
def test_wilson_matches_its_quadratic(k, n):
    # (p̂ - p)² = z² p(1 - p)/n, solved for p
    roots = np.sort(np.roots([n + Z**2, -(2 * k + Z**2), k**2 / n]).real)
    found = proportion_interval(k, n)
    np.testing.assert_allclose([found.low, found.high], roots, atol=1e-9)
    assert 0.0 <= found.low <= k / n <= found.high <= 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: tango_interval(1, 1, 0),
        lambda: tango_interval(0, 0, 0),
        lambda: tango_interval(6, 5, 10),
        lambda: tango_interval(-1, 5, 10),
        lambda: proportion_interval(0, 0),
        lambda: proportion_interval(4, 3),
    ],
)
def test_impossible_samples_are_refused(call):
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("level", [0.0, 1.0, 95, nan])
def test_impossible_levels_are_refused(level):
    for call in (
        lambda: tango_interval(1, 2, 10, level=level),
        lambda: proportion_interval(1, 10, level=level),
    ):
        with pytest.raises(UsageError):
            call()


def test_json_knows_no_infinity():
    assert [json_number(x) for x in (inf, -inf, nan, 1.5)] == ["inf", "-inf", None, 1.5]
    interval = Interval(np.float64(1.0), inf, 0.95, "tango")
    text = json.dumps(Estimate(2.0, interval).to_dict(), allow_nan=False)
    assert json.loads(text) == {
        "value": 2.0,
        "interval": {"low": 1.0, "high": "inf", "level": 0.95, "method": "tango"},
    }
