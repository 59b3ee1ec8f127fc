"""Functions of one tensor against differences, away from kinks and, for kinks, at them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from onnxcompress.errors import GradientError
from onnxcompress.gradients.adjoints.unary import UNARY

# Linear between kinks, which lie at multiples of 1/2 apart from those of the data.
PIECEWISE: dict[str, dict[str, dict[str, Any]]] = {
    "Abs": {"": {}},
    "HardSigmoid": {"": {"alpha": 0.125, "beta": 0.5}, "steep": {"alpha": 0.25, "beta": 0.75}},
    "Identity": {"": {}},
    "LeakyRelu": {"": {"alpha": 0.25}, "negative": {"alpha": -0.5}},
    "Neg": {"": {}},
    "Relu": {"": {}},
    "ThresholdedRelu": {"default": {}, "": {"alpha": 2.0}},
}
SMOOTH: dict[str, dict[str, dict[str, Any]]] = {
    "Celu": {"default": {}, "": {"alpha": 0.7}},
    "Cos": {"": {}},
    "Elu": {"default": {}, "": {"alpha": 0.7}},
    "Erf": {"default": {}},
    "Exp": {"": {}},
    "Gelu": {"default": {}, "none": {"approximate": "none"}, "tanh": {"approximate": "tanh"}},
    "HardSigmoid": {"default": {}},
    "HardSwish": {"": {}},
    "LeakyRelu": {"default": {}},
    "Log": {"": {}},
    "Mish": {"": {}},
    "Reciprocal": {"": {}},
    "Selu": {"default": {}, "": {"alpha": 0.7, "gamma": 1.9}},
    "Sigmoid": {"": {}},
    "Sin": {"": {}},
    "Softplus": {"": {}},
    "Softsign": {"default": {}},
    "Sqrt": {"": {}},
    "Swish": {"default": {}, "": {"alpha": 1.7}},
    "Tanh": {"": {}},
}
POSITIVE = {"Log", "Reciprocal", "Sqrt"}
SINCE = {"Celu": 12, "Gelu": 20, "HardSwish": 14, "Mish": 18, "ThresholdedRelu": 10, "Swish": 24}
# The reference evaluator's Erf is rounded to float32, and its Softsign does not take scalars.
_erf = np.vectorize(math.erf, otypes=[np.float64])
FORWARD: dict[tuple[str, str], Any] = {
    ("Erf", "default"): lambda feeds: [_erf(feeds["x0"])],
    ("Gelu", "default"): lambda feeds: [feeds["x0"] * (1 + _erf(feeds["x0"] / math.sqrt(2))) / 2],
    ("Softsign", "default"): lambda feeds: [np.asarray(feeds["x0"] / (1 + np.abs(feeds["x0"])))],
}
FORWARD["Gelu", "none"] = FORWARD["Gelu", "default"]
SHAPES = [(2, 3, 4), (3, 3, 3), ()]


def test_every_operator_has_cases() -> None:
    assert {*PIECEWISE, *SMOOTH, "Cast", "Clip", "Dropout"} == set(UNARY)


def _each(table: dict[str, dict[str, dict[str, Any]]]) -> list[tuple[str, str]]:
    return [(operator, label) for operator, cases in table.items() for label in cases]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("operator", "label"), _each(PIECEWISE))
def test_piecewise_linear(oracle: Any, operator: str, label: str, shape: tuple[int, ...]) -> None:
    case = oracle.operator(operator, [shape], PIECEWISE[operator][label], draw="distinct")
    if not shape:
        # Where no two slopes of any of these are alike, and none is zero.
        case.feeds["x0"][...] = 0.25 if operator == "HardSigmoid" else 2.5
    oracle.exact(oracle.seeded(case.model, case.feeds), step=0.25)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("operator", "label"), _each(SMOOTH))
def test_smooth(oracle: Any, operator: str, label: str, shape: tuple[int, ...]) -> None:
    draw = "positive" if operator in POSITIVE else "smooth"
    opset = max(SINCE.get(operator, 0), 21)
    case = oracle.operator(operator, [shape], SMOOTH[operator][label], draw=draw, opset=opset)
    oracle.smooth(case, forward=FORWARD.get((operator, label)))


@pytest.mark.parametrize("operator", ["HardSigmoid", "HardSwish"])
def test_both_ends_of_the_ramp(oracle: Any, operator: str) -> None:
    case = oracle.operator(operator, [(7,)])
    case.feeds["x0"][:] = [-4.0, -2.9, -1.0, 0.3, 1.2, 2.9, 4.0]
    found = oracle.smooth(oracle.seeded(case.model, case.feeds))["x0"]
    assert found[0] == 0


@pytest.mark.parametrize(
    "operator", ["Celu", "Elu", "Exp", "Gelu", "Mish", "Selu", "Sigmoid", "Softplus", "Tanh"]
)
def test_far_from_zero_nothing_overflows(oracle: Any, operator: str) -> None:
    # float32's exponential overflows at 89; what it stands in must not become 0 * inf.
    case = oracle.operator(operator, [(4,)])
    case.feeds["x0"][:] = [-200.0, -100.0, 30.0 if operator == "Exp" else 200.0, 20.0]
    found = oracle.gradients(oracle.seeded(case.model, case.feeds))["x0"]
    assert np.isfinite(found).all()


CLIPS: dict[str, tuple[list[Any], int]] = {
    "both": ([(2, 3, 4), np.float32(-3.0), np.float32(5.0)], 21),
    "below": ([(3, 3, 3), np.float32(-3.0)], 21),
    "above": ([(2, 3, 4), None, np.float32(5.0)], 21),
    "neither": ([(2, 3)], 21),
    "opset 11": ([(2, 3, 4), np.float32(-3.0), np.float32(5.0)], 11),
}


@pytest.mark.parametrize("label", CLIPS)
def test_clip(oracle: Any, label: str) -> None:
    operands, opset = CLIPS[label]
    oracle.exact(oracle.operator("Clip", operands, draw="distinct", opset=opset), step=0.25)


@pytest.mark.parametrize("limits", [{"min": -3.0, "max": 5.0}, {"max": 2.0}, {"min": -1.0}])
@pytest.mark.parametrize("opset", [9, 10])
def test_clip_by_attributes(oracle: Any, limits: dict[str, float], opset: int) -> None:
    oracle.exact(
        oracle.operator("Clip", [(2, 3, 4)], limits, draw="distinct", opset=opset), step=0.25
    )


def test_clip_by_data_is_refused(oracle: Any) -> None:
    case = oracle.operator("Clip", [(2, 3), ()])
    with pytest.raises(GradientError, match=r"Clip 'node'.*input 1"):
        oracle.gradients(case)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE])
def test_cast_gives_back_the_type(oracle: Any, kind: int) -> None:
    oracle.exact(oracle.operator("Cast", [(2, 3)], {"to": kind}))


@pytest.mark.parametrize("outputs", [["y"], ["y", "mask"]])
@pytest.mark.parametrize("opset", [10, 12, 21])
def test_dropout(oracle: Any, outputs: list[str], opset: int) -> None:
    oracle.exact(oracle.operator("Dropout", [(2, 3, 4)], outputs=outputs, opset=opset))


def test_dropout_in_training_is_refused(oracle: Any) -> None:
    case = oracle.operator("Dropout", [(2, 3), np.float32(0.5), np.array(True)])
    with pytest.raises(GradientError, match=r"Dropout 'node' .it is in training mode"):
        oracle.gradients(case)


@pytest.mark.parametrize("operator", ["Relu", "Clip", "ThresholdedRelu", "LeakyRelu"])
def test_at_a_kink_one_of_the_two_slopes(oracle: Any, operator: str) -> None:
    operands = [(1,), np.float32(0.0)] if operator == "Clip" else [(1,)]
    attributes = {"ThresholdedRelu": {"alpha": 0.0}, "LeakyRelu": {"alpha": 0.5}}.get(operator)
    case = oracle.operator(operator, operands, attributes)
    case.feeds["x0"][:] = 0.0
    found = oracle.gradients(case)["x0"] / case.cotangents["y"]
    assert found[0] in {0.0, 0.5 if operator == "LeakyRelu" else 0.0, 1.0}


@pytest.mark.parametrize(
    ("operator", "opset"),
    [
        (operator, opset)
        for operator in (*SMOOTH, "Relu", "Abs")
        for opset in (9, 13, 18, 26)
        # ONNX Runtime has no Swish of a newer opset.
        if opset >= SINCE.get(operator, 0) and operator != "Swish"
    ],
)
def test_opsets(oracle: Any, operator: str, opset: int) -> None:
    draw = "positive" if operator in POSITIVE else "smooth"
    case = oracle.operator(operator, [(2, 3)], draw=draw, opset=opset)
    oracle.smooth(case, forward=FORWARD.get((operator, "default")))


# ONNX has no Celu of float16.
@pytest.mark.parametrize("operator", sorted({*SMOOTH, *PIECEWISE} - {"Celu"}))
def test_half_precision(oracle: Any, operator: str) -> None:
    # Kernels round once per operator, eight in a row at most: eight half ulps of float16, and as
    # much again for what the rounded input of a steep function makes of it.
    opset = max(SINCE.get(operator, 0), 21)
    draw = "positive" if operator in POSITIVE else "smooth"
    half = oracle.operator(operator, [(2, 3, 4)], draw=draw, opset=opset, dtype=np.float16)
    full = oracle.operator(operator, [(2, 3, 4)], draw=draw, opset=opset)
    full.feeds["x0"][...] = half.feeds["x0"]
    full.cotangents["y"][...] = half.cotangents["y"]
    found, expected = oracle.gradients(half)["x0"], oracle.gradients(full)["x0"]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=0, atol=16 * 2.0**-11 * np.abs(expected).max())
