"""Operators that change extents, Pad apart: Resize, Upsample, Expand and Tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

NEWEST = 26
# Interpolated or averaged numbers are rounded alike with and without the removed channels; a sum
# of at most 54 products of them (6 channels, 3x3) is then rounded in another order: 54 half ulps.
ROUNDED = 54 * 2.0**-24
# Behind a cubic or linear filter a constant is itself but for the rounding of the filter, too:
# 16 weights of magnitude at most 2 each time, by 16 half ulps more.
FILTERED = ROUNDED + 16 * 2.0**-24
INT = {"dtype": np.int64}


def first(s: Any, e: Any, channels: int | None = None) -> str:
    return str(s.conv(s.input(e.image), e.source, channels or e.inner, name="first"))


def resize(s: Any, a: str, scales: list[float] | None, sizes: list[int] | None, **more: Any) -> str:
    """A Resize as the opset wants it."""
    if s.opset < 11:
        return str(s.add("Resize", a, s.constant(scales), name="resize", **more))
    # Until opset 13 scales must be there, if only empty.
    empty = "" if s.opset >= 13 else s.constant(np.zeros(0))
    operands = [s.constant(np.zeros(0)) if s.opset < 13 else ""]
    operands.append(empty if scales is None else s.constant(scales))
    if sizes is not None:
        operands.append(s.constant(sizes, **INT))
    return str(s.add("Resize", a, *operands, name="resize", **more))


MODES: dict[str, dict[str, Any]] = {
    "nearest": {"mode": "nearest"},
    "linear": {"mode": "linear"},
    "cubic": {"mode": "cubic"},
    "asymmetric": {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    },
    "corners": {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
}


@pytest.mark.parametrize("opset", [10, 11, 13, 18, 19, NEWEST])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_resize(sketch: Any, pruning: Any, extents: Any, opset: int, mode: str, by: str) -> None:
    if opset == 10 and (mode not in {"nearest", "linear"} or by == "sizes"):
        mode, by = "nearest", "scales"
    s, e = sketch(opset), extents
    scales = [1.0, 1.0, 2.0, 1.5] if by == "scales" else None
    sizes = [e.batch, e.inner, 2 * e.height, e.width - 1] if by == "sizes" else None
    model = s.sandwich(e, lambda a: resize(s, a, scales, sizes, **MODES[mode]), kernel=3)
    pruning.check(model, widths={"first": e.inner}, tolerance=ROUNDED)


@pytest.mark.parametrize("opset", [18, NEWEST])
@pytest.mark.parametrize("axes", [[2, 3], [3, 2], [-1, -2], [1, 2, 3], [3, 1]])
@pytest.mark.parametrize("by", ["scales", "sizes"])
def test_resize_of_named_axes(
    sketch: Any, pruning: Any, extents: Any, opset: int, axes: list[int], by: str
) -> None:
    s, e = sketch(opset), extents
    factors = {1: 1.0, 2: 2.0, 3: 3.0}
    whole = {1: e.inner, 2: 2 * e.height, 3: 3 * e.width}
    scales = [factors[a % 4] for a in axes] if by == "scales" else None
    sizes = [whole[a % 4] for a in axes] if by == "sizes" else None
    model = s.sandwich(e, lambda a: resize(s, a, scales, sizes, axes=axes, mode="nearest"))
    pruning.check(model, widths={"first": e.inner})


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_keeps_constants(sketch: Any, pruning: Any, extents: Any, mode: str) -> None:
    s, e = sketch(), extents

    def middle(a: str) -> str:
        a = s.add("Add", a, s.whole([e.inner, 1, 1], low=1, high=9))
        return resize(s, a, [1.0, 1.0, 2.0, 1.5], None, mode=mode)

    pruning.check(s.sandwich(e, middle), widths={"first": e.inner}, tolerance=FILTERED)


@pytest.mark.parametrize("extrapolated", [0.0, 4.0])
def test_resize_that_crops(sketch: Any, pruning: Any, extents: Any, extrapolated: float) -> None:
    # The region of interest reaches beyond the border, where another value stands.
    s, e = sketch(), extents
    a = first(s, e)
    region = s.constant([0, 0, -0.5, 0, 1, 1, 1.5, 1])
    sizes = s.constant([e.batch, e.inner, 8, 8], **INT)
    more = {
        "mode": "linear",
        "coordinate_transformation_mode": "tf_crop_and_resize",
        "extrapolation_value": extrapolated,
    }
    y = s.conv(s.add("Resize", a, region, "", sizes, **more), e.inner, e.outer, name="last")
    if extrapolated:
        pruning.check(s.model(y), widths={}, refused={"first": "is not a constant"})
    else:
        pruning.check(s.model(y), widths={"first": e.inner}, tolerance=ROUNDED)


def test_resize_of_the_channel_axis_is_declined(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    a = resize(s, first(s, e), [1.0, 2.0, 1.0, 1.0], None, mode="nearest")
    y = s.conv(a, 2 * e.inner, e.outer, name="last")
    pruning.check(s.model(y), widths={}, refused={"first": ["Resize 'resize'", "channel axis"]})


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(sketch: Any, pruning: Any, extents: Any, mode: str) -> None:
    s, e = sketch(9), extents
    scales = s.constant([1, 1, 2, 2])
    model = s.sandwich(e, lambda a: s.add("Upsample", a, scales, mode=mode), kernel=3)
    pruning.check(model, widths={"first": e.inner}, tolerance=ROUNDED)


def gate(s: Any, e: Any, a: str) -> str:
    """Squeeze and excitation: one number per sample and channel."""
    b = s.add("GlobalMaxPool", a)
    b = s.add("Relu", s.conv(b, e.inner, 3, name="down"))
    return str(s.conv(b, 3, e.inner, name="up"))


@pytest.mark.parametrize("opset", [9, 13, NEWEST])
@pytest.mark.parametrize("target", ["full", "no channels", "short", "no batch"])
def test_expand_of_a_gate(sketch: Any, pruning: Any, extents: Any, opset: int, target: str) -> None:
    s, e = sketch(opset), extents
    shape = {
        "full": [e.batch, e.inner, e.height, e.width],
        "no channels": [e.batch, 1, e.height, e.width],
        "short": [e.height, e.width],
        "no batch": [e.inner, e.height, e.width],
    }[target]

    def middle(a: str) -> str:
        return str(s.add("Mul", a, s.add("Expand", gate(s, e, a), s.constant(shape, **INT))))

    case = pruning.check(s.sandwich(e, middle), widths={"first": e.inner, "down": 3})
    assert set(case.coupling.group("first").producers) == {"first", "up"}


def test_expand_to_more_axes(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents

    def middle(a: str) -> str:
        b = s.add("Expand", a, s.constant([3, 1, 1, 1, 1], **INT))
        return str(s.add("ReduceSum", b, s.constant([0], **INT), keepdims=0))

    pruning.check(s.sandwich(e, middle), widths={"first": e.inner})


@pytest.mark.parametrize("opset", [9, 13, NEWEST])
def test_tile_of_a_gate(sketch: Any, pruning: Any, extents: Any, opset: int) -> None:
    s, e = sketch(opset), extents

    def middle(a: str) -> str:
        repeats = s.constant([1, 1, e.height, e.width], **INT)
        return str(s.add("Mul", a, s.add("Tile", gate(s, e, a), repeats)))

    pruning.check(s.sandwich(e, middle), widths={"first": e.inner, "down": 3})


@pytest.mark.parametrize("opset", [9, 13, NEWEST])
@pytest.mark.parametrize("repeats", [[1, 3, 1, 1], [2, 2, 1, 3]])
def test_tile_of_channels(
    sketch: Any, pruning: Any, extents: Any, opset: int, repeats: list[int]
) -> None:
    s, e = sketch(opset), extents
    a = s.add("Tile", first(s, e), s.constant(repeats, **INT))
    y = s.conv(s.add("Relu", a), repeats[1] * e.inner, e.outer, 3, name="last")
    pruning.check(s.model(y), widths={"first": e.inner})


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 22])
def test_dropout_at_inference(sketch: Any, pruning: Any, extents: Any, opset: int) -> None:
    s, e = sketch(opset), extents

    def middle(a: str) -> str:
        if opset < 12:
            return str(s.add("Dropout", a, ratio=0.3))
        never = s.constant(np.array(False), dtype=np.bool_)
        return str(s.add("Dropout", a, s.constant(0.3), never))

    pruning.check(s.sandwich(e, middle), widths={"first": e.inner})


def test_half_precision_moves_its_ids_all_the_same(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    a = s.add("Cast", first(s, e, 4), to=TensorProto.FLOAT16)
    a = resize(s, a, [1.0, 1.0, 2.0, 2.0], None, mode="nearest")
    a = s.add("Pad", a, s.constant([0, 1, 0, 0, 0, 0, 0, 0], **INT))
    y = s.conv(s.add("Cast", a, to=TensorProto.FLOAT), 5, e.outer, name="last")
    pruning.check(s.model(y), widths={"first": 4})


@pytest.mark.parametrize("opset", [13, NEWEST])
def test_expand_of_a_map_over_all_channels(
    sketch: Any, pruning: Any, extents: Any, opset: int
) -> None:
    # A map with one channel, expanded to all (the gate in space of BAM): it must stay, and so
    # must what it meets as long as nobody drops the Expand, which the Mul does not need.
    s, e = sketch(opset), extents
    a = first(s, e)
    spread = s.add("Expand", s.conv(a, e.inner, 1, name="map"), s.add("Shape", a))
    y = s.conv(s.add("Mul", a, spread), e.inner, e.outer, name="last")
    case = pruning.case(s.model(y, **{y: [e.batch, e.outer, e.height, e.width]}))
    pruning.assert_exact(case)
    if not case.widths:
        assert "nothing would be left" in case.coupling.refusals["first"]
