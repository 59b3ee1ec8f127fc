"""Two networks under a metric of scores: the drop has an interval of the paired bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.verify.bootstrap import bootstrap_mean_difference
from onnxcompress.verify.comparison import Comparison


@pytest.fixture
def scored(handed_through):
    """A comparison under a user's metric that hands the output through."""

    def make(before, after):
        comparison = Comparison(handed_through, ["y"], seed=5)
        comparison.accumulate([np.asarray(before)], [np.asarray(after)])
        return comparison

    return make


def test_scores_use_the_paired_bootstrap(scored):
    rng = np.random.default_rng(1)
    before = rng.uniform(size=40)
    after = before - rng.uniform(0.0, 0.02, 40)
    comparison = scored(before, after)
    expected = bootstrap_mean_difference(before, after, seed=5)
    drop = comparison.drop
    assert drop.points == pytest.approx(100 * np.sum(before - after) / 40, rel=1e-14)
    assert (drop.interval.low, drop.interval.high) == (100 * expected.low, 100 * expected.high)
    assert (drop.method, drop.only_before_right, drop.only_after_right) == (
        "paired bootstrap",
        None,
        None,
    )
    assert comparison.before.value == pytest.approx(before.sum() / 40, rel=1e-14)
    assert comparison.after.value == pytest.approx(after.sum() / 40, rel=1e-14)
    upper = 100 * bootstrap_mean_difference(before, after, seed=5, level=0.8).high
    assert comparison.passes(upper + 1e-6, confidence=0.8).ok
    assert not comparison.passes(upper - 1e-6, confidence=0.8).ok


def test_scores_of_zero_and_one_are_right_or_wrong(scored):
    assert scored([1.0, 1.0, 0.0], [1.0, 0.0, 0.0]).drop.method == "tango"
    assert scored([1.0, 1.0, 0.0], [1.0, 0.5, 0.0]).drop.method == "paired bootstrap"


def test_one_score_is_no_confidence(scored):
    comparison = scored([0.5], [0.5])
    assert comparison.passes(1.0).ok
    assert not comparison.passes(1.0, confidence=0.95).ok
