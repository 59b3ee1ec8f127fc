"""Two networks that are no classifiers: the signal-to-noise ratio of the worst output."""

from __future__ import annotations

import json
from math import inf, log10, nan

import numpy as np
import pytest

from onnxcompress.verify.bootstrap import bootstrap_snr
from onnxcompress.verify.comparison import Comparison
from onnxcompress.verify.metrics import parse_metric

AGREEMENT = parse_metric("agreement")


def images(seed=0, n=12):
    """Two outputs of a network that is no classifier, and a candidate's; q is the worse."""
    rng = np.random.default_rng(seed)
    p, q = rng.normal(size=(n, 3, 4, 5)), rng.normal(size=(n, 2, 6))
    noisy_p = p + 0.01 * rng.normal(size=p.shape)
    noisy_q = q + 0.1 * rng.normal(size=q.shape) * rng.uniform(0.5, 1.5, (n, 1, 1))
    return [p, q], [noisy_p, noisy_q]


def energies(a, b):
    axes = tuple(range(1, a.ndim))
    return np.sum(a**2, axis=axes), np.sum((a - b) ** 2, axis=axes)


def test_snr_of_the_worst_output():
    reference, candidate = images()
    comparison = Comparison(AGREEMENT, ["p", "q"], seed=2)
    for part in (slice(0, 5), slice(5, 12)):
        comparison.accumulate([x[part] for x in reference], [x[part] for x in candidate])
    signal, noise = energies(reference[1], candidate[1])
    after = comparison.after
    assert (after.name, after.n) == ("snr", 12)
    assert after.value == pytest.approx(10 * log10(signal.sum() / noise.sum()), rel=1e-13)
    expected = bootstrap_snr(signal, noise, seed=2)
    np.testing.assert_allclose(
        [after.interval.low, after.interval.high], [expected.low, expected.high], rtol=1e-12
    )
    assert comparison.drop is None
    assert (comparison.before.value, comparison.before.n) == (inf, 12)
    intervals = comparison.snr_intervals(level=0.9)
    expected = bootstrap_snr(*energies(reference[0], candidate[0]), seed=2, level=0.9)
    assert list(intervals) == ["p", "q"]
    assert intervals["p"].low == pytest.approx(expected.low, rel=1e-12)


def test_snr_judgement():
    reference, candidate = images()
    comparison = Comparison(AGREEMENT, ["p", "q"], seed=2)
    comparison.accumulate(reference, candidate)
    value = comparison.after.value
    assert comparison.passes(0.0, min_snr=value - 1e-6).ok
    refused = comparison.passes(100.0, min_snr=value + 1e-6)
    assert not refused.ok
    assert refused.reason.startswith("output 'q' has a signal-to-noise ratio of")
    low = comparison.snr_intervals(level=0.9)["q"].low
    assert low < value
    assert comparison.passes(0.0, min_snr=low - 1e-6, confidence=0.9).ok
    assert not comparison.passes(0.0, min_snr=low + 1e-6, confidence=0.9).ok
    unbounded = comparison.passes(100.0)
    assert not unbounded.ok
    assert "set --min-snr" in unbounded.reason


def test_snr_of_equal_networks():
    reference, _ = images()
    comparison = Comparison(AGREEMENT, ["p", "q"], seed=2)
    comparison.accumulate(reference, [x.copy() for x in reference])
    assert comparison.after.value == inf
    assert comparison.passes(0.0).ok
    assert comparison.passes(0.0, min_snr=200.0, confidence=0.95).ok
    assert json.loads(json.dumps(comparison.after.to_dict(), allow_nan=False)) == {
        "name": "snr",
        "value": "inf",
        "ci95": ["inf", "inf"],
        "n": 12,
    }


def test_snr_counts_exact_outputs():
    reference, _ = images()
    index = np.arange(12)
    changed = index.copy()
    changed[3:6] = 0
    comparison = Comparison(AGREEMENT, ["p", "index"], seed=2)
    comparison.accumulate([reference[0], index], [reference[0], changed])
    assert comparison.after.value == pytest.approx(10 * log10(12 / 3), rel=1e-14)
    assert not comparison.passes(0.0, min_snr=20.0).ok


def test_broken_snr_is_reported_and_fails():
    reference, candidate = images()
    candidate[0][4, 0, 0, 0] = nan
    comparison = Comparison(AGREEMENT, ["p", "q"], seed=2)
    comparison.accumulate(reference, candidate)
    assert comparison.after.value == -inf
    assert comparison.after.interval.low == -inf
    assert not comparison.passes(0.0, min_snr=-100.0).ok


def test_snr_of_one_sample_is_no_confidence():
    reference, candidate = images(n=1)
    comparison = Comparison(AGREEMENT, ["p", "q"], seed=2)
    comparison.accumulate(reference, candidate)
    assert comparison.passes(0.0, min_snr=5.0).ok
    assert not comparison.passes(0.0, min_snr=5.0, confidence=0.95).ok


def test_results_are_reproducible_and_depend_on_the_seed():
    reference, candidate = images()

    def interval(seed):
        comparison = Comparison(AGREEMENT, ["p", "q"], seed=seed)
        comparison.accumulate(reference, candidate)
        return comparison.after.interval

    assert interval(1) == interval(1)
    assert interval(1) != interval(2)
