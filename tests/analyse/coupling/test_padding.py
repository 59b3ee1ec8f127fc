"""Pad: in space, and along channels, where what it adds are channels, too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

NEWEST = 26
INT = {"dtype": np.int64}


def first(s: Any, e: Any, channels: int | None = None) -> str:
    return str(s.conv(s.input(e.image), e.source, channels or e.inner, name="first"))


def pad(
    s: Any,
    a: str,
    pads: list[int],
    *,
    value: float | None = None,
    mode: str = "constant",
    axes: list[int] | None = None,
    name: str = "pad",
) -> str:
    """A Pad as the opset wants it: amounts are an input since 11, axes may be given since 18."""
    if s.opset < 11:
        more = {} if value is None else {"value": value}
        return str(s.add("Pad", a, pads=pads, mode=mode, name=name, **more))
    operands = [s.constant(pads, **INT)]
    if value is not None or axes is not None:
        operands.append("" if value is None else s.constant(value))
    if axes is not None:
        operands.append(s.constant(axes, **INT))
    return str(s.add("Pad", a, *operands, mode=mode, name=name))


SPACE = [0, 0, 1, 2, 0, 0, 2, 1]


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 19, NEWEST])
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding_of_space(sketch: Any, pruning: Any, extents: Any, opset: int, mode: str) -> None:
    s, e = sketch(opset), extents
    model = s.sandwich(e, lambda a: pad(s, a, SPACE, mode=mode), kernel=3)
    pruning.check(model, widths={"first": e.inner})


@pytest.mark.parametrize("opset", [18, 21, NEWEST])
@pytest.mark.parametrize(("axes", "pads"), [([2, 3], [1, 2, 2, 1]), ([-1], [2, 1])])
@pytest.mark.parametrize("mode", ["constant", "edge", "wrap"])
def test_padding_of_named_axes(
    sketch: Any, pruning: Any, extents: Any, opset: int, axes: Any, pads: Any, mode: str
) -> None:
    s, e = sketch(19 if mode == "wrap" and opset == 18 else opset), extents
    model = s.sandwich(e, lambda a: pad(s, a, pads, mode=mode, axes=axes), kernel=3)
    pruning.check(model, widths={"first": e.inner})


@pytest.mark.parametrize("opset", [9, 11, 18])
def test_padding_with_ones_leaves_no_constant(
    sketch: Any, pruning: Any, extents: Any, opset: int
) -> None:
    s, e = sketch(opset), extents
    model = s.sandwich(e, lambda a: pad(s, a, SPACE, value=1.0), kernel=3)
    pruning.check(model, widths={}, refused={"first": "what reaches Conv 'second' is not"})


@pytest.mark.parametrize("opset", [9, 11, 18])
def test_padding_with_what_is_there_keeps_it(
    sketch: Any, pruning: Any, extents: Any, opset: int
) -> None:
    s, e = sketch(opset), extents

    def middle(a: str) -> str:
        return pad(s, s.add("Add", a, s.constant(2.0)), SPACE, value=2.0)

    pruning.check(s.sandwich(e, middle, kernel=3), widths={"first": e.inner})


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_padding_that_repeats_keeps_constants(
    sketch: Any, pruning: Any, extents: Any, mode: str
) -> None:
    s, e = sketch(), extents

    def middle(a: str) -> str:
        return pad(s, s.add("Add", a, s.whole([e.inner, 1, 1], low=1)), SPACE, mode=mode)

    pruning.check(s.sandwich(e, middle, kernel=3), widths={"first": e.inner})


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_padding_of_a_map_that_changes_in_space(
    sketch: Any, pruning: Any, extents: Any, mode: str
) -> None:
    # A positional map leaves other values in every row; a second one meets the padded rows.
    s, e = sketch(), extents
    a = s.add("Add", first(s, e), s.whole([1, 1, e.height, 1], low=0))
    a = pad(s, a, SPACE, mode=mode)
    a = s.add("Add", a, s.whole([1, 1, e.height + 3, 1], low=0))
    y = s.conv(a, e.inner, e.outer, name="last")
    said = {"first": "what reaches Conv 'last' is not a constant"}
    pruning.check(s.model(y), widths={}, refused=said)


def test_cropping_by_negative_padding(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    model = s.sandwich(e, lambda a: pad(s, a, [0, 0, -1, 0, 0, 0, 0, -1], value=1.0))
    pruning.check(model, widths={"first": e.inner})


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 18, NEWEST])
@pytest.mark.parametrize("named", [False, True])
def test_shortcut_of_padded_channels(
    sketch: Any, pruning: Any, extents: Any, opset: int, *, named: bool
) -> None:
    # Option A of CIFAR ResNets: every second pixel, and zeros for the channels that are new.
    s, e = sketch(opset), extents
    a = s.add("Relu", first(s, e, 4))
    if opset < 10:
        # No steps yet: a pooling window of one does the same.
        small = s.add("MaxPool", a, kernel_shape=[1, 1], strides=[2, 2])
    else:
        last = s.constant([2**31 - 1] * 2, **INT)
        pick = [s.constant([0, 0], **INT), last, s.constant([2, 3], **INT)]
        small = s.add("Slice", a, *pick, s.constant([2, 2], **INT))
    if named and opset >= 18:
        short = pad(s, small, [2, 3], axes=[-3])
    else:
        short = pad(s, small, [0, 2, 0, 0, 0, 3, 0, 0], value=0.0)
    long = s.conv(a, 4, 9, 3, name="long", strides=[2, 2], pads=[1] * 4)
    both = s.add("Relu", s.add("Add", short, long))
    y = s.conv(both, 9, e.outer, name="last")
    # Four channels are shared, five are the long branch's own.
    case = pruning.check(s.model(y), widths={"first": 9})
    assert case.coupling.group("first").producers == ("first", "long")


def test_three_shortcuts_of_padded_channels(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    a, width = first(s, e, 4), 4
    for n in range(3):
        short = pad(s, a, [0, 1, 0, 0, 0, 1, 0, 0], name=f"pad{n}")
        width += 2
        long = s.conv(s.add("Relu", a), width - 2, width, 3, name=f"long{n}", pads=[1] * 4)
        a = s.add("Add", short, long)
    y = s.conv(a, width, e.outer, name="last")
    pruning.check(s.model(y), widths={"first": 10})


@pytest.mark.parametrize("opset", [9, 11, 18])
def test_padded_channels_of_another_value(
    sketch: Any, pruning: Any, extents: Any, opset: int
) -> None:
    s, e = sketch(opset), extents
    x = s.input(e.image)
    a = s.conv(x, e.source, 4, name="first")
    wide = pad(s, a, [0, 1, 0, 0, 0, 2, 0, 0], value=3.0)
    other = s.conv(x, e.source, 7, name="other")
    y = s.conv(s.add("Add", wide, other), 7, e.outer, name="last")
    pruning.check(s.model(y), widths={"first": 7})


def test_padded_channels_and_space_at_once(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    wide = pad(s, first(s, e, 4), [0, 1, 1, 0, 0, 2, 0, 1], value=3.0)
    y = s.conv(wide, 7, e.outer, name="last")
    said = {"first": "what reaches Conv 'last' is not a constant"}
    pruning.check(s.model(y), widths={}, refused=said)


def test_padded_channels_without_a_partner_stay(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    wide = pad(s, first(s, e, 4), [0, 1, 0, 0, 0, 2, 0, 0], value=3.0)
    pruning.check(s.model(s.conv(wide, 7, e.outer, name="last")), widths={"first": 4})


@pytest.mark.parametrize(
    ("mode", "pads"),
    [("reflect", [0, 1, 0, 0, 0, 1, 0, 0]), ("constant", [0, -1, 0, 0, 0, 1, 0, 0])],
)
def test_channels_mixed_by_padding_are_declined(
    sketch: Any, pruning: Any, extents: Any, mode: str, pads: list[int]
) -> None:
    s, e = sketch(), extents
    width = e.inner + pads[1] + pads[5]
    y = s.conv(pad(s, first(s, e), pads, mode=mode), width, e.outer, name="last")
    pruning.check(s.model(y), widths={}, refused={"first": ["Pad 'pad'", "mixes or crops"]})


def test_amounts_decided_at_run_time(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    amounts = s.add("Mul", s.input([8], "number", kind=7), s.constant(SPACE, **INT))
    y = s.conv(s.add("Pad", first(s, e), amounts, name="pad"), e.inner, e.outer, name="last")
    model = s.model(y, **{y: [e.batch, e.outer, "h", "w"]})
    pruning.check(model, widths={}, refused={"first": ["Pad 'pad'", "run time how much"]})
