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

from dataclasses import dataclass
from math import isinf, isnan, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from onnxcompress.errors import DataError, UsageError

FloatArray = npt.NDArray[np.float64]


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
    check_level(level)
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


def samples_for_upper_end(
    only_before_right: int,
    only_after_right: int,
    n: int,
    *,
    limit: float,
    level: float = 0.95,
) -> int:
    """How many paired samples Tango's interval needs to end below a drop.

    Approximate: it supposes that the networks go on disagreeing at the observed rates.

    Args:
        only_before_right: Samples that only the network before is right about.
        only_after_right: Samples that only the network after is right about.
        n: All samples, those included on which both agree.
        limit: The drop in percentage points, above the observed one and at most 100.
        level: Confidence level between 0 and 1.

    Returns:
        The smallest number of samples at which the upper end is at most ``limit``.

    Raises:
        UsageError: The limit is no larger than what was observed: no number of samples will do.
    """
    _check_counts(only_before_right, only_after_right, n)
    z = _normal_quantile(level)
    observed = 100.0 * (only_before_right - only_after_right) / n
    if not observed < limit <= 100.0:
        raise UsageError(
            f"an upper end of {limit:g} points, of a drop of {observed:g}: out of reach"
        )

    def too_wide(samples: int) -> bool:
        b, c = only_before_right * samples / n, only_after_right * samples / n
        return 100.0 * _tango_upper(b, c, samples, z) > limit

    enough = 1
    while too_wide(enough):
        enough *= 2
    too_few = enough // 2
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        too_few, enough = (middle, enough) if too_wide(middle) else (too_few, middle)
    return enough


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


def _check_counts(only_before_right: int, only_after_right: int, n: int) -> None:
    if min(only_before_right, only_after_right) < 0 or only_before_right + only_after_right > n:
        found = f"{only_before_right} and {only_after_right}"
        raise DataError(f"{found} disagreements of {n} samples: counts must add up to n at most")
    if n < 1:
        raise DataError("no samples were compared: give at least one")


def check_level(level: float) -> None:
    """Refuse a confidence level outside (0, 1)."""
    if not 0.0 < level < 1.0:
        raise UsageError(f"a confidence level of {level}: give one between 0 and 1, such as 0.95")


def _normal_quantile(level: float) -> float:
    """Give z such that a standard normal variable lies within ±z with probability ``level``."""
    check_level(level)
    return float(stats.norm.ppf(0.5 + 0.5 * level))
