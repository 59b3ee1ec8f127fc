"""One network: its score over batches, with an interval."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.errors import DataError, UsageError
from onnxcompress.verify.bootstrap import bootstrap_mean_difference
from onnxcompress.verify.comparison import Evaluation
from onnxcompress.verify.intervals import proportion_interval
from onnxcompress.verify.metrics import parse_metric
from onnxcompress.verify.results import MetricResult

TOP1, AGREEMENT = parse_metric("top1"), parse_metric("agreement")


def test_evaluation_over_batches(one_hot):
    evaluation = Evaluation(TOP1, ["y"], seed=0)
    evaluation.accumulate([one_hot([0, 1, 2], 4)], np.array([0, 1, 3]))
    evaluation.accumulate([one_hot([3, 1], 4)], np.array([3, 0]))
    assert evaluation.result() == MetricResult("top1", 0.6, proportion_interval(3, 5), 5)


def test_evaluation_of_scores_uses_the_bootstrap(handed_through):
    scores = np.random.default_rng(0).uniform(size=20)
    evaluation = Evaluation(handed_through, ["y"], seed=3)
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
