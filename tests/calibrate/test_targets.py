"""What answers are held to: classes as given and as drawn, signs, losses by definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.calibrate.targets import Targets, are_probabilities, log_probabilities
from onnxcompress.gradients.answer import Answer


def random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def soft(rows: np.ndarray) -> np.ndarray:
    each = np.exp(rows)
    return np.asarray(each / each.sum(axis=1, keepdims=True))


def classifier(scores: np.ndarray, *, seed: int = 0, probabilities: bool = False) -> Targets:
    answer = Answer(("y",), scores.shape[1], "y", probabilities)
    classes = np.arange(len(scores)) * 2 % scores.shape[1]
    return Targets(answer, classes, np.log(soft(scores)), {}, seed)


def other(count: int, *, seed: int = 0) -> Targets:
    energies = {
        "u": np.square(random((count,), 1)) + 0.5,
        "v": np.square(random((count,), 2)) + 0.5,
    }
    return Targets(Answer(("u", "v")), np.zeros(0, np.int64), np.zeros((0, 0)), energies, seed)


def test_given_classes() -> None:
    targets = classifier(random((5, 3)))
    rows = np.array([4, 0, 3, 3])
    found = targets.given(rows)
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]]


def test_drawn_classes_follow_the_probabilities() -> None:
    """For every sample's own: counts of a class add up to the sum of probabilities.

    Their variance is the sum of p (1 - p); weighted by other numbers, likewise.
    """
    scores = 2.0 * random((20000, 5), 1)
    p = soft(scores)
    drawn = classifier(scores, seed=3).drawn(np.arange(len(scores))).astype(np.float64)
    assert np.array_equal(drawn.sum(axis=1), np.ones(len(scores)))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    for weights in (np.ones((len(p), 1)), p, scores, random((len(p), 1), 4)):
        error = np.abs((weights * (drawn - p)).sum(axis=0))
        assert (error < 5 * np.sqrt((weights**2 * p * (1 - p)).sum(axis=0))).all()


def test_draws_of_samples_do_not_depend_on_each_other() -> None:
    """The same scores for all: neighbours agree as often as chance c would have them.

    Every draw is in two pairs, so that the variance of their mean is at most 3 c / pairs.
    """
    scores = np.tile(random((1, 4), 2), (20000, 1))
    p, drawn = soft(scores)[0], classifier(scores).drawn(np.arange(20000)).argmax(axis=1)
    for lag in (1, 2, 64):
        pairs = len(drawn) - lag
        chance = float((p**2).sum())
        equal = float((drawn[lag:] == drawn[:-lag]).mean())
        assert abs(equal - chance) < 5 * np.sqrt(3 * chance / pairs)


def test_drawn_classes_belong_to_seed_and_row() -> None:
    scores = random((50, 6), 3)
    whole = classifier(scores, seed=1).drawn(np.arange(50))
    assert np.array_equal(classifier(scores, seed=1).drawn(np.arange(50)), whole)
    assert not np.array_equal(classifier(scores, seed=2).drawn(np.arange(50)), whole)
    for rows in ([3], [49, 7, 7, 0], list(range(20, 30))):
        assert np.array_equal(classifier(scores, seed=1).drawn(np.array(rows)), whole[rows])


def test_a_certain_class_is_always_drawn() -> None:
    scores = np.full((500, 3), -800.0)
    scores[np.arange(500), np.arange(500) % 3] = 0.0
    answer = Answer(("y",), 3, "y")
    targets = Targets(answer, np.zeros(500, np.int64), scores, {}, 0)
    assert np.array_equal(targets.drawn(np.arange(500)).argmax(axis=1), np.arange(500) % 3)


def test_signs() -> None:
    """One over the norm in absolute value; of every row its own, whatever the batch."""
    targets, shape = other(40, seed=5), (40, 3, 2, 5)
    whole = {name: targets.signs(name, np.arange(40), shape) for name in ("u", "v")}
    for name, values in whole.items():
        assert values.dtype == np.float32
        assert values.shape == shape
        norms = np.sqrt(targets.energies[name]).reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(np.abs(values) * norms, np.ones(shape), rtol=1e-6)
        rows = np.array([7, 7, 39, 0])
        assert np.array_equal(targets.signs(name, rows, (4, 3, 2, 5)), values[rows])
        again = other(40, seed=6).signs(name, np.arange(40), shape)
        assert not np.array_equal(again, values)
    assert not np.array_equal(np.sign(whole["u"]), np.sign(whole["v"]))


def test_signs_are_not_correlated() -> None:
    """Means of products of two different signs: five standard deviations of 1 / sqrt(rows)."""
    targets, count = other(4000), 4000
    both = np.concatenate(
        [np.sign(targets.signs(n, np.arange(count), (count, 6))) for n in ("u", "v")], axis=1
    ).astype(np.float64)
    np.testing.assert_allclose(both.T @ both / count, np.eye(12), rtol=0, atol=5 / np.sqrt(count))
    np.testing.assert_allclose(both.mean(axis=0), 0.0, atol=5 / np.sqrt(count))
    shifted = both[1:].T @ both[:-1] / (count - 1)
    np.testing.assert_allclose(shifted, 0.0, atol=5 / np.sqrt(count - 1))


def test_signs_of_an_output_that_is_zero() -> None:
    answer = Answer(("u",))
    energies = {"u": np.array([0.0, 4.0])}
    targets = Targets(answer, np.zeros(0, np.int64), np.zeros((0, 0)), energies, 0)
    with np.errstate(all="raise"):
        found = targets.signs("u", np.arange(2), (2, 3))
        moved = {"u": np.full((2, 3), 2.0, np.float32)}
        losses = targets.losses(moved, np.arange(2), {"u": np.zeros((2, 3), np.float32)})
    assert found[0].tolist() == [0.0] * 3
    assert np.abs(found[1]).tolist() == [0.5] * 3
    assert losses.tolist() == [0.0, 0.5 * 12 / 4]


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1, 1)])
@pytest.mark.parametrize("probabilities", [False, True])
def test_losses_of_classes(shape: tuple[int, ...], *, probabilities: bool) -> None:
    targets = classifier(random((9, 5)), probabilities=probabilities)
    rows = np.array([8, 2, 3, 3])
    scores = 3.0 * random((4, 5), 6)
    given = soft(scores) if probabilities else scores
    expected = [-np.log(soft(scores)[n, targets.classes[row]]) for n, row in enumerate(rows)]
    found = targets.losses({"y": given.astype(np.float32).reshape(shape)}, rows, {})
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_losses_of_outputs() -> None:
    targets, rows = other(7), np.array([6, 0, 2])
    own = {"u": random((3, 2, 4), 1), "v": random((3,), 2)}
    moved = {name: values + random(values.shape, 3) for name, values in own.items()}
    expected = [
        sum(
            0.5
            * float(np.square(moved[name][n] - own[name][n]).sum())
            / targets.energies[name][row]
            for name in own
        )
        for n, row in enumerate(rows)
    ]
    found = targets.losses(moved, rows, own)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert targets.losses(own, rows, own).tolist() == [0.0] * 3


def test_log_probabilities_that_would_overflow() -> None:
    logits = np.float32([[1000.0, 0.0, 999.0], [-1000.0, -1000.0, -1001.0]])
    with np.errstate(over="raise", invalid="raise"):
        found = log_probabilities(logits, Answer(("y",), 3, "y"))
    e = np.exp(-1.0)
    expected = [
        [-np.log1p(e), -1000.0 - np.log1p(e), -1.0 - np.log1p(e)],
        [-np.log(2 + e), -np.log(2 + e), -1.0 - np.log(2 + e)],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_log_probabilities_of_impossible_classes() -> None:
    """Finite, and the others as they are."""
    given = np.float32([[0.25, 0.0, 0.75]])
    found = log_probabilities(given, Answer(("y",), 3, "y", probabilities=True))
    np.testing.assert_allclose(found[0, [0, 2]], np.log([0.25, 0.75]), rtol=1e-6)
    assert -100 < found[0, 1] < -50


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (soft(random((6, 4))), True),
        (soft(random((6, 4))).reshape(6, 4, 1, 1), True),
        (soft(random((6, 4))) * 1.0005, True),
        (soft(random((6, 4))) * 1.01, False),
        (random((6, 4)), False),
        (np.float32([[0.5, 0.5], [1.5, -0.5]]), False),
        (np.float32([[0.5, 0.5], [0.5, 0.6]]), False),
        (np.log(soft(random((6, 4)))), False),
    ],
)
def test_are_probabilities(rows: Any, *, expected: bool) -> None:
    assert are_probabilities(np.asarray(rows, np.float32)) is expected
