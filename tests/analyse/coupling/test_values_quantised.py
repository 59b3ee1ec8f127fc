"""Constants that quantisation and half precision leave are absorbed as they are computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

# Each term of a sum of `count` products of a rounded value and a weight of at most 2 is off by a
# few roundings of 2**-24, and the sum by as many again in another order.
ROUNDING = 2.0**-21


def test_half_precision_sigmoid(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    kind = {"dtype": np.float16}
    x = s.input(extents.image, kind=TensorProto.FLOAT16)
    a = s.add("Conv", x, s.whole([c, extents.source, 1, 1], low=-1, high=1, **kind), name="first")
    a = s.add("Sigmoid", a)
    b = s.whole([extents.outer], **kind)
    y = s.add("Conv", a, s.whole([extents.outer, c, 1, 1], **kind), b, name="second")
    # float16 has 11 bits; the result is rounded once, and so is the new bias.
    pruning.check(s.model(y), widths={"first": c}, tolerance=4 * 2.0**-11)


@pytest.mark.parametrize("scale", [[], ["c"]], ids=["per tensor", "per axis"])
@pytest.mark.parametrize(("opset", "zero_point"), [(13, 0), (13, 3), (21, 3), (23, 3)])
def test_quantised_activations(
    sketch: Any, pruning: Any, extents: Any, scale: list[str], opset: int, zero_point: int
) -> None:
    # Quantised and back, zero is zero again, whatever the zero point.
    s, c = sketch(opset), extents.inner
    more = {"axis": 1} if scale else {}

    def middle(a: str) -> str:
        steps = 2.0 ** (np.arange(c) % 3) if scale else 2.0
        points = np.full(c, zero_point) if scale else zero_point
        step, point = s.constant(steps), s.constant(points, dtype=np.int8)
        b = s.add("QuantizeLinear", a, step, point, **more)
        return str(s.add("DequantizeLinear", b, step, point, **more))

    model = s.sandwich(extents, middle, kernel=3, pads=[1] * 4)
    pruning.check(model, widths={"first": c})


@pytest.mark.parametrize("axis", [0, 2, 3, -1])
def test_quantised_along_another_axis(sketch: Any, pruning: Any, extents: Any, axis: int) -> None:
    # With equal extents, a scale along the height or width must not be taken for one per channel.
    s, c = sketch(), extents.inner
    extent = [extents.batch, c, extents.height, extents.width][axis]

    def middle(a: str) -> str:
        step = s.constant(2.0 ** (np.arange(extent) % 3))
        point = s.constant(np.zeros(extent), dtype=np.int8)
        b = s.add("QuantizeLinear", a, step, point, axis=axis)
        return str(s.add("DequantizeLinear", b, step, point, axis=axis))

    pruning.check(s.sandwich(extents, middle), widths={"first": c})


def test_quantised_constant_is_absorbed_as_it_is_quantised(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    # 1 in steps of 3/4 is 3/4: rounded to one step before the bias takes it.
    s, c = sketch(), extents.inner

    def middle(a: str) -> str:
        a = s.add("Add", a, s.constant(1.0))
        step, point = s.constant(0.75), s.constant(5, dtype=np.uint8)
        return str(s.add("DequantizeLinear", s.add("QuantizeLinear", a, step, point), step, point))

    pruning.check(s.sandwich(extents, middle), widths={"first": c})


def test_quantised_constant_that_saturates(sketch: Any, pruning: Any, extents: Any) -> None:
    # -4 below a zero point of 2 is cut off at -2.
    s, c = sketch(), extents.inner

    def middle(a: str) -> str:
        a = s.add("Sub", a, s.constant(4.0))
        step, point = s.constant(1.0), s.constant(2, dtype=np.uint8)
        return str(s.add("DequantizeLinear", s.add("QuantizeLinear", a, step, point), step, point))

    pruning.check(s.sandwich(extents, middle), widths={"first": c})


def test_unsigned_by_default(sketch: Any, pruning: Any, extents: Any) -> None:
    # Without a zero point QuantizeLinear makes uint8.
    s, c = sketch(), extents.inner

    def middle(a: str) -> str:
        step = s.constant(0.5)
        return str(s.add("DequantizeLinear", s.add("QuantizeLinear", a, step), step))

    pruning.check(s.sandwich(extents, middle, kernel=3, pads=[1] * 4), widths={"first": c})


def test_dequantised_weight_takes_a_constant(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    weight = s.whole([extents.outer, c, 2, 2], dtype=np.int8, low=-3, high=3)
    scale = s.constant(2.0 ** (np.arange(extents.outer) % 3 - 1))
    a = s.conv(s.input(extents.image), extents.source, c, name="first")
    a = s.add("Add", a, s.whole([c, 1, 1]))
    w = s.add("DequantizeLinear", weight, scale, axis=0)
    y = s.add("Conv", a, w, s.whole([extents.outer]), name="second")
    pruning.check(s.model(y), widths={"first": c})


def test_dequantised_weight_without_a_bias_takes_a_constant(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    s, c = sketch(), extents.inner
    weight = s.whole([extents.outer, c, 2, 2], dtype=np.int8, low=-3, high=3)
    a = s.conv(s.input(extents.image), extents.source, c, name="first")
    a = s.add("Add", a, s.whole([c, 1, 1]))
    y = s.add("Conv", a, s.add("DequantizeLinear", weight, s.constant(0.5)), name="second")
    pruning.check(s.model(y), widths={"first": c})


@pytest.mark.parametrize("consumer", ["Conv", "MatMul"])
@pytest.mark.parametrize("bias", [False, True])
def test_weight_in_half_precision_behind_a_cast_takes_a_constant(
    sketch: Any, pruning: Any, consumer: str, *, bias: bool
) -> None:
    # Stored as float16, computed in float32: the new bias is float32.
    s = sketch()
    half = {"dtype": np.float16}
    if consumer == "Conv":
        a = s.conv(s.input([2, 3, 5, 7]), 3, 6, name="first")
        w = s.add("Cast", s.whole([4, 6, 1, 1], **half), to=TensorProto.FLOAT)
    else:
        a = s.add("MatMul", s.input([2, 3]), s.whole([3, 6]), name="first")
        w = s.add("Cast", s.whole([6, 4], **half), to=TensorProto.FLOAT)
    a = s.add("Add", a, s.constant(1.0))
    if consumer == "Conv":
        y = s.add("Conv", a, w, *([s.whole([4])] if bias else []), name="second")
    else:
        y = s.add("MatMul", a, w, name="second")
        y = s.add("Add", y, s.whole([4])) if bias else y
    pruning.check(s.model(y), widths={"first": 6})


def test_weight_dequantised_to_half_precision_takes_a_constant(sketch: Any, pruning: Any) -> None:
    s = sketch(19)
    half = {"dtype": np.float16}
    x = s.input([2, 3, 5, 7], kind=TensorProto.FLOAT16)
    a = s.add("Conv", x, s.whole([6, 3, 1, 1], low=-1, high=1, **half), name="first")
    a = s.add("Add", a, s.constant(1.0, **half))
    w = s.add("DequantizeLinear", s.whole([4, 6, 1, 1], dtype=np.int8), s.constant(0.5, **half))
    pruning.check(s.model(s.add("Conv", a, w, name="second")), widths={"first": 6})


def test_quantised_constant_near_the_middle_of_a_step(sketch: Any, pruning: Any) -> None:
    # In float32 0.35 / 0.1 is 3.5, which is rounded to 4; in float64 it stays below, at 3.
    s = sketch()
    step, point = s.constant(0.1), s.constant(0, dtype=np.int8)
    a = s.add("Add", s.conv(s.input([2, 3, 5, 7]), 3, 6, name="first"), s.constant(0.35))
    a = s.add("DequantizeLinear", s.add("QuantizeLinear", a, step, point), step, point)
    model = s.model(s.conv(a, 6, 4, name="second"))
    pruning.check(model, widths={"first": 6}, tolerance=6 * ROUNDING)
