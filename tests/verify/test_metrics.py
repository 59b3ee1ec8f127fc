from __future__ import annotations

import json
from math import inf, log10, nan

import numpy as np
import pytest

from onnxcompress.analyse.answers import is_classifier
from onnxcompress.errors import DataError, ModelError, UsageError
from onnxcompress.verify.bootstrap import bootstrap_mean_difference, bootstrap_snr
from onnxcompress.verify.comparison import Comparison, Evaluation
from onnxcompress.verify.intervals import (
    proportion_interval,
    samples_for_half_width,
    tango_interval,
)
from onnxcompress.verify.metrics import Metric, parse_metric
from onnxcompress.verify.results import Drop, Judgement, MetricResult

TOP1, TOP5, AGREEMENT = parse_metric("top1"), parse_metric("top5"), parse_metric("agreement")


def one_hot(classes, k):
    """Class scores [N, k] whose largest is at ``classes``."""
    return np.eye(k, dtype=np.float32)[np.asarray(classes)]


def scores_of(metric, scores, labels):
    return metric.scores([scores], labels, names=["y"]).tolist()


def compared(before, after, labels=None, *, metric=TOP1, k=4, seed=0):
    comparison = Comparison(metric, ["y"], seed=seed)
    comparison.accumulate([one_hot(before, k)], [one_hot(after, k)], labels)
    return comparison


def output_itself(outputs, labels):
    return outputs["y"]


def positive_only(outputs, labels):
    return outputs["y"][outputs["y"] > 0]


def scored(before, after):
    """A comparison under a user's metric that hands the output through."""
    metric = Metric("m:f", output_itself)
    comparison = Comparison(metric, ["y"], seed=5)
    comparison.accumulate([np.asarray(before)], [np.asarray(after)])
    return comparison


# --- which networks are classifiers --------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(8, 10)], True),
        ([("N", 10)], True),
        ([(None, 2, 1, 1)], True),
        ([(3, 3)], True),
        ([(3, 3, 3, 3)], False),
        ([(8, 1)], False),
        ([(8, 1, 1, 1)], False),
        ([(8, 10, 1, 2)], False),
        ([(8,)], False),
        ([()], False),
        ([("N", "K")], False),
        ([(8, 10), (8, 10)], False),
        ([(8, 10), (8, 3, 4, 4)], False),
        ([], False),
    ],
)
def test_is_classifier(shapes, expected):
    assert is_classifier(shapes) is expected


# --- scores --------------------------------------------------------------------------------------


def test_top1_by_hand():
    scores = np.array([[1, 3, 2], [5, 4, 4], [2, 2, 1], [0, 0, 0], [-3, -2, -1]], np.float32)
    assert scores_of(TOP1, scores, np.array([1, 1, 0, 1, 2])) == [1, 0, 1, 0, 1]


def test_top1_square_batch_takes_classes_along_axis_1():
    scores = np.array([[1, 9, 0], [8, 2, 3], [7, 1, 0]], np.float32)
    assert scores_of(TOP1, scores, np.array([1, 0, 0])) == [1, 1, 1]
    assert scores_of(TOP1, scores, np.array([2, 0, 1])) == [0, 1, 0]


def test_top5_by_hand():
    scores = np.array(
        [
            [9, 8, 7, 6, 5, 4, 3],  # fifth largest: right
            [9, 8, 7, 6, 5, 4, 3],  # sixth largest: wrong
            [9, 8, 7, 6, 5, 5, 3],  # fifth and sixth tie: counted against
            [9, 8, 7, 5, 5, 4, 3],  # fourth and fifth tie: both among five
            [1, 1, 1, 1, 1, 1, 1],  # everything ties
        ],
        np.float32,
    )
    assert scores_of(TOP5, scores, np.array([4, 5, 4, 4, 0])) == [1, 0, 0, 1, 0]
    # with no more than five classes, any label is among the five
    assert scores_of(TOP5, np.zeros((2, 5), np.float32), np.array([0, 4])) == [1, 1]


@pytest.mark.parametrize("metric", [TOP1, TOP5])
def test_nan_scores_are_wrong(metric):
    scores = one_hot([0, 0, 0], 6)
    scores[0, 0], scores[1, 3], scores[2, 3] = nan, nan, -inf
    assert scores_of(metric, scores, np.array([0, 0, 0])) == [0, 0, 1]


def test_trailing_extents_of_one_and_label_columns():
    scores = one_hot([2, 0], 3).reshape(2, 3, 1, 1)
    assert scores_of(TOP1, scores, np.array([[2], [1]], np.uint8)) == [1, 0]


def test_class_scores_are_found_among_other_outputs():
    outputs = [np.zeros((2, 4, 5, 5), np.float32), np.array([7, 7]), one_hot([2, 0], 3)]
    found = TOP1.scores(outputs, np.array([2, 0]), names=["features", "index", "logits"])
    assert found.tolist() == [1, 1]


@pytest.mark.parametrize(
    "outputs",
    [
        [np.zeros((2, 3, 4, 4), np.float32)],
        [np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)],
        [np.zeros((2, 3), np.int64)],
    ],
)
def test_top1_needs_one_output_of_class_scores(outputs):
    with pytest.raises(UsageError, match=r"needs exactly one output of class scores \[N, K\]"):
        TOP1.scores(outputs, np.array([0, 0]), names=["a", "b"][: len(outputs)])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs labels.*agreement"),
        (np.array([0]), "do not fit 2 samples"),
        (np.array([0.0, 1.0]), "as integers"),
        (np.array([[0, 1], [1, 0]]), "do not fit 2 samples"),
        (np.array([0, 3]), "labels from 0 to 3 do not fit 3 classes"),
        (np.array([-1, 2]), "labels from -1 to 2 do not fit 3 classes"),
    ],
)
@pytest.mark.parametrize("metric", [TOP1, TOP5])
def test_labels_that_do_not_fit(metric, labels, message):
    with pytest.raises(DataError, match=message):
        metric.scores([np.zeros((2, 3), np.float32)], labels, names=["y"])


def test_agreement_scores():
    reference, candidate = one_hot([0, 1, 2, 3, 1], 4), one_hot([0, 2, 2, 3, 1], 4)
    candidate[3, 3] = nan  # NumPy takes NaN for the largest: the very class of the reference
    reference[4] = candidate[4] = nan  # sharing NaN is no answer
    found = AGREEMENT.scores([candidate], None, [reference], names=["y"])
    assert found.tolist() == [1, 0, 1, 0, 0]
    with pytest.raises(UsageError, match="compares two networks"):
        AGREEMENT.scores([candidate], None, names=["y"])


# --- the user's own metric -----------------------------------------------------------------------


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "verify_user_metric.py").write_text(
        "import numpy as np\n"
        "def closeness(outputs, labels):\n"
        "    return 1 - np.abs(outputs['q'][:, 0] - labels)\n"
        "def fails(outputs, labels):\n"
        "    raise RuntimeError('no such\\nthing')\n"
        "def mean(outputs, labels):\n"
        "    return outputs['q'].mean()\n"
        "def short(outputs, labels):\n"
        "    return outputs['q'][1:, 0]\n"
        "def undefined(outputs, labels):\n"
        "    return outputs['q'][:, 0] * np.nan\n"
        "def text(outputs, labels):\n"
        "    return ['good', 'bad', 'ugly']\n"
        "constant = 3\n"
    )
    (tmp_path / "verify_broken_module.py").write_text("raise ValueError('half\\ninstalled')\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("user_module")
def test_user_metric_gets_outputs_by_name():
    metric = parse_metric("verify_user_metric:closeness")
    p, q = np.full((3, 1), 9.0), np.array([[0.0], [0.5], [2.0]])
    found = metric.scores([p, q], np.array([0.0, 1.0, 1.5]), names=["p", "q"])
    assert found.tolist() == [1.0, 0.5, 0.5]
    assert found.dtype == np.float64
    assert not metric.needs_labels


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize("function", ["fails", "mean", "short", "undefined", "text"])
@pytest.mark.parametrize("labels", [None, np.zeros(3)])
def test_failing_user_metrics_are_named(function, labels):
    metric = parse_metric(f"verify_user_metric:{function}")
    with pytest.raises(DataError, match=f"verify_user_metric:{function}") as caught:
        metric.scores([np.ones((3, 1))], labels, names=["q"])
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    "text",
    [
        "top2",
        "",
        ":",
        "math:",
        ":sqrt",
        "verify_user_metric:absent",
        "verify_user_metric:constant",
        "verify_no_such_module:f",
        "verify_broken_module:f",
    ],
)
def test_unknown_metrics_are_refused(text):
    with pytest.raises(UsageError, match="metric") as caught:
        parse_metric(text)
    assert "\n" not in str(caught.value)


def test_user_metric_must_score_both_networks_alike():
    metric = Metric("m:f", positive_only)
    comparison = Comparison(metric, ["y"], seed=0)
    with pytest.raises(DataError, match="m:f gave scores of shape"):
        comparison.accumulate([np.ones(3)], [np.array([1.0, 0.0, 1.0])])
    outputs = [np.ones((3, 1)), np.zeros(())]  # no shared extent: only the pairing can be checked
    candidate = [np.array([[1.0], [0.0], [1.0]]), np.zeros(())]
    comparison = Comparison(metric, ["y", "z"], seed=0)
    with pytest.raises(DataError, match="gave 3 scores before and 2 after"):
        comparison.accumulate(outputs, candidate)


# --- one network ---------------------------------------------------------------------------------


def test_evaluation_over_batches():
    evaluation = Evaluation(TOP1, ["y"], seed=0)
    evaluation.accumulate([one_hot([0, 1, 2], 4)], np.array([0, 1, 3]))
    evaluation.accumulate([one_hot([3, 1], 4)], np.array([3, 0]))
    assert evaluation.result() == MetricResult("top1", 0.6, proportion_interval(3, 5), 5)


def test_evaluation_of_scores_uses_the_bootstrap():
    scores = np.random.default_rng(0).uniform(size=20)
    evaluation = Evaluation(Metric("m:f", output_itself), ["y"], seed=3)
    evaluation.accumulate([scores[:7]], None)
    evaluation.accumulate([scores[7:]], None)
    found = evaluation.result()
    assert found.value == pytest.approx(scores.sum() / 20, rel=1e-15)
    assert found.interval == bootstrap_mean_difference(scores, np.zeros(20), seed=3)
    assert found.interval.low < found.value < found.interval.high


def test_evaluation_refuses_agreement_and_nothing():
    with pytest.raises(UsageError, match="compares two networks"):
        Evaluation(AGREEMENT, ["y"], seed=0)
    with pytest.raises(DataError, match="no sample"):
        Evaluation(TOP1, ["y"], seed=0).result()


# --- two networks, right or wrong ----------------------------------------------------------------

LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
BEFORE = [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]  # seven right
AFTER = [0, 1, 2, 3, 1, 2, 3, 3, 1, 2]  # five right: three lost, one won


def test_top1_comparison_by_hand():
    comparison = compared(BEFORE, AFTER, LABELS)
    assert comparison.before == MetricResult("top1", 0.7, proportion_interval(7, 10), 10)
    assert comparison.after == MetricResult("top1", 0.5, proportion_interval(5, 10), 10)
    drop, tango = comparison.drop, tango_interval(3, 1, 10)
    assert (drop.points, drop.method, drop.n) == (20.0, "tango", 10)
    assert (drop.only_before_right, drop.only_after_right) == (3, 1)
    assert (drop.interval.low, drop.interval.high) == (100 * tango.low, 100 * tango.high)


def test_comparison_does_not_depend_on_the_batches():
    comparison = Comparison(TOP1, ["y"], seed=0)
    for part in (slice(0, 1), slice(1, 6), slice(6, 10)):
        comparison.accumulate([one_hot(BEFORE[part], 4)], [one_hot(AFTER[part], 4)], LABELS[part])
    whole = compared(BEFORE, AFTER, LABELS)
    assert comparison.drop == whole.drop
    assert comparison.before == whole.before
    assert comparison.after == whole.after
    assert comparison.fidelity == whole.fidelity


def test_agreement_of_classifiers():
    comparison = compared(BEFORE, AFTER, metric=AGREEMENT)
    tango = tango_interval(4, 0, 10)
    assert comparison.before.value == 1.0
    assert (comparison.before.interval.low, comparison.before.interval.high) == (1.0, 1.0)
    assert comparison.after == MetricResult("agreement", 0.6, proportion_interval(6, 10), 10)
    drop = comparison.drop
    assert (drop.points, drop.only_before_right, drop.only_after_right) == (40.0, 4, 0)
    assert (drop.interval.low, drop.interval.high) == (100 * tango.low, 100 * tango.high)


def test_fidelity_covers_the_outputs():
    (output,) = compared([0, 1], [0, 2], np.array([0, 1])).fidelity
    # two ones against two ones, one of them elsewhere: ‖a‖² = 2, ‖a - b‖² = 2
    assert (output.name, output.max_abs, output.snr_db) == ("y", 1.0, 0.0)


def test_max_drop_is_met_exactly():
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


def test_confidence_judges_the_upper_end():
    comparison = compared(BEFORE * 30, AFTER * 30, np.tile(LABELS, 30))
    for level in (0.9, 0.99):
        upper = 100 * tango_interval(90, 30, 300, level=level).high
        assert comparison.passes(upper + 1e-6, confidence=level).ok
        refused = comparison.passes(upper - 1e-6, confidence=level)
        assert not refused.ok
        needed = samples_for_half_width(90, 30, 300, points=upper - 1e-6 - 20.0, level=level)
        assert f"{upper:.6g} points, is above" in refused.reason
        assert refused.reason.endswith(f"about {needed} samples could settle it.")
    assert comparison.passes(20.0).ok
    # More samples cannot settle what is lost already.
    assert "settle" not in comparison.passes(19.0, confidence=0.95).reason


def test_gains_pass_and_large_margins_do_not_break_the_hint():
    assert compared([1, 1], [0, 0], np.array([0, 0])).passes(0.0).ok
    tiny = compared([1], [0], np.array([0]))
    assert tiny.drop.points == -100.0
    assert isinstance(tiny.passes(10.0, confidence=0.95), Judgement)


def test_nan_fails_whatever_the_metric_says():
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
def test_impossible_confidence_is_refused(confidence):
    with pytest.raises(UsageError, match="confidence level"):
        compared([0], [0], np.array([0])).passes(1.0, confidence=confidence)


def test_comparison_without_samples_is_an_error():
    for metric in (TOP1, AGREEMENT):
        comparison = Comparison(metric, ["y"], seed=0)
        for read in (lambda c: c.before, lambda c: c.after, lambda c: c.drop, lambda c: c.fidelity):
            with pytest.raises(DataError):
                read(comparison)


def test_changed_interface_is_refused():
    with pytest.raises(ModelError, match="'y' has shape"):
        Comparison(AGREEMENT, ["y"], seed=0).accumulate([one_hot([0], 3)], [one_hot([0], 4)])


# --- two networks, scores ------------------------------------------------------------------------


def test_scores_use_the_paired_bootstrap():
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


def test_scores_of_zero_and_one_are_right_or_wrong():
    assert scored([1.0, 1.0, 0.0], [1.0, 0.0, 0.0]).drop.method == "tango"
    assert scored([1.0, 1.0, 0.0], [1.0, 0.5, 0.0]).drop.method == "paired bootstrap"


def test_one_score_is_no_confidence():
    comparison = scored([0.5], [0.5])
    assert comparison.passes(1.0).ok
    assert not comparison.passes(1.0, confidence=0.95).ok


# --- two networks, signal-to-noise ratio ---------------------------------------------------------


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


# --- JSON ----------------------------------------------------------------------------------------


def test_everything_is_strict_json():
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


def test_results_are_reproducible_and_depend_on_the_seed():
    reference, candidate = images()

    def interval(seed):
        comparison = Comparison(AGREEMENT, ["p", "q"], seed=seed)
        comparison.accumulate(reference, candidate)
        return comparison.after.interval

    assert interval(1) == interval(1)
    assert interval(1) != interval(2)
