"""Where weights come from: shared, behind other nodes, quantised, fed at run time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto


def test_two_convs_share_one_bias(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    bias = s.whole([c], "bias", low=-3, high=3)
    a = s.add(
        "Conv", s.input(extents.image), s.whole([c, extents.source, 1, 1]), bias, name="first"
    )
    b = s.add("Conv", s.add("Relu", a), s.whole([c, c, 3, 3]), bias, name="second")
    y = s.conv(s.add("Relu", b), c, extents.outer, name="third")
    pruning.check(s.model(y), widths={"first": c, "second": c})


def test_two_convs_share_one_weight(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), 4
    weight = s.whole([c, c, 3, 3], "weight")
    a = s.conv(s.input(extents.image), extents.source, c, name="stem")
    heads = []
    for n, size in enumerate((1, 2)):
        level = s.add("MaxPool", a, kernel_shape=[size, size])
        b = s.add("Conv", level, weight, s.whole([c]), name=f"shared{n}", pads=[1] * 4)
        heads.append(s.conv(s.add("Relu", b), c, extents.outer, name=f"head{n}"))
    pruning.check(s.model(*heads), widths={"stem": c, "shared0": c, "shared1": c})


def test_one_weight_twice_in_a_row(sketch: Any, pruning: Any) -> None:
    s = sketch()
    weight = s.whole([4, 4, 3, 3], "weight")
    a = s.conv(s.input([2, 3, 8, 8]), 3, 4, name="stem")
    for n in range(2):
        a = s.add("Relu", s.add("Conv", a, weight, name=f"shared{n}", pads=[1] * 4))
    pruning.check(s.model(s.conv(a, 4, 5, name="head")))


def test_weight_shared_as_gemm_and_its_transpose(sketch: Any, pruning: Any) -> None:
    # An autoencoder with tied weights: B [3, 6] forwards, its transpose back.
    s = sketch()
    weight = s.whole([3, 6], "weight")
    a = s.add("Relu", s.add("Gemm", s.input([2, 3]), weight, s.whole([6]), name="encoder"))
    y = s.add("Gemm", a, weight, s.whole([3]), name="decoder", transB=1)
    pruning.check(s.model(y), widths={"encoder": 6}, refused={"decoder": "output"})


def test_weight_behind_an_identity(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    w = s.add("Identity", s.whole([c, extents.source, 1, 1]))
    a = s.add("Relu", s.add("Conv", s.input(extents.image), w, name="first"))
    v = s.add("Identity", s.whole([extents.outer, c, 3, 3]))
    y = s.add("Conv", a, v, s.add("Identity", s.whole([extents.outer])), name="second")
    pruning.check(s.model(y), widths={"first": c}, fold_constants=False)


def test_one_weight_behind_two_identities(sketch: Any, pruning: Any) -> None:
    # The Identity nodes hide from untying that both layers read one initializer.
    s = sketch()
    weight = s.whole([4, 4, 3, 3], "weight")
    a = s.conv(s.input([2, 3, 8, 8]), 3, 4, name="stem")
    b = s.add("Conv", a, s.add("Identity", weight), name="one", pads=[1] * 4)
    c = s.add("Conv", a, s.add("Cast", weight, to=TensorProto.FLOAT), name="other", pads=[1] * 4)
    ends = [s.conv(b, 4, 5, name="head"), s.conv(c, 4, 6, name="tail")]
    pruning.check(s.model(*ends))


@pytest.mark.parametrize(
    ("opset", "axis"), [(10, None), (13, None), (13, 0), (13, 1), (19, 0), (23, 0)]
)
@pytest.mark.parametrize("zero_point", [False, True])
def test_weight_behind_a_dequantize(
    sketch: Any, pruning: Any, extents: Any, opset: int, axis: int | None, *, zero_point: bool
) -> None:
    s, c = sketch(opset), extents.inner
    w = s.dequantised([c, extents.source, 1, 1], axis, zero_point=zero_point)
    a = s.add("Conv", s.input(extents.image), w, s.whole([c]), name="first")
    v = s.dequantised([extents.outer, c, 3, 3], axis, zero_point=zero_point)
    y = s.add("Conv", s.add("Relu", a), v, s.whole([extents.outer]), name="second")
    pruning.check(s.model(y), widths={"first": c})


def test_dequantised_bias(sketch: Any, pruning: Any) -> None:
    # Quantised models keep biases as int32 behind a DequantizeLinear.
    s = sketch()
    w = s.dequantised([6, 3, 1, 1], 0)
    bias = s.add("DequantizeLinear", s.whole([6], dtype=np.int32), s.scales([6]), axis=0)
    a = s.add("Conv", s.input([2, 3, 5, 7]), w, bias, name="first")
    y = s.conv(s.add("Relu", a), 6, 4, name="second")
    pruning.check(s.model(y), widths={"first": 6})


def test_dequantised_bias_takes_a_constant_channel_or_says_no(sketch: Any, pruning: Any) -> None:
    s = sketch()
    a = s.add("Add", s.conv(s.input([2, 3, 5, 7]), 3, 6, name="first"), s.constant(1.0))
    bias = s.add("DequantizeLinear", s.whole([4], dtype=np.int32), s.constant(0.5))
    y = s.add("Conv", a, s.whole([4, 6, 1, 1]), bias, name="second")
    model = s.model(y)
    case = pruning.case(model)
    if case.widths:
        pruning.check(model)
    else:
        pruning.check(model, widths={}, refused={"first": "Conv 'second'"})


@pytest.mark.parametrize("default", [False, True])
def test_weights_that_are_inputs(sketch: Any, pruning: Any, *, default: bool) -> None:
    # Fed at run time, a weight cannot be cut; with a default value it counts as a constant.
    s = sketch()
    weight = s.input([6, 3, 1, 1], "weight")
    a = s.conv(s.input([2, 3, 5, 7]), 3, 3, name="zeroth")
    b = s.add("Conv", a, weight, name="first")
    y = s.conv(s.add("Relu", b), 6, 4, name="second")
    if default:
        s.whole([6, 3, 1, 1], "weight")
        pruning.check(s.model(y), widths={"zeroth": 3, "first": 6})
        return
    pruning.check(
        s.model(y),
        widths={},
        refused={
            "zeroth": ["Conv 'first'", "'weight'", "fed at run time"],
            "first": ["'weight'", "fed at run time"],
        },
    )


def test_bias_that_is_an_input(sketch: Any, pruning: Any) -> None:
    s = sketch()
    bias = s.input([6], "bias")
    a = s.conv(s.input([2, 3, 5, 7]), 3, 3, name="zeroth")
    b = s.add("Conv", a, s.whole([6, 3, 1, 1]), bias, name="first")
    y = s.conv(s.add("Relu", b), 6, 4, name="second")
    pruning.check(s.model(y), widths={}, refused={"first": ["'bias'", "fed at run time"]})


def test_half_precision(sketch: Any, pruning: Any, extents: Any) -> None:
    # Whole numbers below 2048 are exact in float16: 3 * 2 * 6 * 2 * 8 stays far below.
    s, c = sketch(), extents.inner
    kind = {"dtype": np.float16}
    x = s.input(extents.image, kind=TensorProto.FLOAT16)
    w = s.whole([c, extents.source, 1, 1], low=-1, high=1, **kind)
    a = s.add("Conv", x, w, s.whole([c], **kind), name="first")
    a = s.add("Add", s.add("Relu", a), s.constant(1.0, **kind))
    v = s.whole([extents.outer, c, 1, 1], low=-1, high=1, **kind)
    y = s.add("Conv", a, v, s.whole([extents.outer], **kind), name="second")
    pruning.check(s.model(y), widths={"first": c})


def test_double_precision(sketch: Any, pruning: Any) -> None:
    s = sketch()
    kind = {"dtype": np.float64}
    x = s.input([2, 3], kind=TensorProto.DOUBLE)
    a = s.add("Gemm", x, s.whole([3, 6], **kind), s.whole([6], **kind), name="first")
    a = s.add("Sigmoid", a)
    y = s.add("Gemm", a, s.whole([6, 4], **kind), s.whole([4], **kind), name="second")
    # sigmoid(0) is exactly 1/2; sums of 6 others are rounded in another order: 6 ulps of 2**-52.
    pruning.check(s.model(y), widths={"first": 6}, tolerance=6 * 2.0**-52)
