"""Reductions and softmax over space, over branches, and over channels (a barrier)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

NEWEST = 26
# A result that is no binary fraction is rounded alike with and without the removed channels; a sum
# of at most 54 products of it (6 channels, 3x3) is then rounded in another order: 54 half ulps.
ROUNDED = 54 * 2.0**-24


def first(s: Any, e: Any) -> str:
    return str(s.conv(s.input(e.image), e.source, e.inner, name="first"))


def reduce(
    s: Any, operator: str, a: str, axes: list[int], *, keepdims: int = 1, since: int = 18
) -> str:
    """A reduction as the opset wants it: axes are an input since 18, of ReduceSum since 13."""
    since = 13 if operator == "ReduceSum" else since
    if s.opset < since:
        return str(s.add(operator, a, axes=axes, keepdims=keepdims))
    return str(s.add(operator, a, s.constant(axes, dtype=np.int64), keepdims=keepdims))


KEEPING = ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"]
OTHERS = ["ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd"]


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 20, NEWEST])
@pytest.mark.parametrize("operator", KEEPING)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reduction_over_space_into_a_dense_layer(
    sketch: Any, pruning: Any, extents: Any, opset: int, operator: str, keepdims: int
) -> None:
    s, e = sketch(opset), extents
    axes = [2, 3] if opset < 11 else [-1, 2]
    a = reduce(s, operator, first(s, e), axes, keepdims=keepdims)
    a = s.add("Flatten", a) if keepdims else a
    y = s.add("MatMul", a, s.whole([e.inner, 5]), name="last")
    pruning.check(s.model(y), widths={"first": e.inner}, tolerance=ROUNDED)


@pytest.mark.parametrize("operator", [*KEEPING, *OTHERS])
@pytest.mark.parametrize("shifted", [False, True])
def test_what_reductions_make_of_constants(
    sketch: Any, pruning: Any, extents: Any, operator: str, *, shifted: bool
) -> None:
    # Mean, Max and Min hand a constant on; of the others nothing but zero is known to stay.
    s, e = sketch(), extents
    a = first(s, e)
    a = s.add("Add", a, s.whole([e.inner, 1, 1], low=1)) if shifted else a
    y = s.conv(reduce(s, operator, a, [2, 3]), e.inner, e.outer, name="last")
    if shifted and operator not in KEEPING[:3]:
        said = {"first": "what reaches Conv 'last' is not a constant"}
        pruning.check(s.model(y), widths={}, refused=said)
    else:
        # ReduceProd of 35 whole numbers is exact or rounded alike; its sum is of 6.
        case = pruning.case(s.model(y))
        assert case.widths == {"first": e.inner}
        pruning.assert_exact(case, tolerance=ROUNDED, silent=operator == "ReduceProd")


@pytest.mark.parametrize("operator", ["ReduceLogSum", "ReduceLogSumExp"])
def test_reductions_that_make_something_of_zero(
    sketch: Any, pruning: Any, extents: Any, operator: str
) -> None:
    s, e = sketch(), extents
    y = s.conv(reduce(s, operator, first(s, e), [2, 3]), e.inner, e.outer, name="last")
    pruning.check(s.model(y), widths={}, refused={"first": "not a constant"})


def test_maximum_over_pairs_of_channels(sketch: Any, pruning: Any, extents: Any) -> None:
    # Maxout: [N, 3, 2, H, W] is reduced over the pairs, which go together.
    s, e = sketch(), extents
    a = s.conv(s.input(e.image), e.source, 6, name="first")
    pairs = s.constant([e.batch, 3, 2, e.height, e.width], dtype=np.int64)
    a = reduce(s, "ReduceMax", s.add("Reshape", a, pairs), [2], keepdims=0)
    pruning.check(s.model(s.conv(a, 3, e.outer, name="last")), widths={"first": 3})


@pytest.mark.parametrize("opset", [11, 13, 17, 18, NEWEST])
@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceSum", "ReduceMax"])
@pytest.mark.parametrize("axes", [[1], [-3], [1, 2, 3], None])
def test_reduction_over_channels_is_a_barrier(
    sketch: Any, pruning: Any, extents: Any, opset: int, operator: str, axes: Any
) -> None:
    s, e = sketch(opset), extents
    a = first(s, e)
    if axes is None:
        b = s.add(operator, a, name="over", keepdims=1)
    else:
        b = reduce(s, operator, a, axes)
    y = s.conv(s.add("Mul", a, b), e.inner, e.outer, name="last")
    said = {"first": [f"{operator} '", "works across channels"]}
    pruning.check(s.model(y), widths={}, refused=said)


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceSum"])
def test_reduction_of_nothing(sketch: Any, pruning: Any, extents: Any, operator: str) -> None:
    s, e = sketch(18), extents

    def middle(a: str) -> str:
        none = s.constant([], dtype=np.int64)
        return str(s.add(operator, a, none, noop_with_empty_axes=1))

    pruning.check(s.sandwich(e, middle), widths={"first": e.inner})


def test_reduction_along_axes_decided_at_run_time(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(18), extents
    nothing = s.add("Mul", s.input([1], "number", kind=7), s.constant([0], dtype=np.int64))
    axes = s.add("Add", nothing, s.constant([2], dtype=np.int64))
    a = s.add("ReduceMax", first(s, e), axes, name="over")
    y = s.conv(a, e.inner, e.outer, name="last")
    model = s.model(y, **{y: [e.batch, e.outer, "h", "w"]})
    pruning.check(model, widths={}, refused={"first": ["ReduceMax 'over'", "run time"]})


@pytest.mark.parametrize("opset", [11, 12, 13, NEWEST])
def test_softmax_over_channels_is_a_barrier(
    sketch: Any, pruning: Any, extents: Any, opset: int
) -> None:
    s, e = sketch(opset), extents
    model = s.sandwich(e, lambda a: s.add("Softmax", a, axis=1, name="over"))
    said = {"first": ["Softmax 'over'", "works across channels"]}
    pruning.check(model, widths={}, refused=said)


@pytest.mark.parametrize("opset", [11, 12, 13, NEWEST])
@pytest.mark.parametrize("axis", [2, 3])
def test_softmax_over_space_masks_a_tensor(
    sketch: Any, pruning: Any, extents: Any, opset: int, axis: int
) -> None:
    # Before opset 13 axis 2 means axes 2 and 3 together.
    s, e = sketch(opset), extents

    def middle(a: str) -> str:
        return str(s.add("Mul", a, s.add("Softmax", a, axis=axis)))

    pruning.check(s.sandwich(e, middle), widths={"first": e.inner}, tolerance=ROUNDED)


def test_softmax_over_space_leaves_no_constant(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    model = s.sandwich(e, lambda a: s.add("Softmax", a, axis=3))
    pruning.check(model, widths={}, refused={"first": "not a constant"})


@pytest.mark.parametrize("opset", [11, 13, NEWEST])
@pytest.mark.parametrize("stacked", ["Unsqueeze", "Reshape"])
def test_selective_kernels(
    sketch: Any, pruning: Any, extents: Any, opset: int, stacked: str
) -> None:
    # SKNet: two branches, weighed against one another channel by channel.
    s, e = sketch(opset), extents
    x, c = s.input(e.image), e.inner

    def unsqueeze(a: str) -> str:
        if opset < 13:
            return str(s.add("Unsqueeze", a, axes=[1]))
        return str(s.add("Unsqueeze", a, s.constant([1], dtype=np.int64)))

    small = s.conv(x, e.source, c, 1, name="small")
    large = s.conv(x, e.source, c, 3, name="large", pads=[1] * 4)
    squeezed = s.add("GlobalAveragePool", s.add("Add", small, large))
    hidden = s.add("Relu", s.conv(squeezed, c, 3, name="hidden"))
    branches = s.add("Concat", unsqueeze(small), unsqueeze(large), axis=1)
    if stacked == "Unsqueeze":
        scores = [unsqueeze(s.conv(hidden, 3, c, name=f"score{n}")) for n in range(2)]
        gates = s.add("Concat", *scores, axis=1)
    else:
        shape = s.constant([e.batch, 2, c, 1, 1], dtype=np.int64)
        gates = s.add("Reshape", s.conv(hidden, 3, 2 * c, name="scores"), shape)
    # Before opset 13 a softmax over axis 1 would take in all the axes behind it.
    if opset < 13:
        turned = s.add("Softmax", s.add("Transpose", gates, perm=[0, 2, 3, 4, 1]), axis=4)
        weighed = s.add("Transpose", turned, perm=[0, 4, 1, 2, 3])
    else:
        weighed = s.add("Softmax", gates, axis=1)
    mixed = reduce(s, "ReduceSum", s.add("Mul", branches, weighed), [1], keepdims=0)
    model = s.model(s.conv(mixed, c, e.outer, name="last"))
    case = pruning.check(model, widths={"small": c, "hidden": 3}, tolerance=ROUNDED)
    makers = {"score0", "score1"} if stacked == "Unsqueeze" else {"scores"}
    assert set(case.coupling.group("small").producers) == {"small", "large", *makers}


def test_softmax_over_the_channels_of_old_opsets_takes_in_all_axes_behind(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    s, e = sketch(12), extents
    model = s.sandwich(e, lambda a: s.add("Mul", a, s.add("Softmax", a, name="over")))
    pruning.check(model, widths={}, refused={"first": ["Softmax 'over'", "across channels"]})
