"""Barriers: what must stop a cut stops it, says which node is to blame, and stops nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxcompress.errors import PassError


def _chain(s: Any, extents: Any) -> tuple[str, str]:
    """Input, 'first', Relu: the input and the tensor behind the Relu."""
    x = s.input(extents.image)
    return x, s.add("Relu", s.conv(x, extents.source, extents.inner, name="first"), name="relu")


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("opset", [9, 11, 13, 17])
def test_softmax_over_channels(
    sketch: Any, pruning: Any, extents: Any, operator: str, opset: int
) -> None:
    s = sketch(opset)
    model = s.sandwich(extents, lambda a: s.add(operator, a, name="over", axis=1))
    pruning.check(
        model, widths={}, refused={"first": [f"{operator} 'over'", "works across channels"]}
    )


@pytest.mark.parametrize(("opset", "axis"), [(11, 2), (13, 2), (13, 3), (17, -1), (11, 3)])
def test_softmax_over_space(sketch: Any, pruning: Any, extents: Any, opset: int, axis: int) -> None:
    """A channel of zeros becomes 1 / extent, the same everywhere: known or declined."""
    s = sketch(opset)
    model = s.sandwich(extents, lambda a: s.add("Softmax", a, name="over", axis=axis))
    case = pruning.case(model)
    if case.widths:
        pruning.check(model, widths={"first": extents.inner}, tolerance=2.0**-18)
    else:
        pruning.check(model, widths={}, refused={"first": ["Conv 'second'", "not a constant"]})


def test_softmax_over_space_as_a_gate(sketch: Any, pruning: Any, extents: Any) -> None:
    s = sketch()

    def middle(a: str) -> str:
        return str(s.add("Mul", a, s.add("Softmax", a, axis=-1)))

    pruning.check(s.sandwich(extents, middle), widths={"first": extents.inner}, tolerance=2.0**-18)


@pytest.mark.parametrize("opset", [12, 13])
def test_softmax_without_an_axis(sketch: Any, pruning: Any, extents: Any, opset: int) -> None:
    # Before opset 13 over everything but the batch; since then over the last axis.
    s = sketch(opset)
    model = s.sandwich(
        extents, lambda a: s.add("Mul", a, s.add("Softmax", a, name="over")), kernel=3
    )
    if opset < 13:
        pruning.check(model, widths={}, refused={"first": "Softmax 'over'"})
    else:
        pruning.check(model, widths={"first": extents.inner}, tolerance=2.0**-18)


@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("opset", [11, 13])
def test_index_of_a_channel(
    sketch: Any, pruning: Any, extents: Any, operator: str, opset: int
) -> None:
    s = sketch(opset)
    _, a = _chain(s, extents)
    y = s.conv(a, extents.inner, extents.outer, name="second")
    index = s.add(operator, a, name="index", axis=1)
    pruning.check(s.model(y, index), widths={}, refused={"first": f"{operator} 'index'"})


def test_largest_channels(sketch: Any, pruning: Any, extents: Any) -> None:
    s = sketch()
    _, a = _chain(s, extents)
    count = s.constant([2], dtype=np.int64)
    values, _ = s.add("TopK", a, count, name="largest", outputs=2, axis=1)
    pruning.check(s.model(values), widths={}, refused={"first": "TopK 'largest'"})


@pytest.mark.parametrize("operator", ["CumSum", "Det", "NonZero", "OneHot", "ScatterND"])
def test_operators_without_a_rule(sketch: Any, pruning: Any, operator: str) -> None:
    s = sketch()
    x = s.input([4, 4])
    a = s.add("Gemm", x, s.whole([4, 4]), s.whole([4]), name="first")
    if operator == "CumSum":
        y = s.add("CumSum", a, s.constant(1, dtype=np.int64), name="strange")
    elif operator == "OneHot":
        y = s.add("OneHot", a, s.constant(4.0), s.constant([0.0, 1.0]), name="strange")
    elif operator == "ScatterND":
        index = s.constant([[0]], dtype=np.int64)
        y = s.add("ScatterND", a, index, s.whole([1, 4]), name="strange")
    else:
        y = s.add(operator, a, name="strange")
    pruning.check(s.model(y), widths={}, refused={"first": [f"{operator} 'strange'", "known rule"]})


def test_operator_of_another_domain(sketch: Any, pruning: Any, extents: Any) -> None:
    s = sketch(17, com_microsoft=1)
    x, a = _chain(s, extents)
    b = s.append(helper.make_node("QuickGelu", [a], ["b"], name="foreign", domain="com.microsoft"))
    ends = [
        s.conv(b, extents.inner, extents.outer, name="second"),
        s.conv(s.conv(x, extents.source, 5, name="free"), 5, 4, name="end"),
    ]
    shape = [extents.batch, extents.outer, extents.height, extents.width]
    model = s.model(*ends, **{ends[0]: shape})
    pruning.check(
        model,
        widths={"free": 5},
        refused={"first": ["QuickGelu 'foreign'", "no operator with a known rule"]},
    )


def test_operator_that_only_shares_a_name_with_ours(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    # com.microsoft.Gelu happens to be the same function; a name in a foreign domain says nothing.
    s = sketch(17, com_microsoft=1)
    _, a = _chain(s, extents)
    b = s.append(helper.make_node("Gelu", [a], ["b"], name="foreign", domain="com.microsoft"))
    y = s.conv(b, extents.inner, extents.outer, name="second")
    shape = [extents.batch, extents.outer, extents.height, extents.width]
    pruning.check(s.model(y, **{y: shape}), widths={}, refused={"first": "Gelu 'foreign'"})


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reduction_over_channels(
    sketch: Any, pruning: Any, extents: Any, operator: str, opset: int, keepdims: int
) -> None:
    s = sketch(opset)
    _, a = _chain(s, extents)
    as_input = opset >= 18 or (operator == "ReduceSum" and opset >= 13)
    if as_input:
        y = s.add(operator, a, s.constant([1], dtype=np.int64), name="over", keepdims=keepdims)
    else:
        y = s.add(operator, a, name="over", axes=[1], keepdims=keepdims)
    pruning.check(
        s.model(y), widths={}, refused={"first": [f"{operator} 'over'", "works across channels"]}
    )


def test_a_barrier_stops_only_its_own_group(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    _, a = _chain(s, extents)
    b = s.conv(s.add("LRN", a, name="norm", size=3), c, 5, name="second")
    y = s.conv(s.add("Relu", b), 5, extents.outer, name="third")
    pruning.check(s.model(y), widths={"second": 5}, refused={"first": "LRN 'norm'"})


def test_a_tensor_that_nobody_reads(sketch: Any, pruning: Any, extents: Any) -> None:
    # Dead ends neither block nor get in the way.
    s, c = sketch(), extents.inner
    _, a = _chain(s, extents)
    s.conv(a, c, 5, name="dead")
    y = s.conv(a, c, extents.outer, name="second")
    model = s.model(y)
    case = pruning.case(model)
    assert case.coupling.group("first").width == c
    pruning.check(model)


@pytest.mark.parametrize("what", ["group", "number", "cover"])
def test_removal_that_makes_no_sense_is_refused(
    sketch: Any, pruning: Any, extents: Any, what: str
) -> None:
    s = sketch()
    case = pruning.case(s.sandwich(extents, lambda a: s.add("Relu", a)))
    removed = {
        "group": {"nobody": [0]},
        "number": {"first": [extents.inner]},
        "cover": {"first": list(range(extents.inner))},
    }[what]
    words = {
        "group": "'nobody'",
        "number": f"not {extents.inner}",
        "cover": "nothing would be left",
    }
    with pytest.raises(PassError, match=words[what]):
        pruning.remove(case, removed)


def test_a_tensor_of_two_groups_cannot_be_emptied(sketch: Any, pruning: Any) -> None:
    # A slice of a concatenation holds channels 2 and 3 of one group and 0 and 1 of the other:
    # each group may lose its two, but not both.
    s = sketch()
    x = s.input([2, 3, 5, 7])
    joined = s.add("Concat", *(s.conv(x, 3, 4, name=n) for n in ("one", "other")), axis=1)
    bounds = (s.constant([n], dtype=np.int64) for n in (2, 6, 1))
    middle = s.add("Slice", joined, *bounds)
    model = s.model(s.conv(middle, 4, 5, name="narrow"), s.conv(joined, 8, 6, name="wide"))
    case = pruning.case(model)
    assert case.widths == {"one": 4, "other": 4}
    for removed in ({"one": [2, 3]}, {"other": [0, 1]}, {"one": [2, 3], "other": [0]}):
        pruning.assert_valid(case, pruning.remove(case, removed), removed)
    with pytest.raises(PassError, match="nothing would be left"):
        pruning.remove(case, {"one": [2, 3], "other": [0, 1]})


@pytest.mark.parametrize("operator", ["QLinearConv", "DynamicQuantizeLinear"])
def test_quantised_operators(sketch: Any, pruning: Any, extents: Any, operator: str) -> None:
    s, c = sketch(), extents.inner
    _, a = _chain(s, extents)
    step, point = s.constant(0.5), s.constant(0, dtype=np.int8)
    if operator == "QLinearConv":
        q = s.add("QuantizeLinear", a, step, point)
        w = s.whole([extents.outer, c, 1, 1], dtype=np.int8)
        y = s.add("QLinearConv", q, step, point, w, step, point, step, point, name="strange")
    else:
        q, scale, zero = s.add("DynamicQuantizeLinear", a, name="strange", outputs=3)
        b = s.add("DequantizeLinear", q, scale, zero)
        y = s.conv(b, c, extents.outer, name="second")
    pruning.check(s.model(y), widths={}, refused={"first": f"{operator} 'strange'"})
