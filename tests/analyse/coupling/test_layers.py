"""Layers with weights: every kind of convolution and dense layer loses channels on both sides."""

from __future__ import annotations

from typing import Any

import pytest

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
