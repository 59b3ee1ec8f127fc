from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from onnxcompress.kernels.cost import bits
from onnxcompress.kernels.families import library, original
from onnxcompress.kernels.induction import induce, relative_error
from onnxcompress.kernels.language import (
    EdgeFilter,
    OriginalKernel,
    Program,
    Sum,
    Tetromino,
)
from onnxcompress.kernels.search import Projections, best_forms, coefficients, vocabulary
from onnxcompress.kernels.semantics import evaluate

PLANTED: list[Program] = [
    EdgeFilter((1.0, 0.5, -2.0)),
    EdgeFilter((0.5, 2.0, 0.5), "horizontal"),
    Tetromino("square", 1, 1, 0.75),
    Tetromino("L", 1, 0, -2.0, 2, True),
    Tetromino("T", 0, 1, 0.3, 2),
    Tetromino("S", 0, 0, 1.5, 1),
    Sum(()),
    Sum((EdgeFilter((1.0, 0.5, -2.0)), Tetromino("square", 0, 0, 3.0))),
    OriginalKernel(((0.1, 1.2, -0.4), (3.1, 0.2, 0.9), (-1.0, 0.7, 2.2))),
]


def covariance(seed: int, size: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((4 * size, size))
    return rows.T @ rows / len(rows)


def brute(kernel: np.ndarray, size: int, most: int, price: float, metric: np.ndarray) -> float:
    """Least error + price * bits over all sums of atoms, each solved by itself."""
    root = np.linalg.cholesky(metric)
    shortest = price * bits(original(size).program(kernel.tolist(), size), size)
    for terms in range(most + 1):
        for chosen in combinations(library(size), terms):
            basis = np.concatenate([f.basis for f in chosen] or [np.zeros((0, size**2))])
            numbers = np.linalg.lstsq((basis @ root).T, kernel @ root, rcond=None)[0]
            missed = (kernel - numbers @ basis) @ root
            parts = [f.program(np.zeros(f.dimensions).tolist(), size) for f in chosen]
            program = parts[0] if terms == 1 else Sum(tuple(parts))
            shortest = min(shortest, missed @ missed + price * bits(program, size))
    return float(shortest)


@pytest.mark.parametrize("program", PLANTED)
@pytest.mark.parametrize("weighed", [False, True])
def test_planted_programs_are_recovered(program: Program, weighed: bool) -> None:
    kernel = evaluate(program, 3)
    metric = covariance(0, 9) if weighed else None
    words = vocabulary(3, 2)
    found = best_forms(kernel.reshape(1, 9), 1e-9, Projections(words, metric))
    form = words.forms[found.choice[0]]
    numbers = coefficients(kernel.reshape(1, 9), form, Projections(words, metric).factor)[0]
    again = form.program(numbers.tolist())
    np.testing.assert_allclose(evaluate(again, 3), kernel, atol=1e-9)
    assert bits(again, 3) == pytest.approx(bits(program, 3))


def test_a_shorter_program_of_the_same_kernel_is_found() -> None:
    """An edge of 1, 0, -1 takes three numbers; two L that cancel in one cell take two."""
    kernel = evaluate(EdgeFilter((1.0, 0.0, -1.0)), 3).reshape(1, 9)
    words = vocabulary(3, 2)
    found = best_forms(kernel, 1e-9, Projections(words))
    form = words.forms[found.choice[0]]
    assert [term.kind for term in form.terms] == ["L", "L"]
    np.testing.assert_allclose(coefficients(kernel, form) @ form.basis, kernel, atol=1e-12)


@pytest.mark.parametrize("price", [1e-4, 3e-3, 2e-2])
@pytest.mark.parametrize("seed", range(3))
def test_search_finds_what_trying_everything_finds(price: float, seed: int) -> None:
    kernel = np.random.default_rng(seed).standard_normal(9)
    metric = covariance(seed + 10, 9)
    words = vocabulary(3, 2)
    found = best_forms(kernel.reshape(1, 9), price, Projections(words, metric))
    total = found.loss[0] + price * words.bits[found.choice[0]]
    assert total == pytest.approx(brute(kernel, 3, 2, price, metric), rel=1e-9)


def test_many_kernels_are_searched_as_each_alone() -> None:
    kernels = np.random.default_rng(5).standard_normal((40, 9))
    words = vocabulary(3, 2)
    together = best_forms(kernels, 5e-3, Projections(words))
    alone = [
        best_forms(kernel[np.newaxis], 5e-3, Projections(words)).choice[0] for kernel in kernels
    ]
    assert together.choice.tolist() == alone
    assert len(set(alone)) > 3


def test_five_by_five() -> None:
    kernel = evaluate(Sum((EdgeFilter((1.0, 2, 0, -2, -1)), Tetromino("L", 3, 2, 4.0))), 5)
    words = vocabulary(5, 2)
    found = best_forms(kernel.reshape(1, 25), 1e-9, Projections(words))
    assert [term.kind for term in words.forms[found.choice[0]].terms] == ["edge-vertical", "L"]


def test_form_bits_are_those_of_its_program() -> None:
    words = vocabulary(3, 2)
    for at in range(0, len(words.forms), 37):
        form = words.forms[at]
        program = form.program([1.0] * form.dimensions)
        assert words.bits[at] == pytest.approx(bits(program, 3))


def test_price_zero_keeps_a_layer_exactly() -> None:
    weight = np.random.default_rng(1).standard_normal((4, 3, 9))
    for metric in (None, covariance(2, 27)):
        programs = induce(weight, vocabulary(3, 2), 0.0, metric)
        np.testing.assert_array_equal(programs.weights, weight)
        assert programs.numbers == weight.size
        assert programs.shares() == {"original": 1.0}


def test_programs_of_a_layer_evaluate_to_its_weights() -> None:
    weight = np.random.default_rng(3).standard_normal((4, 3, 9))
    programs = induce(weight, vocabulary(3, 2), 1e-4, covariance(4, 27))
    for output in range(4):
        for channel in range(3):
            kernel = evaluate(programs.program(output, channel), 3).ravel()
            np.testing.assert_allclose(kernel, programs.weights[output, channel], atol=1e-12)
    total = sum(bits(programs.program(o, c), 3) for o in range(4) for c in range(3))
    assert programs.bits == pytest.approx(total)


def test_error_is_handed_on_to_later_channels() -> None:
    """Weighing answers beats weighing weights, by answers; and a higher price costs more."""
    weight = np.random.default_rng(6).standard_normal((8, 6, 9))
    mixing = np.random.default_rng(7).standard_normal((54, 10))
    metric = mixing @ mixing.T + 0.05 * np.eye(54)
    words = vocabulary(3, 2)
    by_answers = [induce(weight, words, price, metric) for price in (1e-5, 1e-4, 1e-3)]
    errors = [relative_error(weight, p.weights, metric) for p in by_answers]
    assert errors == sorted(errors)
    assert [p.bits for p in by_answers] == sorted((p.bits for p in by_answers), reverse=True)
    by_weights = induce(weight, words, 1e-4)
    plain = relative_error(weight, by_weights.weights, metric)
    bounded = [p for p in by_answers if p.bits <= by_weights.bits]
    assert min(relative_error(weight, p.weights, metric) for p in bounded) < 0.5 * plain
