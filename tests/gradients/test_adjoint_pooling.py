"""Pooling against differences: overlapping windows, pads, ceilings, dilations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.gradients.adjoints.pooling import POOLING

Cases = dict[str, tuple[tuple[int, ...], dict[str, Any]]]
IMAGE, CUBE = (2, 3, 7, 5), (3, 3, 3, 3)

# Windows that both kinds of pooling have.
WINDOWS: Cases = {
    "distinct": (IMAGE, {"kernel_shape": [3, 2], "strides": [2, 1]}),
    "equal": (CUBE, {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}),
    "no strides given": (IMAGE, {"kernel_shape": [2, 3]}),
    "1-D": ((2, 3, 7), {"kernel_shape": [3], "strides": [2], "pads": [0, 1]}),
    "3-D": (
        (1, 2, 4, 5, 3),
        {"kernel_shape": [2, 3, 1], "strides": [1, 2, 2], "pads": [1, 0, 0, 0, 1, 0]},
    ),
    "stride 2, a row left over": ((1, 2, 6, 7), {"kernel_shape": [3, 3], "strides": [2, 2]}),
    "stride 3, rows left over": ((1, 2, 8, 7), {"kernel_shape": [2, 3], "strides": [3, 3]}),
    "strides beyond the kernel": ((1, 2, 8, 7), {"kernel_shape": [1, 2], "strides": [3, 3]}),
    "asymmetric pads": (IMAGE, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 2, 1, 1]}),
    "ceiling": (
        (1, 2, 6, 8),
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    ),
    "ceiling, stride 3": (
        (1, 2, 6, 8),
        {"kernel_shape": [2, 3], "strides": [3, 3], "ceil_mode": 1, "pads": [1, 0, 0, 1]},
    ),
    "ceiling, pads": (
        (1, 2, 6, 5),
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
    ),
    "ceiling, 1-D": ((2, 3, 8), {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}),
    "dilation": (
        IMAGE,
        {"kernel_shape": [3, 2], "strides": [1, 2], "dilations": [2, 3], "pads": [1, 0, 1, 1]},
    ),
    "dilation, ceiling": (
        (1, 2, 8, 7),
        {"kernel_shape": [2, 3], "strides": [2, 2], "dilations": [3, 2], "ceil_mode": 1},
    ),
    "valid": (IMAGE, {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "VALID"}),
    **{
        f"{mode}, stride {stride}": (
            IMAGE,
            {"kernel_shape": [4, 3], "strides": [stride, stride], "auto_pad": mode},
        )
        for mode in ("SAME_UPPER", "SAME_LOWER")
        for stride in (1, 2, 3)
    },
}
PLAIN: dict[str, Any] = {"kernel_shape": [2, 4], "strides": [2, 1], "pads": [1, 0, 0, 1]}
GLOBAL: list[tuple[int, ...]] = [IMAGE, CUBE, (2, 3, 4), (2, 3, 2, 1, 4), (1, 1, 1, 1)]
# A share 1/n rounds once, and so does the sum of at most as many shares as windows overlap.
AVERAGED = 1e-6


def test_every_operator_has_cases() -> None:
    assert {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"} == set(POOLING)


@pytest.mark.parametrize("label", WINDOWS)
def test_max_pool(oracle: Any, label: str) -> None:
    shape, attributes = WINDOWS[label]
    oracle.exact(oracle.operator("MaxPool", [shape], attributes, draw="distinct"), step=0.25)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("outputs", [["y"], ["y", "indices"]])
@pytest.mark.parametrize("label", ["distinct", "equal", "1-D", "3-D", "ceiling", "dilation"])
def test_max_pool_with_either_order_of_indices(
    oracle: Any, label: str, outputs: list[str], order: int
) -> None:
    shape, attributes = WINDOWS[label]
    given = {**attributes, "storage_order": order}
    case = oracle.operator("MaxPool", [shape], given, draw="distinct", outputs=outputs)
    oracle.exact(case, step=0.25)


def test_one_of_equal_maxima_gets_all(oracle: Any) -> None:
    case = oracle.operator("MaxPool", [(1, 1, 4, 4)], {"kernel_shape": [2, 2], "strides": [2, 2]})
    case.feeds["x0"][...] = 1.0
    found = oracle.gradients(case)["x0"].reshape(2, 2, 2, 2)
    assert (np.count_nonzero(found, axis=(1, 3)) == 1).all()
    np.testing.assert_array_equal(found.sum(axis=(1, 3)), case.cotangents["y"][0, 0])


def test_maxima_below_zero_beside_pads(oracle: Any) -> None:
    attributes = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}
    case = oracle.operator("MaxPool", [(1, 2, 4, 3)], attributes, draw="distinct")
    case.feeds["x0"] -= np.float32(100.0)
    oracle.exact(oracle.seeded(case.model, case.feeds), step=0.25)


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize("label", WINDOWS)
def test_average_pool(oracle: Any, label: str, counted: int) -> None:
    shape, attributes = WINDOWS[label]
    case = oracle.operator("AveragePool", [shape], {**attributes, "count_include_pad": counted})
    oracle.exact(case, tolerance=AVERAGED)


@pytest.mark.parametrize("shape", GLOBAL)
def test_global_average(oracle: Any, shape: tuple[int, ...]) -> None:
    oracle.exact(oracle.operator("GlobalAveragePool", [shape]), tolerance=AVERAGED)


@pytest.mark.parametrize("shape", GLOBAL)
def test_global_maximum(oracle: Any, shape: tuple[int, ...]) -> None:
    oracle.exact(oracle.operator("GlobalMaxPool", [shape], draw="distinct"), step=0.25)


def test_equal_global_maxima_share(oracle: Any) -> None:
    case = oracle.operator("GlobalMaxPool", [(1, 2, 2, 2)])
    case.feeds["x0"][0] = [[[5.0, 1.0], [5.0, 0.0]], [[-2.0, -2.0], [-2.0, -2.0]]]
    shares = np.array([[[0.5, 0.0], [0.5, 0.0]], [[0.25, 0.25], [0.25, 0.25]]])
    found = oracle.gradients(case)["x0"]
    np.testing.assert_array_equal(found[0], case.cotangents["y"][0] * shares)


@pytest.mark.parametrize(
    ("operator", "opset"),
    [(o, v) for o in ("MaxPool", "AveragePool") for v in (9, 10, 11, 12, 18, 19, 22, 26)]
    + [(o, v) for o in ("GlobalMaxPool", "GlobalAveragePool") for v in (9, 18, 26)],
)
def test_opsets(oracle: Any, operator: str, opset: int) -> None:
    given = {} if operator.startswith("Global") else PLAIN
    average = "Average" in operator
    draw = "whole" if average else "distinct"
    case = oracle.operator(operator, [(1, 2, 6, 5)], given, opset=opset, draw=draw)
    oracle.exact(case, step=1.0 if average else 0.25, tolerance=AVERAGED if average else 0.0)


@pytest.mark.parametrize("operator", POOLING)
def test_half_precision(oracle: Any, operator: str) -> None:
    given = {} if operator.startswith("Global") else PLAIN
    average = "Average" in operator
    draw = "whole" if average else "distinct"
    case = oracle.operator(operator, [(1, 2, 4, 4)], given, draw=draw, dtype=np.float16)
    # Averages of numbers up to 4 are rounded to 2^-9, four differences of which are summed with
    # cotangents up to 3 and compared to at least 1/16.
    oracle.exact(case, step=1.0 if average else 0.25, tolerance=2.0**-4 if average else 0.0)
