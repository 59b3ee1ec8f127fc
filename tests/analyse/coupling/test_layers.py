"""Layers with weights: every kind of convolution and dense layer loses channels on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

OPSETS = [9, 11, 13, 17, 18, 21, 23]


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("padded", [False, True])
def test_conv_relu_conv(
    sketch: Any, pruning: Any, extents: Any, opset: int, *, padded: bool
) -> None:
    s = sketch(opset)
    model = s.sandwich(
        extents, lambda a: s.add("Relu", a), kernel=3, pads=[1, 1, 1, 1] if padded else [0, 0, 0, 0]
    )
    pruning.check(
        model, widths={"first": extents.inner}, refused={"second": ["output", "second_out"]}
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rank", [1, 3])
def test_conv_of_other_ranks(sketch: Any, pruning: Any, rank: int, *, bias: bool) -> None:
    for shape, inner in (([2, 3, 5, 7, 4][: rank + 2], 6), ([4] * (rank + 2), 4)):
        s = sketch()
        a = s.conv(s.input(shape), shape[1], inner, 2, name="first", rank=rank, bias=bias)
        y = s.conv(s.add("Relu", a), inner, 4, 2, name="second", rank=rank, bias=bias)
        pruning.check(s.model(y), widths={"first": inner})


def test_strides_dilations_and_automatic_padding(sketch: Any, pruning: Any, extents: Any) -> None:
    s = sketch()
    a = s.conv(
        s.input(extents.image),
        extents.source,
        extents.inner,
        3,
        name="first",
        auto_pad="SAME_UPPER",
        strides=[2, 1],
    )
    b = s.conv(a, extents.inner, 5, 2, name="second", dilations=[1, 2], pads=[0, 1, 1, 2])
    y = s.conv(b, 5, extents.outer, 1, name="third")
    pruning.check(s.model(y), widths={"first": extents.inner, "second": 5})


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_depthwise(sketch: Any, pruning: Any, extents: Any, multiplier: int, *, bias: bool) -> None:
    s, c = sketch(), extents.inner
    a = s.conv(s.input(extents.image), extents.source, c, name="first")
    b = s.conv(
        s.add("Relu", a), c, c * multiplier, 3, name="deep", group=c, pads=[1] * 4, bias=bias
    )
    y = s.conv(s.add("Relu", b), c * multiplier, extents.outer, name="second")
    case = pruning.check(s.model(y), widths={"first": c})
    assert set(case.coupling.group("first").producers) == {"first", "deep"}


def test_depthwise_alone_on_the_input_cannot_be_cut(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    s, c = sketch(), extents.source
    a = s.conv(s.input(extents.image), c, c, 3, name="deep", group=c)
    y = s.conv(a, c, extents.outer, name="second")
    pruning.check(s.model(y), widths={}, refused={"deep": ["Conv", "'deep'"]})


def test_grouped_conv_on_the_input_loses_nothing(sketch: Any, pruning: Any) -> None:
    # 2 groups of 3 inputs that stay: outputs can only go position by position.
    s = sketch()
    a = s.conv(s.input([2, 6, 5, 7]), 6, 8, 3, name="grouped", group=2)
    y = s.conv(s.add("Relu", a), 8, 5, name="second")
    pruning.check(s.model(y), widths={"grouped": 4})


@pytest.mark.parametrize("pads", [0, 1])
@pytest.mark.parametrize(("group", "inner", "outer", "width"), [(4, 12, 8, 4), (3, 12, 6, 4 + 2)])
def test_grouped_conv(
    sketch: Any, pruning: Any, group: int, inner: int, outer: int, width: int, pads: int
) -> None:
    # 4 groups of 3 in and 2 out: whole groups leave 4 classes, positions 3 on one side and 2 on
    # the other. 3 groups of 4 in and 2 out: whole groups leave 3 classes, positions 4 and 2.
    s = sketch()
    a = s.conv(s.input([2, 3, 5, 7]), 3, inner, name="first")
    b = s.conv(s.add("Relu", a), inner, outer, 3, name="grouped", group=group, pads=[pads] * 4)
    y = s.conv(s.add("Relu", b), outer, 5, name="second")
    case = pruning.check(s.model(y))
    assert sum(case.widths.values()) == max(group, width if group == 3 else 5), case.widths


@pytest.mark.parametrize("extent", [4, 5])
def test_grouped_conv_in_which_whole_groups_win(sketch: Any, pruning: Any, extent: int) -> None:
    # 4 groups of 2 in and 1 out: 4 whole groups against 2 + 1 positions.
    s = sketch()
    a = s.conv(s.input([2, 3, extent, 4]), 3, 8, name="first")
    b = s.conv(s.add("Relu", a), 8, 4, 3, name="grouped", group=4, pads=[1] * 4)
    y = s.conv(b, 4, 5, name="second")
    case = pruning.check(s.model(y), widths={"first": 4})
    assert set(case.coupling.group("first").producers) == {"first", "grouped"}


def test_grouped_conv_in_which_positions_win(sketch: Any, pruning: Any) -> None:
    # 2 groups of 4 in and 3 out: 2 whole groups against 4 + 3 positions.
    s = sketch()
    a = s.conv(s.input([2, 3, 5, 7]), 3, 8, name="first")
    b = s.conv(s.add("Relu", a), 8, 6, 3, name="grouped", group=2, pads=[1] * 4)
    y = s.conv(b, 6, 5, name="second")
    pruning.check(s.model(y), widths={"first": 4, "grouped": 3})


def test_grouped_conv_between_grouped_convs(sketch: Any, pruning: Any) -> None:
    # ResNeXt: groups of 4 in a row tie channels in blocks; everything equal to 8 and 2.
    s = sketch()
    a = s.conv(s.input([2, 8, 4, 4]), 8, 8, name="first")
    for n in range(3):
        a = s.conv(s.add("Relu", a), 8, 8, 3, name=f"grouped{n}", group=4, pads=[1] * 4)
    y = s.conv(a, 8, 8, name="second")
    pruning.check(s.model(y))


@pytest.mark.parametrize("opset", [9, 11, 22])
@pytest.mark.parametrize("bias", [False, True])
def test_conv_transpose(sketch: Any, pruning: Any, extents: Any, opset: int, *, bias: bool) -> None:
    s, c, d = sketch(opset), extents.inner, 5
    a = s.conv(s.input(extents.image), extents.source, c, name="first")
    more = [s.whole([d])] if bias else []
    b = s.add(
        "ConvTranspose", s.add("Relu", a), s.whole([c, d, 2, 3]), *more, name="up", strides=[2, 2]
    )
    y = s.conv(s.add("Relu", b), d, extents.outer, 2, name="second")
    pruning.check(s.model(y), widths={"first": c, "up": d})


def test_conv_transpose_with_padding_and_constant_channels(sketch: Any, pruning: Any) -> None:
    # A sigmoid leaves 1/2 in a channel that is zero, which the phases of the stride would show.
    s = sketch()
    a = s.add("Sigmoid", s.conv(s.input([2, 3, 5, 7]), 3, 6, name="first"))
    y = s.add("ConvTranspose", a, s.whole([6, 4, 3, 3]), name="up", strides=[2, 2])
    pruning.check(
        s.model(y), widths={}, refused={"first": ["ConvTranspose 'up'", "border"], "up": "output"}
    )


@pytest.mark.parametrize("outputs", [4, 8])
def test_depthwise_conv_transpose(sketch: Any, pruning: Any, extents: Any, outputs: int) -> None:
    s, c = sketch(), 4
    a = s.conv(s.input(extents.image), extents.source, c, name="first")
    w, b = s.whole([c, outputs // c, 2, 2]), s.whole([outputs])
    up = s.add("ConvTranspose", s.add("Relu", a), w, b, name="up", strides=[2, 2], group=c)
    y = s.conv(up, outputs, extents.outer, name="second")
    pruning.check(s.model(y), widths={"first": c})


@pytest.mark.parametrize(
    ("group", "inner", "outer", "widths"),
    [(4, 8, 4, {"first": 4}), (2, 8, 6, {"first": 4, "up": 3}), (3, 6, 6, None)],
)
def test_grouped_conv_transpose(
    sketch: Any, pruning: Any, group: int, inner: int, outer: int, widths: Any
) -> None:
    s = sketch()
    a = s.conv(s.input([2, 3, 5, 7]), 3, inner, name="first")
    w, b = s.whole([inner, outer // group, 2, 2]), s.whole([outer])
    up = s.add("ConvTranspose", s.add("Relu", a), w, b, name="up", strides=[2, 2], group=group)
    y = s.conv(s.add("Relu", up), outer, 5, name="second")
    pruning.check(s.model(y), widths=widths)


C_SHAPES = {
    "absent": None,
    "scalar": [],
    "one": [1],
    "one by one": [1, 1],
    "line": ["c"],
    "row": [1, "c"],
    "column": ["n", 1],
    "full": ["n", "c"],
}


@pytest.mark.parametrize("shape", C_SHAPES)
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(sketch: Any, pruning: Any, shape: str, transposed: int) -> None:
    for n, source, inner, outer in ((2, 3, 6, 5), (4, 4, 4, 4)):
        s = sketch()
        real = {"n": n, "c": inner}
        dims = C_SHAPES[shape]
        # A missing C needs opset 11, which 17 is.
        c = [] if dims is None else [s.whole([real.get(d, d) for d in dims], low=-3, high=3)]
        b = s.whole([inner, source] if transposed else [source, inner])
        a = s.add(
            "Gemm",
            s.input([n, source]),
            b,
            *c,
            name="first",
            transB=transposed,
            alpha=2.0,
            beta=-1.0,
        )
        d = s.whole([outer, inner] if transposed else [inner, outer])
        y = s.add("Gemm", s.add("Relu", a), d, name="second", transB=transposed, alpha=0.5)
        pruning.check(s.model(y), widths={"first": inner}, refused={"second": "output"})


@pytest.mark.parametrize("opset", [9, 11, 13])
@pytest.mark.parametrize("shape", ["scalar", "one", "one by one", "line", "row", "column", "full"])
def test_gemm_takes_constant_channels_into_every_shape_of_bias(
    sketch: Any, pruning: Any, shape: str, opset: int
) -> None:
    # The Add leaves 1: a removed channel still adds alpha B[channel] to every output of 'second'.
    for n, source, inner, outer in ((2, 3, 6, 5), (4, 4, 4, 4)):
        s = sketch(opset)
        a = s.add(
            "Gemm", s.input([n, source]), s.whole([source, inner]), s.whole([inner]), name="first"
        )
        real = {"n": n, "c": outer}
        c = s.whole([real.get(d, d) for d in C_SHAPES[shape]], low=-3, high=3)
        one = s.add("Add", a, s.constant(1.0))
        y = s.add("Gemm", one, s.whole([inner, outer]), c, name="second", alpha=2.0, beta=3.0)
        y = s.add("Gemm", y, s.whole([outer, 3]), s.whole([3]), name="third")
        pruning.check(s.model(y), widths={"first": inner, "second": outer})


def test_gemm_that_transposes_its_data_is_refused(sketch: Any, pruning: Any) -> None:
    s = sketch()
    a = s.add("Gemm", s.input([4, 3]), s.whole([3, 5]), s.whole([5]), name="first")
    y = s.add("Gemm", a, s.whole([4, 6]), name="second", transA=1)
    pruning.check(
        s.model(y),
        widths={},
        refused={"first": ["Gemm 'second'", "transposed"], "second": "transposed"},
    )


@pytest.mark.parametrize("order", ["bias last", "bias first"])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_matmul_and_add(sketch: Any, pruning: Any, rank: int, order: str) -> None:
    for shape, inner, outer in (([2, 5, 7, 3][-rank:], 6, 4), ([4] * rank, 4, 4)):
        s = sketch()
        a = s.add("MatMul", s.input(shape), s.whole([shape[-1], inner]), name="first")
        pair = [a, s.whole([inner], low=-3, high=3)]
        a = s.add("Add", *(pair if order == "bias last" else pair[::-1]))
        a = s.add("MatMul", a, s.whole([inner, outer]), name="second")
        y = s.add("Add", a, s.whole([1, outer], low=-3, high=3))
        # What the Add puts into a removed channel goes through 'second' into a new bias.
        pruning.check(s.model(y), widths={"first": inner}, refused={"second": "output"})


def test_matmul_by_a_stack_of_matrices_is_refused(sketch: Any, pruning: Any) -> None:
    s = sketch()
    a = s.add("MatMul", s.input([2, 5, 3]), s.whole([3, 6]), name="first")
    y = s.add("MatMul", a, s.whole([2, 6, 4]), name="second")
    pruning.check(
        s.model(y),
        widths={},
        refused={"first": ["MatMul 'second'", "not a matrix"], "second": "not a matrix"},
    )


def test_matmul_of_two_tensors_is_a_barrier(sketch: Any, pruning: Any) -> None:
    s = sketch()
    x = s.input([2, 4, 4])
    a = s.add("MatMul", x, s.whole([4, 4]), name="left")
    b = s.add("MatMul", x, s.whole([4, 4]), name="right")
    y = s.add("MatMul", a, b, name="product")
    pruning.check(
        s.model(y),
        widths={},
        refused={
            "left": ["MatMul 'product'", "computed or fed"],
            "right": ["MatMul 'product'", "computed or fed"],
            "product": ["right", "computed or fed"],
        },
    )


def test_matmul_with_the_constant_on_the_left_is_a_barrier(sketch: Any, pruning: Any) -> None:
    s = sketch()
    a = s.add("MatMul", s.input([4, 4]), s.whole([4, 4]), name="first")
    y = s.add("MatMul", s.whole([4, 4]), a, name="second")
    pruning.check(s.model(y), widths={}, refused={"first": "MatMul 'second'"})


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


def _dequantised(
    s: Any, shape: list[int], axis: int | None, *, opset: int, zero_point: bool = True
) -> str:
    kind = {"dtype": np.int8}
    count = [] if axis is None else [shape[axis]]
    operands = [s.whole(shape, low=-3, high=3, **kind), s.constant(2.0 ** s_range(count))]
    if zero_point:
        operands.append(
            s.whole(count, low=-2, high=2, **kind) if count else s.constant(1, dtype=np.int8)
        )
    more = {} if axis is None or opset < 13 else {"axis": axis}
    return str(s.add("DequantizeLinear", *operands, **more))


def s_range(count: list[int]) -> np.ndarray:
    """Exponents -1, 0, 1, -1, ... so that scales are powers of two."""
    return np.arange(count[0]) % 3 - 1.0 if count else np.array(-1.0)


@pytest.mark.parametrize(
    ("opset", "axis"), [(10, None), (13, None), (13, 0), (13, 1), (19, 0), (23, 0)]
)
@pytest.mark.parametrize("zero_point", [False, True])
def test_weight_behind_a_dequantize(
    sketch: Any, pruning: Any, extents: Any, opset: int, axis: int | None, *, zero_point: bool
) -> None:
    s, c = sketch(opset), extents.inner
    w = _dequantised(s, [c, extents.source, 1, 1], axis, opset=opset, zero_point=zero_point)
    a = s.add("Conv", s.input(extents.image), w, s.whole([c]), name="first")
    v = _dequantised(s, [extents.outer, c, 3, 3], axis, opset=opset, zero_point=zero_point)
    y = s.add("Conv", s.add("Relu", a), v, s.whole([extents.outer]), name="second")
    pruning.check(s.model(y), widths={"first": c})


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_dequantised_matmul_takes_constant_channels(
    sketch: Any, pruning: Any, axis: int | None
) -> None:
    for source, inner, outer in ((3, 6, 5), (4, 4, 4)):
        s = sketch()
        a = s.add(
            "MatMul",
            s.input([2, source]),
            _dequantised(s, [source, inner], axis, opset=17),
            name="first",
        )
        a = s.add("Add", a, s.whole([inner], low=-3, high=3))
        y = s.add("MatMul", a, _dequantised(s, [inner, outer], axis, opset=17), name="second")
        pruning.check(s.model(y), widths={"first": inner})


def test_dequantised_bias(sketch: Any, pruning: Any) -> None:
    # Quantised models keep biases as int32 behind a DequantizeLinear.
    s = sketch()
    w = _dequantised(s, [6, 3, 1, 1], 0, opset=17)
    bias = s.add(
        "DequantizeLinear", s.whole([6], dtype=np.int32), s.constant(2.0 ** s_range([6])), axis=0
    )
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


def test_dynamic_batch_and_size(sketch: Any, pruning: Any) -> None:
    s = sketch()
    a = s.conv(s.input(["n", 3, "h", "w"]), 3, 6, 3, name="first", pads=[1] * 4)
    b = s.conv(s.add("Relu", a), 6, 6, 3, name="deep", group=6, pads=[1] * 4)
    c = s.add("Add", s.add("GlobalAveragePool", b), b)
    y = s.conv(s.add("Relu", c), 6, 4, name="second")
    pruning.check(
        s.model(y),
        widths={"first": 6},
        sizes={"x": (1, 3, 4, 4)},
        also=[{"x": (3, 3, 8, 4)}, {"x": (6, 3, 2, 16)}],
    )


def test_width_one_has_nothing_to_remove(sketch: Any, pruning: Any) -> None:
    s = sketch()
    a = s.conv(s.input([2, 3, 5, 7]), 3, 1, name="first")
    y = s.conv(s.add("Relu", a), 1, 4, name="second")
    pruning.check(s.model(y), widths={}, refused={"first": "nothing would be left"})
