"""The one number that plans are made by: what class scores have in common does not count."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.verify.comparison import Comparison
from onnxcompress.verify.metrics import parse_metric
from onnxcompress.verify.scores import ScoreError

Array = np.ndarray


@pytest.fixture
def scores() -> tuple[Array, Array]:
    """Scores [40, 7] and others near them."""
    random = np.random.default_rng(3)
    one = random.standard_normal((40, 7)).astype(np.float32)
    return one, one + 0.1 * random.standard_normal((40, 7)).astype(np.float32)


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def error(one: Array, other: Array, *, batch: int = 16) -> float | None:
    found = ScoreError()
    for at in range(0, len(one), batch):
        found.add([one[at : at + batch]], [other[at : at + batch]])
    return found.value


def test_against_the_definition(scores: tuple[Array, Array]) -> None:
    one, other = (s.astype(np.float64) for s in scores)
    project = np.eye(7) - np.full((7, 7), 1 / 7)
    expected = np.square((other - one) @ project).sum() / np.square(one @ project).sum()
    assert error(*scores) == pytest.approx(expected, rel=1e-12)
    assert error(one[:, :, None, None], other[:, :, None, None]) == pytest.approx(expected)


def test_what_all_scores_have_in_common_does_not_count(scores: tuple[Array, Array]) -> None:
    one, other = (s.astype(np.float64) for s in scores)
    shift = 50.0 * np.random.default_rng(1).standard_normal((40, 1))
    assert error(one + 100.0, other + 100.0 + shift) == pytest.approx(error(one, other), rel=1e-9)
    assert error(one, one + shift) == pytest.approx(0.0, abs=1e-20)


def test_probabilities_are_scores_again(scores: tuple[Array, Array]) -> None:
    one, other = (s.astype(np.float64) for s in scores)
    assert error(softmax(one), softmax(other)) == pytest.approx(error(one, other), rel=1e-9)
    assert error(softmax(one), np.eye(7)[np.zeros(40, int)]) < np.inf


def test_other_networks_have_none(scores: tuple[Array, Array]) -> None:
    one, other = scores
    found = ScoreError()
    found.add([one, one], [other, other])
    assert found.value is None
    assert error(one.reshape(4, 10, 7), other.reshape(4, 10, 7)) is None


def test_values_that_are_none(scores: tuple[Array, Array]) -> None:
    one, other = scores
    other = other.copy()
    other[3, 2] = np.nan
    assert error(one, other) == np.inf
    zeros = np.zeros((4, 3))
    assert error(zeros, zeros) == 0.0
    assert error(zeros, np.eye(4, 3)) == np.inf


def test_comparisons_say_it(scores: tuple[Array, Array]) -> None:
    """Of class scores; else of the worst output, by its signal-to-noise ratio."""
    one, other = scores
    classes = Comparison(parse_metric("agreement"), ["y"], seed=0)
    classes.accumulate([one + 9], [other + 9], samples=40)
    assert classes.error == pytest.approx(error(one, other), rel=1e-4)
    plain = Comparison(parse_metric("agreement"), ["y", "z"], seed=0)
    plain.accumulate([one, one + 9], [other, one + 9], samples=40)
    expected = np.square((other - one).astype(np.float64)).sum() / np.square(one).sum()
    assert plain.error == pytest.approx(expected, rel=1e-5)
