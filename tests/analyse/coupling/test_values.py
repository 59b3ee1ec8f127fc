"""What operators make of the zeros of a removed channel: a constant, zero, or nothing known.

The value of a channel that is zero at its producer is worked out here by hand or with NumPy, never
with the engine's own arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

# Each term of a sum of `count` products of a rounded value and a weight of at most 2 is off by a
# few roundings of 2**-24, and the sum by as many again in another order.
ROUNDING = 2.0**-21

LEAVES = {
    # operator: (attributes, first opset, value at zero)
    "Sigmoid": ({}, 9, 0.5),
    "HardSigmoid": ({}, 9, 0.5),
    "Exp": ({}, 9, 1.0),
    "Softplus": ({}, 9, math.log(2.0)),
    "Cos": ({}, 9, 1.0),
    "Cosh": ({}, 9, 1.0),
    "Acos": ({}, 9, math.pi / 2),
    "Relu": ({}, 9, 0.0),
    "LeakyRelu": ({"alpha": 0.25}, 9, 0.0),
    "Elu": ({}, 9, 0.0),
    "Selu": ({}, 9, 0.0),
    "Celu": ({}, 12, 0.0),
    "Tanh": ({}, 9, 0.0),
    "Erf": ({}, 9, 0.0),
    "Softsign": ({}, 9, 0.0),
    "HardSwish": ({}, 14, 0.0),
    "Gelu": ({}, 20, 0.0),
    "Mish": ({}, 18, 0.0),
    "ThresholdedRelu": ({"alpha": 0.5}, 10, 0.0),
    "Shrink": ({"lambd": 0.5, "bias": 0.25}, 9, 0.0),
    "Abs": ({}, 9, 0.0),
    "Neg": ({}, 9, 0.0),
    "Sqrt": ({}, 9, 0.0),
    "Sin": ({}, 9, 0.0),
    "Tan": ({}, 9, 0.0),
    "Asin": ({}, 9, 0.0),
    "Sinh": ({}, 9, 0.0),
    "Asinh": ({}, 9, 0.0),
    "Atan": ({}, 9, 0.0),
    "Atanh": ({}, 9, 0.0),
    "Floor": ({}, 9, 0.0),
    "Ceil": ({}, 9, 0.0),
    "Round": ({}, 11, 0.0),
    "Sign": ({}, 9, 0.0),
    "Identity": ({}, 9, 0.0),
}


def _tame(s: Any, a: str) -> str:
    """Brings any numbers into [0, 1/2], zero to zero, so that every operator is finite."""
    a = s.add("Mul", s.add("Abs", a), s.constant(2.0**-5))
    return str(s.add("Min", a, s.constant(0.5)))


@pytest.mark.parametrize("operator", LEAVES)
@pytest.mark.parametrize(
    ("extents", "padded"), [("distinct", False), ("equal", True)], indirect=["extents"]
)
def test_activation(
    sketch: Any, pruning: Any, extents: Any, operator: str, *, padded: bool
) -> None:
    """Without padding the bias takes every constant; with padding only zero can go."""
    attributes, opset, leaves = LEAVES[operator]
    s, c = sketch(max(opset, 11)), extents.inner
    model = s.sandwich(
        extents,
        lambda a: s.add(operator, _tame(s, a), name="under_test", **attributes),
        kernel=3,
        pads=[int(padded)] * 4,
    )
    # Round and Sign leave nothing of what is tamed to [0, 1/2] but zeros and ones.
    quiet = operator in {"Round", "Floor", "ThresholdedRelu", "Shrink"}
    if padded and leaves:
        reasons = ["Conv 'second'", "border"]
        pruning.check(model, widths={}, refused={"first": reasons})
        return
    case = pruning.check(model, widths={"first": c}, tolerance=9 * c * ROUNDING, silent=quiet)
    lane = case.coupling.lanes[case.node("second").input[0]]
    np.testing.assert_allclose(lane.values, np.full(c, leaves), rtol=2.0**-23)


@pytest.mark.parametrize("operator", ["Log", "Reciprocal"])
def test_activation_that_zero_breaks(
    sketch: Any, pruning: Any, extents: Any, operator: str
) -> None:
    s = sketch()
    model = s.sandwich(extents, lambda a: s.add(operator, a, name="broken"))
    pruning.check(model, widths={}, refused={"first": [f"{operator} 'broken'", "not finite"]})


def test_log_of_a_channel_plus_one(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner

    def middle(a: str) -> str:
        return str(s.add("Log", s.add("Add", s.add("Abs", a), s.constant(2.0))))

    model = s.sandwich(extents, middle)
    pruning.check(model, widths={"first": c}, tolerance=c * ROUNDING)


@pytest.mark.parametrize("mode", ["AveragePool", "MaxPool", "GlobalAveragePool"])
def test_pooling_keeps_constants(sketch: Any, pruning: Any, extents: Any, mode: str) -> None:
    # Whole numbers over windows of 4 are exact; over all of 5 by 7 they are rounded.
    s, c = sketch(), extents.inner
    kind = {} if mode.startswith("Global") else {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}

    def middle(a: str) -> str:
        return str(s.add(mode, s.add("Add", a, s.whole([c, 1, 1])), **kind))

    tolerance = c * ROUNDING if mode != "MaxPool" else 0.0
    pruning.check(s.sandwich(extents, middle), widths={"first": c}, tolerance=tolerance)


def test_average_that_counts_padding_shows_borders(sketch: Any, pruning: Any, extents: Any) -> None:
    s = sketch()

    def middle(a: str) -> str:
        a = s.add("Add", a, s.constant(1.0))
        more = {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}
        return str(s.add("AveragePool", a, name="average", **more))

    pruning.check(s.sandwich(extents, middle), widths={}, refused={"first": "not a constant"})


@pytest.mark.parametrize(
    ("operator", "keeps"),
    [
        ("ReduceMean", True),
        ("ReduceMax", True),
        ("ReduceMin", True),
        ("ReduceSum", False),
        ("ReduceL1", False),
        ("ReduceL2", False),
        ("ReduceSumSquare", False),
        ("ReduceLogSumExp", False),
    ],
)
@pytest.mark.parametrize(("shift", "keepdims"), [(0.0, 0), (1.0, 0), (1.0, 1)])
def test_reduction_over_space(
    sketch: Any,
    pruning: Any,
    extents: Any,
    operator: str,
    shift: float,
    keepdims: int,
    *,
    keeps: bool,
) -> None:
    """Some keep any constant, most keep zero; of the rest it may say that it does not know."""
    s, c = sketch(18), extents.inner
    a = s.conv(s.input(extents.image), extents.source, c, name="first")
    a = s.add("Add", a, s.constant(shift))
    a = s.add(operator, a, s.constant([2, -1], dtype=np.int64), name="over", keepdims=keepdims)
    if keepdims:
        y = s.conv(a, c, extents.outer, name="second")
    else:
        y = s.add("Gemm", a, s.whole([c, extents.outer]), name="second")
    model = s.model(y)
    if keeps or (shift == 0.0 and operator != "ReduceLogSumExp"):
        pruning.check(model, widths={"first": c}, tolerance=40 * ROUNDING)
    elif pruning.case(model).widths:
        pruning.check(model, tolerance=40 * ROUNDING)
    else:
        pruning.check(model, widths={}, refused={"first": ["'second'", "not a constant"]})


@pytest.mark.parametrize("extents", ["distinct"], indirect=True)
@pytest.mark.parametrize(
    "operator", [*sorted(LEAVES), "Clip", "Cast", "IsNaN", "IsInf", "Greater and Not"]
)
def test_what_is_not_known_stays_unknown(
    sketch: Any, pruning: Any, extents: Any, operator: str
) -> None:
    """Behind a number that is fed at run time no operator makes a constant again."""
    s = sketch(20)
    shift = s.input([extents.batch, 1, 1, 1], "shift")

    def middle(a: str) -> str:
        a = s.add("Add", a, shift)
        if operator == "Clip":
            return str(s.add("Clip", a, s.constant(-1.0), s.constant(2.0)))
        if operator == "Cast":
            a = s.add("Cast", a, to=TensorProto.INT32)
        elif operator in {"IsNaN", "IsInf"}:
            a = s.add(operator, a)
        elif operator == "Greater and Not":
            a = s.add("Not", s.add("Greater", a, s.constant(0.0)))
        else:
            return str(s.add(operator, a, **LEAVES[operator][0]))
        return str(s.add("Cast", a, to=TensorProto.FLOAT))

    pruning.check(
        s.sandwich(extents, middle),
        widths={},
        refused={"first": ["Conv 'second'", "not a constant"]},
    )


def test_zero_divided_by_what_becomes_zero_with_it(sketch: Any, pruning: Any, extents: Any) -> None:
    # Normalised zeros are zeros again: 0 / 0 must not be taken for 0.
    s = sketch()

    def middle(a: str) -> str:
        scale = s.constant(np.ones(extents.width))
        return str(s.add("Div", a, s.add("LayerNormalization", a, scale, axis=-1), name="ratio"))

    pruning.check(s.sandwich(extents, middle), widths={}, refused={"first": "'ratio'"})
