"""Sizes that the graph computes: they follow, or are overruled, or the channels stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

NEWEST = 26
# A sum of at most 54 products of numbers that are no binary fractions, in another order.
ROUNDED = 54 * 2.0**-24
INT = {"dtype": np.int64}
FOLDED = pytest.mark.parametrize("fold", [False, True], ids=["as is", "folded"])
BATCHES = [{"x": (1, 3, 4, 6)}, {"x": (3, 3, 8, 4)}, {"x": (6, 3, 6, 6)}]


def numbers(s: Any, *values: int) -> str:
    return str(s.constant(list(values), **INT))


def size(s: Any, a: str, axis: int, *, scalar: bool = False) -> str:
    """One extent of a tensor, as exporters take it from Shape."""
    shape = s.add("Shape", a)
    if not scalar:
        return str(s.add("Gather", shape, numbers(s, axis), axis=0))
    one = s.add("Gather", shape, s.constant(axis, **INT), axis=0)
    if s.opset < 13:
        return str(s.add("Unsqueeze", one, axes=[0]))
    return str(s.add("Unsqueeze", one, numbers(s, 0)))


def sized(s: Any, a: str, *parts: str, name: str = "") -> str:
    """A Reshape to a vector put together from parts."""
    return str(s.add("Reshape", a, s.add("Concat", *parts, axis=0), name=name))


def start(s: Any, channels: int = 6) -> tuple[str, str]:
    x = s.input(["n", 3, "h", "w"])
    return x, str(s.conv(x, 3, channels, name="first"))


def check(pruning: Any, s: Any, y: str, widths: Any, *, fold: bool = False, **more: Any) -> Any:
    """Compare at a size that the model was coupled at, and at two others."""
    rank = more.pop("rank", 4)
    model = s.model(y, **{y: ["n", *(f"d{i}" for i in range(1, rank))]})
    more.setdefault("tolerance", ROUNDED)
    return pruning.check(
        model,
        widths=widths,
        sizes=BATCHES[0],
        also=BATCHES[1:] if widths else (),
        fold_constants=fold,
        **more,
    )


@FOLDED
@pytest.mark.parametrize("opset", [9, 11, 13, 15, 17, NEWEST])
@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("rest", [-1, 6])
def test_flatten_by_the_batch(
    sketch: Any, pruning: Any, opset: int, rest: int, *, scalar: bool, fold: bool
) -> None:
    s = sketch(opset)
    _, a = start(s)
    pooled = s.add("GlobalAveragePool", a)
    flat = sized(s, pooled, size(s, pooled, 0, scalar=scalar), numbers(s, rest))
    y = s.add("Gemm", flat, s.whole([6, 5]), s.whole([5]), name="last")
    check(pruning, s, y, {"first": 6}, fold=fold, rank=2)


@FOLDED
@pytest.mark.parametrize("factor", [2, 4])
def test_flatten_by_a_product_of_extents(
    sketch: Any, pruning: Any, factor: int, *, fold: bool
) -> None:
    # [N, C] from N and C * 4, where 4 places in space are left.
    s = sketch()
    _, a = start(s)
    shape = s.constant([1, 1, factor, 1], **INT)
    tiled = s.add("Tile", s.add("GlobalMaxPool", a), shape)
    count = s.add("Mul", size(s, tiled, 1), numbers(s, factor))
    flat = sized(s, tiled, size(s, tiled, 0), count)
    y = s.add("Gemm", flat, s.whole([6 * factor, 5]), s.whole([5]), name="last")
    check(pruning, s, y, {"first": 6}, fold=fold, rank=2)


@FOLDED
@pytest.mark.parametrize("opset", [11, 15, NEWEST])
def test_reshape_to_the_shape_of_another_tensor(
    sketch: Any, pruning: Any, opset: int, *, fold: bool
) -> None:
    # What a group norm ends with: [N, groups, -1] and back to the shape it came from.
    s = sketch(opset)
    _, a = start(s)
    flat = sized(s, a, size(s, a, 0), numbers(s, 3, -1))
    normal = s.add("InstanceNormalization", flat, s.whole([3], low=1), s.whole([3]))
    back = s.add("Reshape", normal, s.add("Shape", a))
    b = s.add("Add", s.add("Mul", back, s.whole([6, 1, 1])), s.whole([6, 1, 1]))
    y = s.conv(b, 6, 5, name="last")
    check(pruning, s, y, {"first": 3}, fold=fold, tolerance=1e-5)


@pytest.mark.parametrize("target", [[0, 3, -1], [2, 3, 70]])
@pytest.mark.parametrize("opset", [11, 17, NEWEST])
def test_group_norm_by_constant_sizes(
    sketch: Any, pruning: Any, opset: int, target: list[int]
) -> None:
    s = sketch(opset)
    a = s.conv(s.input([2, 3, 5, 7]), 3, 6, name="first")
    flat = s.add("Reshape", a, numbers(s, *target))
    normal = s.add("InstanceNormalization", flat, s.whole([3], low=1), s.whole([3]))
    back = s.add("Mul", s.add("Reshape", normal, numbers(s, 2, 6, 5, 7)), s.whole([6, 1, 1]))
    # Mean and variance over 70 numbers, then 6 products: some hundred half ulps.
    case = pruning.check(s.model(s.conv(back, 6, 5, name="last")), tolerance=1e-5)
    assert case.widths == {"first": 3}


def test_group_norm_in_five_axes(sketch: Any, pruning: Any) -> None:
    s = sketch()
    _, a = start(s, 6)
    five = sized(s, a, size(s, a, 0), numbers(s, 3, 2), size(s, a, 2), size(s, a, 3))
    normal = s.add("InstanceNormalization", five, s.whole([3], low=1), s.whole([3]))
    y = s.conv(s.add("Reshape", normal, s.add("Shape", a)), 6, 5, name="last")
    check(pruning, s, y, {"first": 3}, tolerance=1e-5)


@FOLDED
@pytest.mark.parametrize("slices", [False, True])
def test_shuffle_by_run_time_sizes(sketch: Any, pruning: Any, *, slices: bool, fold: bool) -> None:
    s = sketch()
    _, a = start(s)
    space = [size(s, a, 2), size(s, a, 3)]
    if slices:
        space = [s.add("Slice", s.add("Shape", a), numbers(s, 2), numbers(s, 2**31), numbers(s, 0))]
    each = s.add("Div", size(s, a, 1), numbers(s, 2))
    b = sized(s, a, size(s, a, 0), numbers(s, 2), each, *space)
    b = s.add("Transpose", b, perm=[0, 2, 1, 3, 4])
    b = sized(s, b, size(s, a, 0), numbers(s, -1), *space)
    check(pruning, s, s.conv(b, 6, 5, name="last"), {"first": 6}, fold=fold)


def test_groups_of_a_halved_extent(sketch: Any, pruning: Any) -> None:
    # [N, 2, C / 2, H, W] that is summed over the pair: channels go in pairs, and C / 2 follows.
    s = sketch()
    _, a = start(s)
    each = s.add("Div", size(s, a, 1), numbers(s, 2))
    b = sized(s, a, size(s, a, 0), numbers(s, 2), each, size(s, a, 2), size(s, a, 3))
    b = s.add("ReduceSum", b, numbers(s, 1), keepdims=0)
    check(pruning, s, s.conv(b, 3, 5, name="last"), {"first": 3})


def test_a_halved_extent_that_does_not_follow(sketch: Any, pruning: Any) -> None:
    # The norm ties the channels of a group, so that whole groups go; but the 2 = C / 3 channels
    # that each of them has would then become fewer.
    s = sketch()
    _, a = start(s)
    each = s.add("Div", size(s, a, 1), numbers(s, 3))
    b = sized(s, a, size(s, a, 0), numbers(s, 3), each, size(s, a, 2), size(s, a, 3), name="five")
    b = s.add("InstanceNormalization", b, s.whole([3], low=1), s.whole([3]))
    y = s.conv(s.add("Reshape", b, s.add("Shape", a)), 6, 5, name="last")
    said = {"first": ["Reshape 'five'", "computes its size at run time"]}
    check(pruning, s, y, {}, refused=said)


@FOLDED
@pytest.mark.parametrize("opset", [11, 13, 18, NEWEST])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_to_the_size_of_another_tensor(
    sketch: Any, pruning: Any, opset: int, mode: str, *, fold: bool
) -> None:
    # A feature pyramid: the small map takes the size of the large one, its own channels first.
    s = sketch(opset)
    _, large = start(s)
    small = s.conv(s.add("MaxPool", large, kernel_shape=[2, 2], strides=[2, 2]), 6, 4, name="small")
    ends = numbers(s, 2**31)
    own = s.add("Slice", s.add("Shape", small), numbers(s, 0), numbers(s, 2), numbers(s, 0))
    other = s.add("Slice", s.add("Shape", large), numbers(s, 2), ends, numbers(s, 0))
    sizes = s.add("Concat", own, other, axis=0)
    empty = s.constant(np.zeros(0)) if opset < 13 else ""
    big = s.add("Resize", small, empty, empty, sizes, mode=mode)
    y = s.conv(s.add("Concat", big, large, axis=1), 10, 5, name="last")
    check(pruning, s, y, {"first": 6, "small": 4}, fold=fold)


def test_resize_of_named_axes_to_the_size_of_another_tensor(sketch: Any, pruning: Any) -> None:
    s = sketch(18)
    _, large = start(s)
    small = s.conv(s.add("MaxPool", large, kernel_shape=[2, 2], strides=[2, 2]), 6, 4, name="small")
    space = s.add("Shape", large, start=2)
    big = s.add("Resize", small, "", "", space, axes=[2, 3], mode="nearest")
    y = s.conv(s.add("Concat", big, large, axis=1), 10, 5, name="last")
    check(pruning, s, y, {"first": 6, "small": 4})


@FOLDED
@pytest.mark.parametrize("opset", [11, 17, NEWEST])
def test_expand_of_a_gate_to_the_shape_of_what_it_gates(
    sketch: Any, pruning: Any, opset: int, *, fold: bool
) -> None:
    s = sketch(opset)
    _, a = start(s)
    gate = s.conv(s.add("GlobalMaxPool", a), 6, 6, name="gate")
    spread = s.add("Expand", gate, s.add("Shape", a))
    check(pruning, s, s.conv(s.add("Mul", a, spread), 6, 5, name="last"), {"first": 6}, fold=fold)


def test_tile_of_a_gate_to_the_size_of_another(sketch: Any, pruning: Any) -> None:
    s = sketch()
    _, a = start(s)
    gate = s.conv(s.add("GlobalMaxPool", a), 6, 6, name="gate")
    repeats = s.add("Concat", numbers(s, 1, 1), size(s, a, 2), size(s, a, 3), axis=0)
    y = s.conv(s.add("Mul", a, s.add("Tile", gate, repeats)), 6, 5, name="last")
    check(pruning, s, y, {"first": 6})


@FOLDED
def test_one_vector_of_sizes_for_two_reshapes(sketch: Any, pruning: Any, *, fold: bool) -> None:
    # Both read [N, 6, -1], but lose other channels: each needs a vector of its own.
    s = sketch()
    x, a = start(s)
    b = s.conv(x, 3, 6, name="other")
    shape = s.add("Concat", size(s, x, 0), numbers(s, 6, -1), axis=0)
    flat = [s.add("Reshape", v, shape) for v in (a, b)]
    pooled = [s.add("ReduceMax", v, axes=[2], keepdims=0) for v in flat]
    ends = [
        s.add("Gemm", v, s.whole([6, 4]), s.whole([4]), name=f"last{n}")
        for n, v in enumerate(pooled)
    ]
    y = s.add("Concat", *ends, axis=1)
    check(pruning, s, y, {"first": 6, "other": 6}, fold=fold, rank=2)


def test_one_constant_of_sizes_for_two_reshapes(sketch: Any, pruning: Any) -> None:
    s = sketch()
    x, a = start(s)
    shape = numbers(s, 0, 6, -1)
    flat = [s.add("Reshape", v, shape) for v in (a, s.conv(x, 3, 6, name="other"))]
    ends = [
        s.add("MatMul", s.add("Transpose", v, perm=[0, 2, 1]), s.whole([6, 4]), name=f"last{n}")
        for n, v in enumerate(flat)
    ]
    check(pruning, s, s.add("Concat", *ends, axis=1), {"first": 6, "other": 6}, rank=3)


@pytest.mark.parametrize("own", [False, True])
def test_a_size_that_depends_on_size_is_declined(sketch: Any, pruning: Any, *, own: bool) -> None:
    s = sketch()
    x, a = start(s)
    pooled = s.add("GlobalMaxPool", a)
    counted = pooled if own else s.add("Concat", *[s.add("GlobalMaxPool", x)] * 2, axis=1)
    count = s.add("Div", s.add("Size", counted, name="count"), size(s, pooled, 0))
    flat = sized(s, pooled, size(s, pooled, 0), count, name="flat")
    y = s.add("Gemm", flat, s.whole([6, 5]), s.whole([5]), name="last")
    said = "Size 'count'" if own else "Reshape 'flat' computes its size at run time"
    check(pruning, s, y, {}, refused={"first": said}, rank=2)


@pytest.mark.parametrize("operator", ["Add", "Sub"])
def test_a_size_with_a_sum_in_it_is_declined(sketch: Any, pruning: Any, operator: str) -> None:
    s = sketch()
    _, a = start(s)
    pooled = s.add("GlobalMaxPool", a)
    count = s.add(operator, size(s, pooled, 1), numbers(s, 0))
    flat = sized(s, pooled, size(s, pooled, 0), count, name="flat")
    y = s.add("Gemm", flat, s.whole([6, 5]), s.whole([5]), name="last")
    said = {"first": ["Reshape 'flat'", "size at run time"]}
    check(pruning, s, y, {}, refused=said, rank=2)


def test_a_size_that_is_fed_is_declined(sketch: Any, pruning: Any) -> None:
    s = sketch()
    a = s.add("GlobalMaxPool", s.conv(s.input([2, 3, 5, 4]), 3, 6, name="first"))
    nothing = s.add("Mul", s.input([1], "number", kind=7), numbers(s, 0))
    flat = sized(s, a, numbers(s, 2), s.add("Add", nothing, numbers(s, 6)), name="flat")
    y = s.add("Gemm", flat, s.whole([6, 5]), s.whole([5]), name="last")
    said = {"first": ["Reshape 'flat'", "size at run time"]}
    pruning.check(s.model(y, **{y: [2, 5]}), widths={}, refused=said)


def test_a_slice_of_half_the_channels_decided_at_run_time(sketch: Any, pruning: Any) -> None:
    s = sketch()
    _, a = start(s)
    half = s.add("Div", size(s, a, 1), numbers(s, 2))
    part = s.add("Slice", a, numbers(s, 0), half, numbers(s, 1), name="half")
    said = {"first": ["Slice 'half'", "run time"]}
    check(pruning, s, s.conv(part, 3, 5, name="last"), {}, refused=said)


@FOLDED
def test_a_slice_of_space_decided_at_run_time(sketch: Any, pruning: Any, *, fold: bool) -> None:
    s = sketch()
    _, a = start(s)
    half = s.add("Div", size(s, a, 2), numbers(s, 2))
    part = s.add("Slice", a, numbers(s, 0), half, numbers(s, 2))
    check(pruning, s, s.conv(part, 6, 5, name="last"), {"first": 6}, fold=fold)


def test_everything_at_other_sizes(sketch: Any, pruning: Any) -> None:
    # Concat, Split, shuffle, gate, pooling, resize, in one graph without a single fixed size.
    s = sketch()
    x, a = start(s, 8)
    left, right = s.add("Split", a, numbers(s, 3, 5), outputs=2, axis=1)
    b = s.add("Concat", s.add("Relu", left), right, s.conv(x, 3, 4, name="second"), axis=1)
    space = s.add("Shape", b, start=2)
    five = sized(s, b, size(s, b, 0), numbers(s, 2, 6), space)
    b = sized(
        s, s.add("Transpose", five, perm=[0, 2, 1, 3, 4]), size(s, b, 0), numbers(s, 12), space
    )
    gate = s.conv(s.add("GlobalMaxPool", b), 12, 12, name="gate")
    b = s.add("Mul", b, s.add("Expand", gate, s.add("Shape", b)))
    small = s.add("MaxPool", b, kernel_shape=[2, 2], strides=[2, 2])
    small = s.conv(small, 12, 12, 3, name="third", pads=[1] * 4)
    sizes = s.add("Concat", s.add("Shape", small, end=2), space, axis=0)
    b = s.add("Add", b, s.add("Resize", small, "", "", sizes, mode="nearest"))
    rows = sized(s, s.add("Transpose", b, perm=[0, 2, 3, 1]), numbers(s, -1, 12))
    y = s.add("MatMul", rows, s.whole([12, 5]), name="last")
    # The gate and the last convolution but one make all of the twelve channels.
    check(pruning, s, y, {"first": 12}, rank=2)
