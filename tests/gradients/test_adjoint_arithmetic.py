"""Functions of several tensors, broadcast from either side, against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import GradientError
from onnxcompress.gradients.adjoints.arithmetic import ARITHMETIC

# Pairs of operands; a list is a constant.
PAIRS: dict[str, tuple[Any, Any]] = {
    "distinct": ((2, 3, 4), (2, 3, 4)),
    "equal": ((3, 3, 3), (3, 3, 3)),
    "right is shorter": ((2, 3, 4), (4,)),
    "left is shorter": ((3, 1), (2, 3, 4)),
    "right is a channel vector": ((2, 3, 3), (3, 1)),
    "equal, right is shorter": ((3, 3, 3), (3,)),
    "equal, left is shorter": ((3, 1), (3, 3, 3)),
    "both are stretched": ((2, 1, 4), (3, 1)),
    "equal, both are stretched": ((3, 1, 3), (1, 3, 1)),
    "extents of one stay": ((1, 3, 1), (1, 3, 4)),
    "right is a scalar": ((2, 3), ()),
    "left is a scalar": ((), (2, 3)),
    "right is constant": ((2, 3, 4), [3, 1]),
    "left is constant": ([2, 1, 4], (3, 1)),
}
LINEAR = ["Add", "Mul", "Sub"]
EXTREME = ["Max", "Min"]
SMOOTH = ["Div", "Pow"]
SEVERAL = ["Max", "Mean", "Min", "Sum"]
OTHERS = ["PRelu", "Where"]


def test_every_operator_has_cases() -> None:
    assert {*LINEAR, *SMOOTH, *SEVERAL, *OTHERS} == set(ARITHMETIC)


@pytest.mark.parametrize("label", PAIRS)
@pytest.mark.parametrize("operator", LINEAR)
def test_linear_in_each_operand(oracle: Any, operator: str, label: str) -> None:
    oracle.exact(oracle.operator(operator, PAIRS[label]))


@pytest.mark.parametrize("label", PAIRS)
@pytest.mark.parametrize("operator", ["Mean", "Sum"])
def test_sums(oracle: Any, operator: str, label: str) -> None:
    oracle.exact(oracle.operator(operator, PAIRS[label]))


@pytest.mark.parametrize("label", PAIRS)
def test_quotients(oracle: Any, label: str) -> None:
    oracle.smooth(oracle.operator("Div", PAIRS[label], draw="positive"))


@pytest.mark.parametrize("label", PAIRS)
@pytest.mark.parametrize("operator", EXTREME)
def test_extremes(oracle: Any, operator: str, label: str) -> None:
    # Odd halves against odd halves plus a quarter: nothing is equal, and steps of 1/16 show it.
    case = oracle.operator(operator, PAIRS[label], draw="distinct")
    for values in list(case.feeds.values())[-1:]:
        values += np.float32(0.25)
    oracle.exact(oracle.seeded(case.model, case.feeds), step=2.0**-4)


@pytest.mark.parametrize("operator", EXTREME)
def test_equals_share_the_gradient(oracle: Any, operator: str) -> None:
    case = oracle.operator(operator, [(2, 2), (2, 2)])
    for values in case.feeds.values():
        values[...] = 1.0
    found = oracle.gradients(case)
    # Differences from both sides average the two slopes of a kink, which is half each.
    oracle.exact(case, step=0.5)
    np.testing.assert_array_equal(found["x0"] + found["x1"], case.cotangents["y"])


@pytest.mark.parametrize("operator", SEVERAL)
@pytest.mark.parametrize("count", [1, 4])
def test_any_number_of_operands(oracle: Any, operator: str, count: int) -> None:
    shapes = [(2, 3, 4), (3, 1), (), (2, 1, 1)][:count]
    case = oracle.operator(operator, shapes, draw="distinct")
    for index, values in enumerate(case.feeds.values()):
        values += np.float32(index / 8)
    oracle.exact(oracle.seeded(case.model, case.feeds), step=2.0**-5)


@pytest.mark.parametrize("operator", ["Add", "Mul", "Max", "Sum", "Div", "Sub"])
def test_same_tensor_twice(oracle: Any, operator: str) -> None:
    case = oracle.operator(operator, [(2, 3), (2, 3)], draw="distinct")
    case.model.graph.node[0].input[1] = "x0"
    del case.model.graph.input[1], case.feeds["x1"]
    if operator in {"Div", "Sub"}:
        # y is one, or zero, whatever x is.
        assert not oracle.gradients(case)["x0"].any()
    else:
        oracle.exact(oracle.seeded(case.model, case.feeds), step=0.5)


POWERS: dict[str, tuple[Any, Any]] = {
    "scalar": ((2, 3), np.float32(3.0)),
    "square root": ((2, 3), np.float32(0.5)),
    "negative": ((2, 3), np.float32(-1.5)),
    "per channel": ((2, 3, 4), np.array([[2.0], [0.5], [3.0]], np.float32)),
    "wider than the base": ((3, 1), np.array([1.0, 2.5, 3.0, -2.0], np.float32)),
    "equal": ((3, 3), np.array([1.0, 2.0, 3.0], np.float32)),
    "whole": ((2, 3), np.array(2, np.int64)),
}


@pytest.mark.parametrize("label", POWERS)
def test_powers(oracle: Any, label: str) -> None:
    oracle.smooth(oracle.operator("Pow", POWERS[label], draw="positive"))


def test_squares_of_negative_numbers_and_zero(oracle: Any) -> None:
    case = oracle.operator("Pow", [(2, 3), np.float32(2.0)])
    case.feeds["x0"][:] = [[-2.0, 0.0, 1.0], [3.0, -1.0, 2.0]]
    oracle.exact(oracle.seeded(case.model, case.feeds))


def test_exponent_of_zero_has_no_slope_even_at_zero(oracle: Any) -> None:
    case = oracle.operator("Pow", [(3,), np.array([0.0, 1.0, 2.0], np.float32)])
    case.feeds["x0"][:] = [0.0, 3.0, 2.0]
    oracle.exact(oracle.seeded(case.model, case.feeds))


def test_power_of_data_is_refused(oracle: Any) -> None:
    case = oracle.operator("Pow", [(2, 3), (2, 3)], draw="positive")
    with pytest.raises(GradientError, match=r"Pow 'node'.*input 1"):
        oracle.gradients(case)


@pytest.mark.parametrize(
    ("data", "slope"),
    [((2, 3, 4), [3, 1]), ((3, 3, 3), [3, 1]), ((2, 3, 4), [1]), ((2, 3), [2, 3]), ((4, 2), [2])],
)
def test_prelu(oracle: Any, data: Any, slope: Any) -> None:
    oracle.exact(oracle.operator("PRelu", [data, slope], draw="distinct"), step=0.25)


CONDITION = np.array([[True, False, True], [False, False, True]])


@pytest.mark.parametrize(
    ("condition", "one", "other"),
    [
        (CONDITION, (2, 3), (2, 3)),
        (CONDITION, (3,), (2, 1)),
        (CONDITION[:, :1], (3,), ()),
        (CONDITION, (4, 1, 1), [2, 3]),
        (CONDITION, [3], (1, 3)),
        (np.eye(3, dtype=bool), (3, 3), (3,)),
        (np.array(False), (2, 1), (2, 3)),
    ],
)
def test_where(oracle: Any, condition: Any, one: Any, other: Any) -> None:
    oracle.exact(oracle.operator("Where", [condition, one, other]))


@pytest.mark.parametrize("opset", [9, 13, 18, 26])
@pytest.mark.parametrize("operator", [*LINEAR, "Mean", "Sum", "Max", "Min"])
def test_opsets(oracle: Any, operator: str, opset: int) -> None:
    case = oracle.operator(operator, [(2, 3, 4), (3, 1)], draw="distinct", opset=opset)
    case.feeds["x1"] += np.float32(0.25)
    oracle.exact(oracle.seeded(case.model, case.feeds), step=2.0**-4)


@pytest.mark.parametrize(
    ("operator", "dtype"),
    # ONNX Runtime has no Mean and no PRelu in float64.
    [
        *((o, np.float16) for o in (*LINEAR, "Mean", "Sum", "Max", "Min", "PRelu")),
        *((o, np.float64) for o in (*LINEAR, "Sum", "Max", "Min")),
    ],
)
def test_element_types(oracle: Any, operator: str, dtype: Any) -> None:
    right = [3, 1] if operator == "PRelu" else (3, 1)
    case = oracle.operator(operator, [(2, 3, 4), right], draw="distinct", dtype=dtype)
    if operator != "PRelu":
        case.feeds["x1"] += dtype(0.25)
    oracle.exact(oracle.seeded(case.model, case.feeds), step=2.0**-4)
