"""Which networks are classifiers, and the scores that metrics give to every sample."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from onnxcompress.analyse.answers import is_classifier
from onnxcompress.errors import DataError, UsageError
from onnxcompress.verify.metrics import parse_metric

TOP1, TOP5, AGREEMENT = parse_metric("top1"), parse_metric("top5"), parse_metric("agreement")


def scores_of(metric, scores, labels):
    return metric.scores([scores], labels, names=["y"]).tolist()


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
def test_nan_scores_are_wrong(one_hot, metric):
    scores = one_hot([0, 0, 0], 6)
    scores[0, 0], scores[1, 3], scores[2, 3] = nan, nan, -inf
    assert scores_of(metric, scores, np.array([0, 0, 0])) == [0, 0, 1]


def test_trailing_extents_of_one_and_label_columns(one_hot):
    scores = one_hot([2, 0], 3).reshape(2, 3, 1, 1)
    assert scores_of(TOP1, scores, np.array([[2], [1]], np.uint8)) == [1, 0]


def test_class_scores_are_found_among_other_outputs(one_hot):
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


def test_agreement_scores(one_hot):
    reference, candidate = one_hot([0, 1, 2, 3, 1], 4), one_hot([0, 2, 2, 3, 1], 4)
    candidate[3, 3] = nan  # NumPy takes NaN for the largest: the very class of the reference
    reference[4] = candidate[4] = nan  # sharing NaN is no answer
    found = AGREEMENT.scores([candidate], None, [reference], names=["y"])
    assert found.tolist() == [1, 0, 1, 0, 0]
    with pytest.raises(UsageError, match="compares two networks"):
        AGREEMENT.scores([candidate], None, names=["y"])
