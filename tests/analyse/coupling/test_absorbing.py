"""Constants that removed channels leave: the next layer's bias takes them, or the channels stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


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
