"""Taking tensors apart: Split, Slice and Gather."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import PassError

NEWEST = 26
INT_MAX = 2**63 - 1


def cut(
    s: Any,
    a: str,
    starts: list[int],
    ends: list[int],
    axes: list[int] | None = None,
    steps: list[int] | None = None,
    *,
    dtype: Any = np.int64,
) -> str:
    """A Slice as the opset wants it: attributes before 10, inputs from then on."""
    if s.opset < 10:
        return str(s.add("Slice", a, starts=starts, ends=ends, **({"axes": axes} if axes else {})))
    given = [[starts, ends], [starts, ends, axes]][axes is not None]
    given = [*given, steps] if steps else given
    return str(s.add("Slice", a, *(s.constant(v, dtype=dtype) for v in given)))


def split(s: Any, a: str, sizes: list[int] | None, count: int, axis: int = 1) -> list[str]:
    """A Split as the opset wants it; without sizes the parts are equal."""
    if s.opset < 13:
        more = {"split": sizes} if sizes else {}
        return list(s.add("Split", a, outputs=count, axis=axis, name="split", **more))
    operands = [s.constant(sizes, dtype=np.int64)] if sizes else []
    more = {"num_outputs": count} if s.opset >= 18 and not sizes else {}
    return list(s.add("Split", a, *operands, outputs=count, axis=axis, name="split", **more))


def ends(s: Any, e: Any, parts: list[tuple[str, int]]) -> Any:
    """A convolution behind every part."""
    return s.model(*(s.conv(p, n, e.outer, 2, name=f"last{i}") for i, (p, n) in enumerate(parts)))


def first(s: Any, e: Any, channels: int) -> str:
    return str(s.conv(s.input(e.image), e.source, channels, name="first"))


SPLITS = [9, 11, 13, 18, NEWEST]


@pytest.mark.parametrize("opset", SPLITS)
@pytest.mark.parametrize("sizes", [None, [4, 4], [5, 3], [3, 1, 4]])
def test_split(
    sketch: Any, pruning: Any, extents: Any, opset: int, sizes: list[int] | None
) -> None:
    s, e = sketch(opset), extents
    parts = split(s, first(s, e, 8), sizes, len(sizes or [4, 4]), axis=1 if opset < 11 else -3)
    model = ends(s, e, list(zip(parts, sizes or [4, 4], strict=True)))
    # A part of one channel has to keep it.
    case = pruning.check(model, widths={"first": 7 if sizes == [3, 1, 4] else 8})
    if sizes == [3, 1, 4]:
        assert any("nothing would be left" in r for r in case.coupling.reasons.values())
    else:
        edge = (sizes or [4, 4])[0]
        covers = {tuple(range(edge)), tuple(range(edge, 8))}
        assert set(case.coupling.group("first").covers) == covers


def test_split_into_parts_of_which_the_last_is_smaller(sketch: Any, pruning: Any) -> None:
    # 7 channels in 3 parts: 3, 3 and 1, since opset 18.
    s = sketch(18)
    a = s.conv(s.input([2, 3, 5, 4]), 3, 7, name="first")
    parts = s.add("Split", a, outputs=3, axis=1, num_outputs=3)
    heads = [s.conv(p, n, 2, name=f"head{n}{p}") for p, n in zip(parts, (3, 3, 1), strict=True)]
    pruning.check(s.model(*heads), widths={"first": 6})


@pytest.mark.parametrize("opset", SPLITS)
def test_split_of_which_one_part_is_not_used(sketch: Any, pruning: Any, opset: int) -> None:
    s = sketch(opset)
    a = s.conv(s.input([2, 3, 5, 4]), 3, 8, name="first")
    parts = split(s, a, [2, 3, 3], 3)
    y = s.conv(parts[1], 3, 5, name="last")
    pruning.check(s.model(y), widths={"first": 8})


@pytest.mark.parametrize("opset", SPLITS)
@pytest.mark.parametrize("sizes", [None, [4, 4]])
def test_halves_that_are_added_go_in_pairs(
    sketch: Any, pruning: Any, extents: Any, opset: int, sizes: Any
) -> None:
    s, e = sketch(opset), extents
    left, right = split(s, first(s, e, 8), sizes, 2)
    y = s.conv(s.add("Add", left, right), 4, e.outer, name="last")
    pruning.check(s.model(y), widths={"first": 4})


def test_gated_linear_unit(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    left, right = split(s, first(s, e, 8), None, 2)
    y = s.conv(s.add("Mul", left, s.add("Sigmoid", right)), 4, e.outer, 3, name="last")
    # A sum of at most 36 products of numbers that are no binary fractions: 36 ulps of 2**-24.
    pruning.check(s.model(y), widths={"first": 4}, tolerance=36 * 2.0**-24)


@pytest.mark.parametrize("opset", SPLITS)
def test_split_over_space(sketch: Any, pruning: Any, opset: int) -> None:
    for shape, inner in (([2, 3, 8, 5], 6), ([4, 4, 4, 4], 4)):
        s = sketch(opset)
        a = s.conv(s.input(shape), shape[1], inner, name="first")
        half = shape[2] // 2
        parts = split(s, a, [half, half], 2, axis=2)
        y = s.conv(s.add("Sub", *parts), inner, 5, name="last")
        pruning.check(s.model(y), widths={"first": inner})


def test_split_decided_at_run_time(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    a = first(s, e, 6)
    nothing = s.add("Mul", s.input([1], "number", kind=7), s.constant([0], dtype=np.int64))
    sizes = s.add("Add", nothing, s.constant([3, 3], dtype=np.int64))
    left, right = s.add("Split", a, sizes, outputs=2, axis=1, name="parts")
    y = s.conv(s.add("Add", left, right), 3, e.outer, name="last")
    said = {"first": ["Split 'parts'", "run time where to cut"]}
    model = s.model(y, **{y: [e.batch, e.outer, e.height, e.width]})
    pruning.check(model, widths={}, refused=said)


@pytest.mark.parametrize("opset", [9, 10, 11, 13, NEWEST])
@pytest.mark.parametrize(
    ("start", "end", "width"),
    [(0, 4, 4), (2, 7, 5), (-3, 100, 3), (1, -1, 6), (-5, -2, 3), (3, INT_MAX, 5), (-99, 3, 3)],
)
def test_slice_of_channels(
    sketch: Any, pruning: Any, extents: Any, opset: int, start: int, end: int, width: int
) -> None:
    s, e = sketch(opset), extents
    a = first(s, e, 8)
    part = cut(s, a, [start], [end], [1])
    other = s.conv(a, 8, e.outer, name="whole")
    y = s.conv(part, width, e.outer, 3, name="last")
    pruning.check(s.model(other, y), widths={"first": 8})


@pytest.mark.parametrize("opset", [9, 10, 13, NEWEST])
def test_slice_along_several_axes(sketch: Any, pruning: Any, extents: Any, opset: int) -> None:
    s, e = sketch(opset), extents
    a = first(s, e, 8)
    everywhere = [0, 1, 2, 3] if opset < 10 else None
    all_axes = cut(s, a, [0, 1, 1, -3], [INT_MAX, 6, INT_MAX, INT_MAX], everywhere)
    order = [1, 3] if opset < 10 else [-1, 1] if opset > 10 else [3, 1]
    back = cut(s, a, *(([2, 1], [5, -1]) if opset < 10 else ([1, 2], [-1, 5])), order)
    pruning.check(ends(s, e, [(all_axes, 5), (back, 3)]), widths={"first": 8})


def test_slice_with_bounds_of_32_bits(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    part = cut(s, first(s, e, 8), [2], [2**31 - 1], [1], [1], dtype=np.int32)
    pruning.check(ends(s, e, [(part, 6)]), widths={"first": 8})


@pytest.mark.parametrize(("start", "end", "step"), [(0, INT_MAX, 2), (1, 8, 3), (7, 0, -1)])
def test_slice_of_channels_in_steps_is_declined(
    sketch: Any, pruning: Any, extents: Any, start: int, end: int, step: int
) -> None:
    s, e = sketch(), extents
    part = cut(s, first(s, e, 8), [start], [end], [1], [step])
    width = len(range(8)[start : min(end, 8) : step])
    model = s.model(s.conv(part, width, e.outer, name="last"))
    pruning.check(model, widths={}, refused={"first": ["Slice", "picks channels in steps"]})


@pytest.mark.parametrize("steps", [1, 2, -1])
def test_slice_over_space(sketch: Any, pruning: Any, extents: Any, steps: int) -> None:
    s, e = sketch(), extents
    bounds = {1: (1, -1), 2: (0, INT_MAX), -1: (-1, -INT_MAX)}[steps]
    a = cut(s, first(s, e, e.inner), [bounds[0]] * 2, [bounds[1]] * 2, [2, 3], [steps] * 2)
    pruning.check(s.model(s.conv(a, e.inner, e.outer, 2, name="last")), widths={"first": e.inner})


@pytest.mark.parametrize("opset", [10, 13, NEWEST])
def test_focus(sketch: Any, pruning: Any, opset: int) -> None:
    # Every second pixel in four phases, as channels: YOLOv5's first layer, here behind another.
    for shape, inner in (([2, 3, 6, 8], 5), ([4, 4, 4, 4], 4)):
        s = sketch(opset)
        a = s.conv(s.input(shape), shape[1], inner, name="first")
        phases = [
            cut(s, cut(s, a, [row], [INT_MAX], [2], [2]), [column], [INT_MAX], [3], [2])
            for column in (0, 1)
            for row in (0, 1)
        ]
        y = s.conv(s.add("Concat", *phases, axis=1), 4 * inner, 5, 3, name="last", pads=[1] * 4)
        pruning.check(s.model(y), widths={"first": inner})


@pytest.mark.parametrize(("start", "end", "width"), [(5, 50, 6), (35, 105, 6), (35, 70, 5)])
def test_slice_of_a_flattened_tensor(
    sketch: Any, pruning: Any, start: int, end: int, width: int
) -> None:
    # 35 numbers are a channel: the slice may begin and end within one, or be just one.
    s = sketch()
    a = s.conv(s.input([2, 3, 5, 7]), 3, 6, name="first")
    flat = s.add("Flatten", a)
    part = cut(s, flat, [start], [end], [1])
    y = s.add("Gemm", part, s.whole([end - start, 4]), s.whole([4]), name="last")
    z = s.add("Gemm", flat, s.whole([210, 4]), s.whole([4]), name="whole")
    pruning.check(s.model(y, z), widths={"first": width})


def test_slice_across_the_seam_of_two_branches(sketch: Any, pruning: Any) -> None:
    # Channels 4 and 5 of 'left' with 0 and 1 of 'right': all four must not go together.
    s = sketch()
    x = s.input([2, 3, 5, 4])
    a, b = s.conv(x, 3, 6, name="left"), s.conv(x, 3, 6, name="right")
    both = s.add("Concat", a, b, axis=1)
    seam = s.conv(cut(s, both, [4], [8], [1]), 4, 5, name="seam")
    case = pruning.case(s.model(s.conv(both, 12, 5, name="whole"), seam))
    assert sum(case.widths.values()) == 12
    removed: dict[str, list[int]] = {}
    for layer, channels in (("left", [4, 5]), ("right", [0, 1])):
        group, lane = case.coupling.group_of(layer), case.coupling.lanes[f"{layer}_out"]
        numbers = [group.channels.index(lane.classes[channel]) for channel in channels]
        removed.setdefault(group.name, []).extend(numbers)
    with pytest.raises(PassError, match="nothing would be left"):
        case.coupling.classes(removed)
    pruning.assert_exact(case)


GATHERS = {
    "permuted": ([5, 3, 1, 7, 0, 6, 4, 2], 8),
    "subset": ([6, 1, 4], 8),
    "repeated": ([2, 2, 5, 0, 5, 2], 8),
    "negative": ([-1, 0, -8, -3], 8),
}


@pytest.mark.parametrize("opset", [9, 11, 13, NEWEST])
@pytest.mark.parametrize("indices", GATHERS)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_gather_of_channels(
    sketch: Any, pruning: Any, extents: Any, opset: int, indices: str, dtype: Any
) -> None:
    picked, width = GATHERS[indices]
    if opset < 11:
        # Indices count from the front only.
        picked = [i % 8 for i in picked]
    s, e = sketch(opset), extents
    a = first(s, e, 8)
    part = s.add("Gather", a, s.constant(picked, dtype=dtype), axis=1 if opset < 11 else -3)
    other = s.conv(a, 8, e.outer, name="whole")
    y = s.conv(part, len(picked), e.outer, 3, name="last")
    pruning.check(s.model(other, y), widths={"first": width})


def test_gather_of_one_channel_keeps_it(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    a = first(s, e, 8)
    lone = s.add("Gather", a, s.constant(3, dtype=np.int64), axis=1)
    lone = s.add("Unsqueeze", lone, s.constant([1], dtype=np.int64))
    whole = s.conv(a, 8, e.outer, name="whole")
    case = pruning.check(s.model(whole, s.conv(lone, 1, 2, name="last")), widths={"first": 7})
    assert any("nothing would be left" in reason for reason in case.coupling.reasons.values())


def test_gather_by_a_table_of_indices(sketch: Any, pruning: Any) -> None:
    # [N, 6, H, W] by [2, 3] gives [N, 2, 3, H, W]: rows or columns of the table go together.
    s = sketch()
    a = s.conv(s.input([2, 3, 5, 4]), 3, 6, name="first")
    table = s.add("Gather", a, s.constant([[0, 2, 4], [1, 3, 5]], dtype=np.int64), axis=1)
    flat = s.add("Reshape", table, s.constant([2, 6, 5, 4], dtype=np.int64))
    pruning.check(s.model(s.conv(flat, 6, 5, name="last")), widths={"first": 3})


def test_gather_over_space(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents

    def middle(a: str) -> str:
        return str(s.add("Gather", a, s.constant([1, 0, 3, 3], dtype=np.int64), axis=2))

    pruning.check(s.sandwich(e, middle), widths={"first": e.inner})


@pytest.mark.parametrize("axis", [1, 2])
def test_gather_decided_at_run_time(sketch: Any, pruning: Any, extents: Any, axis: int) -> None:
    s, e = sketch(), extents
    # Indices from -3 to 3 that depend on the data.
    largest = s.add("ReduceMax", s.input([e.inner, 2], "y"), axes=[1], keepdims=0)
    picked = s.add("Cast", s.add("Clip", largest, s.constant(-3.0), s.constant(3.0)), to=7)
    model = s.sandwich(e, lambda a: s.add("Gather", a, picked, axis=axis, name="pick"))
    if axis == 1:
        said = {"first": ["Gather 'pick'", "run time what to pick"]}
        pruning.check(model, widths={}, refused=said)
    else:
        pruning.check(model, widths={"first": e.inner})


def test_gather_by_an_input_is_declined(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    picked = s.input([2], "picked", kind=7)
    model = s.sandwich(e, lambda a: s.add("Gather", a, picked, axis=2, name="pick"))
    said = {"first": ["Gather 'pick'", "parameter that is not known"]}
    pruning.check(model, widths={}, refused=said)


def test_gather_from_a_table_by_channels_is_declined(sketch: Any, pruning: Any) -> None:
    s = sketch()
    a = s.conv(s.input([2, 3, 5, 4]), 3, 6, name="first")
    indices = s.add("Cast", s.add("Clip", a, s.constant(0.0), s.constant(3.0)), to=7)
    looked = s.add("Gather", s.whole([4]), indices, name="look")
    y = s.conv(looked, 6, 5, name="last")
    pruning.check(s.model(y), widths={}, refused={"first": ["Gather 'look'", "picks by it"]})
