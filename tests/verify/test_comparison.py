"""Two networks whose answers are right or wrong: the drop, its interval and the judgement."""

from __future__ import annotations

import json
from math import nan

import numpy as np
import pytest

from onnxcompress.errors import DataError, ModelError, UsageError
from onnxcompress.verify.comparison import Comparison
from onnxcompress.verify.intervals import (
    proportion_interval,
    samples_for_upper_end,
    tango_interval,
)
from onnxcompress.verify.metrics import parse_metric
from onnxcompress.verify.results import Drop, Judgement, MetricResult

TOP1, AGREEMENT = parse_metric("top1"), parse_metric("agreement")
LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
BEFORE = [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]  # seven right
AFTER = [0, 1, 2, 3, 1, 2, 3, 3, 1, 2]  # five right: three lost, one won


@pytest.fixture
def compared(one_hot):
    """A comparison of answers before and after."""

    def make(before, after, labels=None, *, metric=TOP1, k=4, seed=0):
        comparison = Comparison(metric, ["y"], seed=seed)
        comparison.accumulate([one_hot(before, k)], [one_hot(after, k)], labels)
        return comparison

    return make


def test_top1_comparison_by_hand(compared):
    comparison = compared(BEFORE, AFTER, LABELS)
    assert comparison.before == MetricResult("top1", 0.7, proportion_interval(7, 10), 10)
    assert comparison.after == MetricResult("top1", 0.5, proportion_interval(5, 10), 10)
    drop, tango = comparison.drop, tango_interval(3, 1, 10)
    assert (drop.points, drop.method, drop.n) == (20.0, "tango", 10)
    assert (drop.only_before_right, drop.only_after_right) == (3, 1)
    assert (drop.interval.low, drop.interval.high) == (100 * tango.low, 100 * tango.high)


def test_comparison_does_not_depend_on_the_batches(compared, one_hot):
    comparison = Comparison(TOP1, ["y"], seed=0)
    for part in (slice(0, 1), slice(1, 6), slice(6, 10)):
        comparison.accumulate([one_hot(BEFORE[part], 4)], [one_hot(AFTER[part], 4)], LABELS[part])
    whole = compared(BEFORE, AFTER, LABELS)
    assert comparison.drop == whole.drop
    assert comparison.before == whole.before
    assert comparison.after == whole.after
    assert comparison.fidelity == whole.fidelity


def test_agreement_of_classifiers(compared):
    comparison = compared(BEFORE, AFTER, metric=AGREEMENT)
    tango = tango_interval(4, 0, 10)
    assert comparison.before.value == 1.0
    assert (comparison.before.interval.low, comparison.before.interval.high) == (1.0, 1.0)
    assert comparison.after == MetricResult("agreement", 0.6, proportion_interval(6, 10), 10)
    drop = comparison.drop
    assert (drop.points, drop.only_before_right, drop.only_after_right) == (40.0, 4, 0)
    assert (drop.interval.low, drop.interval.high) == (100 * tango.low, 100 * tango.high)


def test_fidelity_covers_the_outputs(compared):
    (output,) = compared([0, 1], [0, 2], np.array([0, 1])).fidelity
    # two ones against two ones, one of them elsewhere: ‖a‖² = 2, ‖a - b‖² = 2
    assert (output.name, output.max_abs, output.snr_db) == ("y", 1.0, 0.0)


def test_max_drop_is_met_exactly(compared):
    n = 1000
    labels = np.zeros(n, np.int64)
    after = np.zeros(n, np.int64)
    after[:7] = 1
    comparison = compared(np.zeros(n, np.int64), after, labels)
    assert comparison.passes(0.7).ok  # 100·0.007 is above 0.7 in float64
    refused = comparison.passes(0.69)
    assert not refused.ok
    assert refused.reason == (
        "top1 goes from 1 to 0.993 over 1000 samples, a drop of 0.7 points, which is above the "
        "0.69 points allowed."
    )


def test_confidence_judges_the_upper_end(compared):
    comparison = compared(BEFORE * 30, AFTER * 30, np.tile(LABELS, 30))
    for level in (0.9, 0.99):
        upper = 100 * tango_interval(90, 30, 300, level=level).high
        assert comparison.passes(upper + 1e-6, confidence=level).ok
        refused = comparison.passes(upper - 1e-6, confidence=level)
        assert not refused.ok
        needed = samples_for_upper_end(90, 30, 300, limit=upper - 1e-6, level=level)
        assert needed > 300
        assert f"{upper:.6g} points, is above" in refused.reason
        assert refused.reason.endswith(f"about {needed} samples could settle it.")
    assert comparison.passes(20.0).ok
    # More samples cannot settle what is lost already.
    assert "settle" not in comparison.passes(19.0, confidence=0.95).reason


def test_an_allowed_drop_says_how_certain_it_is(compared):
    comparison = compared(BEFORE * 30, AFTER * 30, np.tile(LABELS, 30))
    upper = 100 * tango_interval(90, 30, 300).high
    needed = samples_for_upper_end(90, 30, 300, limit=21.0)
    assert comparison.passes(21.0).ok
    assert comparison.passes(21.0).reason.endswith(
        f"points allowed. Its 95 % interval reaches {upper:.3g} points; about {needed} samples "
        "could settle it."
    )
    assert comparison.passes(upper + 0.1).reason.endswith("points allowed.")


def test_gains_pass_and_large_margins_do_not_break_the_hint(compared):
    assert compared([1, 1], [0, 0], np.array([0, 0])).passes(0.0).ok
    tiny = compared([1], [0], np.array([0]))
    assert tiny.drop.points == -100.0
    assert isinstance(tiny.passes(10.0, confidence=0.95), Judgement)


def test_nan_fails_whatever_the_metric_says(one_hot):
    comparison = Comparison(TOP1, ["logits", "extra"], seed=0)
    logits, extra = one_hot([0, 1], 3), np.ones((2, 3, 4), np.float32)
    broken = extra.copy()
    broken[1, 2, 3] = nan
    comparison.accumulate([logits, extra], [logits, broken], np.array([0, 1]))
    assert comparison.drop.points == 0.0
    found = comparison.passes(100.0)
    assert not found.ok
    assert found.reason.startswith("output 'extra' has 1 NaN or infinite values")


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_impossible_confidence_is_refused(compared, confidence):
    with pytest.raises(UsageError, match="confidence level"):
        compared([0], [0], np.array([0])).passes(1.0, confidence=confidence)


def test_comparison_without_samples_is_an_error():
    for metric in (TOP1, AGREEMENT):
        comparison = Comparison(metric, ["y"], seed=0)
        for read in (lambda c: c.before, lambda c: c.after, lambda c: c.drop, lambda c: c.fidelity):
            with pytest.raises(DataError):
                read(comparison)


def test_changed_interface_is_refused(one_hot):
    with pytest.raises(ModelError, match="'y' has shape"):
        Comparison(AGREEMENT, ["y"], seed=0).accumulate([one_hot([0], 3)], [one_hot([0], 4)])


def test_everything_is_strict_json(compared):
    comparison = compared(BEFORE, AFTER, LABELS)
    drop = comparison.drop
    assert isinstance(drop, Drop)
    found = json.loads(
        json.dumps(
            {
                "metric": comparison.after.to_dict(),
                "drop": drop.to_dict(),
                "verdict": comparison.passes(30.0).to_dict(),
            },
            allow_nan=False,
        )
    )
    assert found["metric"] == {
        "name": "top1",
        "value": 0.5,
        "ci95": [comparison.after.interval.low, comparison.after.interval.high],
        "n": 10,
    }
    assert found["drop"] == {
        "points": 20.0,
        "ci95": [drop.interval.low, drop.interval.high],
        "method": "tango",
        "n": 10,
        "only_before_right": 3,
        "only_after_right": 1,
    }
    assert found["verdict"]["ok"] is True
