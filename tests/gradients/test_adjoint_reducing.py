"""Reductions against differences, along every choice of axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.gradients.adjoints.reducing import REDUCING

BOX, CUBE = (2, 3, 4), (3, 3, 3)
EXACT = ["ReduceL1", "ReduceMax", "ReduceMin", "ReduceSum"]
SQUARE = ["ReduceSumSquare"]
SMOOTH = ["ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean"]

AXES: dict[str, tuple[tuple[int, ...], list[int] | None]] = {
    "one": (BOX, [1]),
    "one, equal": (CUBE, [1]),
    "negative": (BOX, [-1]),
    "two": (BOX, [0, 2]),
    "two, equal": (CUBE, [2, 0]),
    "two from behind": (BOX, [-1, -3]),
    "all": (BOX, [0, 1, 2]),
    "none given": (BOX, None),
    "of one": ((2, 1, 4), [1]),
}


def _case(oracle: Any, operator: str, label: str, *, keep: int = 1, **how: Any) -> Any:
    shape, axes = AXES[label]
    given = [] if axes is None else [np.array(axes, np.int64)]
    draw = {**dict.fromkeys(EXACT, "distinct"), **dict.fromkeys(SQUARE, "whole")}
    how = {"draw": draw.get(operator, "positive"), **how}
    return oracle.operator(operator, [shape, *given], {"keepdims": keep}, **how)


def _check(oracle: Any, operator: str, case: Any) -> None:
    if operator in SMOOTH:
        oracle.smooth(case)
    else:
        oracle.exact(case, step=0.25)


def test_every_operator_has_cases() -> None:
    assert {*EXACT, *SQUARE, *SMOOTH} == set(REDUCING)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("label", AXES)
@pytest.mark.parametrize("operator", REDUCING)
def test_reductions(oracle: Any, operator: str, label: str, keep: int) -> None:
    _check(oracle, operator, _case(oracle, operator, label, keep=keep))


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
def test_equal_extremes_share(oracle: Any, operator: str) -> None:
    case = oracle.operator(operator, [(2, 4), np.array([1])], {"keepdims": 0})
    case.feeds["x0"][:] = [[2.0, 2.0, 2.0, 2.0], [-1.0, -1.0, -1.0, -1.0]]
    expected = np.tile(case.cotangents["y"][:, np.newaxis] / 4, (1, 4))
    np.testing.assert_array_equal(oracle.gradients(case)["x0"], expected)


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"])
def test_no_axes_on_purpose_is_the_identity(oracle: Any, operator: str) -> None:
    axes = np.zeros(0, np.int64)
    case = oracle.operator(operator, [BOX, axes], {"noop_with_empty_axes": 1}, draw="distinct")
    assert case.cotangents["y"].shape == BOX
    oracle.exact(case, step=0.25)


@pytest.mark.parametrize("operator", ["ReduceSumSquare", "ReduceL1", "ReduceLogSum", "ReduceL2"])
def test_no_axes_on_purpose_leaves_the_function_of_each_element(oracle: Any, operator: str) -> None:
    axes = np.zeros(0, np.int64)
    case = oracle.operator(operator, [BOX, axes], {"noop_with_empty_axes": 1}, draw="positive")
    assert case.cotangents["y"].shape == BOX
    # Differences of float32 results near one over 2^-6: rounding of 2^-18, and 2^-12 of bend.
    oracle.exact(case, step=2.0**-6, tolerance=2.0**-9)


def test_empty_axes_without_that_are_all(oracle: Any) -> None:
    case = oracle.operator("ReduceSum", [BOX, np.zeros(0, np.int64)])
    assert case.cotangents["y"].shape == (1, 1, 1)
    oracle.exact(case)


@pytest.mark.parametrize("operator", ["ReduceL2", "ReduceLogSumExp"])
def test_nothing_overflows_far_from_zero(oracle: Any, operator: str) -> None:
    case = oracle.operator(operator, [(2, 3), np.array([1])])
    case.feeds["x0"][:] = [[100.0, 90.0, -200.0], [-150.0, -151.0, 3.0]]
    oracle.smooth(oracle.seeded(case.model, case.feeds))


def test_norm_of_zeros_has_a_finite_gradient(oracle: Any) -> None:
    # A dead channel; zero is among the subgradients there.
    case = oracle.operator("ReduceL2", [(2, 3), np.array([1])])
    case.feeds["x0"][0] = 0.0
    assert np.isfinite(oracle.gradients(case)["x0"]).all()


@pytest.mark.parametrize(
    ("operator", "opset"),
    # ReduceSum takes them as an input from opset 13 on.
    [(o, v) for o in REDUCING for v in (9, 11, 13) if (o, v) != ("ReduceSum", 13)],
)
def test_axes_as_an_attribute(oracle: Any, operator: str, opset: int) -> None:
    draw = "positive" if operator in SMOOTH else "distinct"
    attributes = {"axes": [0, -1 if opset > 9 else 2], "keepdims": 0}
    case = oracle.operator(operator, [BOX], attributes, opset=opset, draw=draw)
    _check(oracle, operator, case)


@pytest.mark.parametrize("opset", [18, 20, 26])
@pytest.mark.parametrize("operator", REDUCING)
def test_newer_opsets(oracle: Any, operator: str, opset: int) -> None:
    _check(oracle, operator, _case(oracle, operator, "two", opset=opset))


@pytest.mark.parametrize("operator", [*EXACT, *SQUARE])
def test_half_precision(oracle: Any, operator: str) -> None:
    _check(oracle, operator, _case(oracle, operator, "two", dtype=np.float16, draw="distinct"))
