"""What a removed channel leaves behind: constants that the next layer's bias takes, or a refusal.

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


@pytest.mark.parametrize("consumer", ["Conv", "grouped Conv", "Gemm", "MatMul", "ConvTranspose"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("opset", [9, 21])
def test_every_consumer_takes_the_constant(
    sketch: Any, pruning: Any, extents: Any, consumer: str, opset: int, *, bias: bool
) -> None:
    """2 relu(a) + (k per channel) leaves k, exactly, in whole numbers."""
    s, c, d = sketch(opset), 8 if consumer == "grouped Conv" else extents.inner, 6
    a = s.conv(s.input(extents.image), extents.source, c, name="first")
    a = s.add("Add", s.add("Relu", a), s.whole([c, 1, 1], low=-3, high=3))
    more = [s.whole([d], low=-3, high=3)] if bias else []
    if consumer == "Conv":
        b = s.conv(a, c, d, 2, name="second", bias=bias)
        widths = {"first": c, "second": d}
    elif consumer == "grouped Conv":
        # 2 groups of 4 in and 3 out: positions go.
        b = s.conv(a, c, d, 2, name="second", bias=bias, group=2)
        widths = {"first": 4, "second": 3}
    elif consumer == "ConvTranspose":
        b = s.add("ConvTranspose", a, s.whole([c, d, 2, 2]), *more, name="second")
        widths = {"second": d}
    else:
        # The channels go last, where dense layers look for them.
        a = s.add("Transpose", a, perm=[0, 2, 3, 1])
        if consumer == "Gemm":
            a = s.add("Flatten", a, axis=3)
            if not bias and opset < 11:
                more = [s.constant(0.0)]
            b = s.add("Gemm", a, s.whole([c, d]), *more, name="second", alpha=2.0)
            y = s.add("Gemm", s.add("Relu", b), s.whole([d, 3]), s.whole([3]), name="third")
        else:
            b = s.add("MatMul", a, s.whole([c, d]), name="second")
            b = s.add("Add", b, *more) if bias else b
            y = s.add("MatMul", s.add("Relu", b), s.whole([d, 3]), name="third")
        pruning.check(s.model(y), widths={"first": c, "second": d})
        return
    y = s.conv(s.add("Relu", b), d, 5, name="third")
    pruning.check(s.model(y), widths=widths)


def test_a_constant_goes_through_several_layers(sketch: Any, pruning: Any, extents: Any) -> None:
    # 'second' absorbs what 'first' leaves, while its own channels leave constants for 'third'.
    s, c = sketch(), extents.inner
    a = s.conv(s.input(extents.image), extents.source, c, name="first")
    b = s.conv(s.add("Add", a, s.constant(1.0)), c, 5, 2, name="second")
    d = s.conv(s.add("Add", b, s.whole([5, 1, 1])), 5, 4, 2, name="third")
    y = s.conv(s.add("Sub", s.constant(2.0), d), 4, extents.outer, name="fourth")
    pruning.check(s.model(y), widths={"first": c, "second": 5, "third": 4})


def test_a_constant_reaches_two_consumers(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    a = s.conv(s.input(extents.image), extents.source, c, name="first")
    a = s.add("Add", a, s.whole([c, 1, 1]))
    ends = [s.conv(a, c, 5, 2, name="left"), s.conv(s.add("Relu", a), c, 4, name="right")]
    pruning.check(s.model(*ends), widths={"first": c})


def test_a_border_behind_one_of_two_consumers(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    a = s.conv(s.input(extents.image), extents.source, c, name="first")
    a = s.add("Add", a, s.constant(1.0))
    plain = s.conv(a, c, 5, 3, name="plain")
    padded = s.conv(a, c, 4, 3, name="padded", pads=[0, 0, 0, 1])
    pruning.check(s.model(plain, padded), widths={}, refused={"first": ["Conv 'padded'", "border"]})


def test_only_channels_that_leave_nothing_may_meet_a_border(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    # Of a constant per channel, half are zero: those channels go, the others stay.
    s, c = sketch(), extents.inner
    shift = s.constant((np.arange(c) % 2).reshape(c, 1, 1))
    model = s.sandwich(extents, lambda a: s.add("Add", a, shift), kernel=3, pads=[1, 0, 0, 0])
    case = pruning.check(model, widths={"first": (c + 1) // 2})
    lane = case.coupling.lanes["first_out"]
    assert np.flatnonzero(lane.classes).tolist() == list(range(0, c, 2))


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding_is_padding(sketch: Any, pruning: Any, extents: Any, auto: str) -> None:
    s, c = sketch(), extents.inner
    model = s.sandwich(extents, lambda a: s.add("Add", a, s.constant(1.0)), kernel=3, auto_pad=auto)
    if auto == "VALID":
        pruning.check(model, widths={"first": c})
    else:
        pruning.check(model, widths={}, refused={"first": ["Conv 'second'", "border"]})


def test_constants_of_two_groups_meet_in_one_consumer(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    s, c = sketch(), extents.inner
    x = s.input(extents.image)
    a = s.add("Add", s.conv(x, extents.source, c, name="one"), s.whole([c, 1, 1]))
    b = s.add("Sub", s.constant(3.0), s.conv(x, extents.source, 5, name="other"))
    y = s.conv(s.add("Concat", a, b, axis=1), c + 5, extents.outer, 2, name="second")
    pruning.check(s.model(y), widths={"one": c, "other": 5})


def test_constants_of_two_streams_multiply(sketch: Any, pruning: Any, extents: Any) -> None:
    # (0 + k) (0 + m): both streams leave constants, whose product the bias takes.
    s, c = sketch(), extents.inner
    x = s.input(extents.image)
    a = s.add("Add", s.conv(x, extents.source, c, name="one"), s.whole([c, 1, 1]))
    b = s.add("Add", s.conv(x, extents.source, c, name="other"), s.whole([c, 1, 1]))
    y = s.conv(s.add("Mul", a, b), c, extents.outer, name="second")
    pruning.check(s.model(y), widths={"one": c})


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


@pytest.mark.parametrize("value", [0.0, 1.0, 2.0])
def test_explicit_padding_of_a_constant(
    sketch: Any, pruning: Any, extents: Any, value: float
) -> None:
    # Padded with 1 a channel that leaves 1 stays a constant; padded with anything else it does not.
    s, c = sketch(), extents.inner

    def middle(a: str) -> str:
        a = s.add("Add", a, s.constant(1.0))
        amounts = s.constant([0, 0, 1, 0, 0, 0, 1, 1], dtype=np.int64)
        return str(s.add("Pad", a, amounts, s.constant(value), name="frame"))

    model = s.sandwich(extents, middle, kernel=2)
    if value == 1.0:
        pruning.check(model, widths={"first": c})
    else:
        pruning.check(model, widths={}, refused={"first": ["Conv 'second'", "not a constant"]})


def test_constant_that_reaches_an_output_is_refused(sketch: Any, pruning: Any) -> None:
    s = sketch()
    a = s.conv(s.input([2, 3, 4, 4]), 3, 4, name="first")
    y = s.add("Sigmoid", a)
    pruning.check(s.model(y), widths={}, refused={"first": "graph's output"})


@pytest.mark.parametrize("shared", [False, True])
def test_absorption_into_a_bias_that_others_read(
    sketch: Any, pruning: Any, extents: Any, *, shared: bool
) -> None:
    # The neighbour's bias must stay what it was.
    s, c = sketch(), extents.inner
    x = s.input(extents.image)
    bias = s.whole([4], low=-3, high=3)
    other = bias if shared else s.whole([4], low=-3, high=3)
    a = s.add("Add", s.conv(x, extents.source, c, name="first"), s.constant(1.0))
    ends = [
        s.add("Conv", a, s.whole([4, c, 1, 1]), bias, name="second"),
        s.add("Conv", x, s.whole([4, extents.source, 1, 1]), other, name="neighbour"),
    ]
    pruning.check(s.model(*ends), widths={"first": c})


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
