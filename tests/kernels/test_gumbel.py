from __future__ import annotations

import numpy as np
import pytest

from onnxcompress.kernels.gumbel import (
    Objective,
    Schedule,
    hardened,
    refine,
    relaxed,
    through_softmax,
)
from onnxcompress.kernels.induction import induce, relative_error
from onnxcompress.kernels.language import EdgeFilter, Tetromino
from onnxcompress.kernels.search import vocabulary
from onnxcompress.kernels.semantics import evaluate


def objective(seed: int) -> Objective:
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((18, 18))
    return Objective(
        weight=generator.standard_normal((3, 2, 9)),
        metric=mixing @ mixing.T,
        nearest=generator.standard_normal((3, 2, 5, 9)),
        costs=generator.uniform(0.0, 0.1, 5),
    )


def test_gradient_is_that_of_the_objective() -> None:
    problem = objective(0)
    generator = np.random.default_rng(1)
    logits, noise = generator.standard_normal((2, 3, 2, 5))

    def value(at: np.ndarray) -> float:
        return problem.value(relaxed(at, noise, 0.7))

    shares = relaxed(logits, noise, 0.7)
    gradient = through_softmax(shares, problem.gradient(shares), 0.7)
    for index in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[index] = 1e-5
        slope = (value(logits + step) - value(logits - step)) / 2e-5
        assert gradient[index] == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_relaxed_samples_harden_as_the_temperature_falls() -> None:
    generator = np.random.default_rng(2)
    logits, noise = generator.standard_normal((2, 4, 3, 6))
    cold, warm = relaxed(logits, noise, 0.01), relaxed(logits, noise, 100.0)
    np.testing.assert_allclose(cold.sum(-1), 1.0)
    np.testing.assert_allclose(cold, hardened(logits + noise), atol=0.2)
    np.testing.assert_allclose(warm, 1.0 / 6.0, atol=0.02)


def test_gumbel_maximum_is_a_sample_of_the_softmax() -> None:
    logits = np.log([0.5, 0.3, 0.2])
    noise = np.random.default_rng(3).gumbel(size=(20_000, 3))
    shares = hardened(relaxed(np.broadcast_to(logits, noise.shape), noise, 0.5)).mean(axis=0)
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.2], atol=0.015)


def test_descent_recovers_planted_programs() -> None:
    planted = [
        EdgeFilter((1.0, 0.0, -1.0)),
        EdgeFilter((1.0, 2.0, 1.0), "horizontal"),
        Tetromino("square", 0, 1, 2.0),
        Tetromino("T", 0, 0, -1.0),
    ]
    weight = np.stack([evaluate(p, 3).ravel() for p in planted]).reshape(2, 2, 9)
    programs = refine(weight, vocabulary(3, 1), 1e-4, schedule=Schedule(seed=4))
    np.testing.assert_allclose(programs.weights, weight, atol=1e-9)
    found = [programs.form(o, c).terms for o in range(2) for c in range(2)]
    assert [term.kind for (term,) in found] == ["edge-vertical", "edge-horizontal", "square", "T"]


def test_descent_comes_near_to_the_search() -> None:
    weight = np.random.default_rng(5).standard_normal((4, 4, 9))
    words = vocabulary(3, 1)
    price = 2e-5
    exact = induce(weight, words, price)
    found = refine(weight, words, price, schedule=Schedule(seed=6))
    totals = [relative_error(weight, p.weights) + price * p.bits for p in (exact, found)]
    # Without a metric kernels do not depend on each other: the search is exact.
    assert totals[0] <= totals[1] + 1e-12
    assert totals[1] < 1.1 * totals[0]


def test_descent_is_repeatable() -> None:
    weight = np.random.default_rng(7).standard_normal((3, 2, 9))
    one, same = (
        refine(weight, vocabulary(3, 1), 1e-3, schedule=Schedule(steps=20, seed=seed))
        for seed in (1, 1)
    )
    np.testing.assert_array_equal(one.choice, same.choice)
