"""What a BatchNormalization that was not folded leaves of a removed channel is absorbed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


def _norm(s: Any, a: str, c: int, name: str = "norm") -> str:
    """A BatchNormalization that is exact: epsilon 1/4, variances 3/4 and 15/4."""
    channel = np.arange(c)
    constants = [
        s.constant(1.0 + channel % 3),
        s.constant(1.0 + channel % 5),
        s.constant(channel % 4 - 1.0),
        s.constant(np.where(channel % 2, 0.75, 3.75)),
    ]
    return str(s.add("BatchNormalization", a, *constants, name=name, epsilon=0.25))


@pytest.mark.parametrize("opset", [9, 14, 15])
@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_behind_a_relu(
    sketch: Any, pruning: Any, extents: Any, opset: int, *, relu: bool
) -> None:
    s, c = sketch(opset), extents.inner

    def middle(a: str) -> str:
        a = _norm(s, s.add("Relu", a), c)
        return str(s.add("Relu", a)) if relu else a

    case = pruning.check(s.sandwich(extents, middle, kernel=2), widths={"first": c})
    # Without a Relu behind it, it was folded into 'second'.
    kept = any(node.op_type == "BatchNormalization" for node in case.model.graph.node)
    assert kept == relu


def test_batch_norm_before_a_padded_conv(sketch: Any, pruning: Any, extents: Any) -> None:
    # Pre-activation: what BatchNormalization leaves shows at borders unless the Relu takes it.
    s, c = sketch(), extents.inner
    channel = np.arange(c)
    bias, mean = s.constant(np.where(channel % 2, 1.0, -2.0)), s.constant(np.zeros(c))

    def middle(a: str) -> str:
        parts = [s.constant(np.ones(c)), bias, mean, s.constant(np.full(c, 0.75))]
        a = s.add("BatchNormalization", s.add("Relu", a), *parts, epsilon=0.25)
        return str(s.add("Relu", a))

    case = pruning.check(
        s.sandwich(extents, middle, kernel=3, pads=[1] * 4), widths={"first": (c + 1) // 2}
    )
    lane = case.coupling.lanes["first_out"]
    assert np.flatnonzero(lane.classes).tolist() == list(range(0, c, 2))


def test_batch_norm_behind_a_concat(sketch: Any, pruning: Any, extents: Any) -> None:
    # DenseNet: what a channel leaves depends on where in the concatenation it stands.
    s, c = sketch(), extents.inner
    x = s.input(extents.image)
    a, b = s.conv(x, extents.source, c, name="one"), s.conv(x, extents.source, 5, name="other")
    joined = s.add("Concat", a, b, axis=1)
    left = s.conv(s.add("Relu", _norm(s, joined, c + 5)), c + 5, 4, name="left")
    right = s.conv(s.add("Concat", a, left, axis=1), c + 4, extents.outer, name="right")
    case = pruning.check(s.model(right), widths={"one": c, "other": 5, "left": 4})
    assert any(node.op_type == "BatchNormalization" for node in case.model.graph.node)


@pytest.mark.parametrize("dense", ["Gemm", "MatMul"])
def test_batch_norm_through_pooling_into_a_dense_layer(
    sketch: Any, pruning: Any, extents: Any, dense: str
) -> None:
    s, c = sketch(), extents.inner
    a = s.conv(s.input(extents.image), extents.source, c, name="first")
    a = s.add("Relu", _norm(s, s.add("Relu", a), c))
    a = s.add("Flatten", s.add("GlobalMaxPool", a))
    y = s.add(dense, a, s.whole([c, extents.outer]), name="second")
    pruning.check(s.model(y), widths={"first": c})


def test_batch_norm_through_flatten_into_a_dense_layer(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    s, c = sketch(), extents.inner
    a = s.conv(s.input(extents.image), extents.source, c, name="first")
    a = s.add("Flatten", s.add("Relu", _norm(s, s.add("Relu", a), c)))
    count = c * extents.height * extents.width
    y = s.add("Gemm", a, s.whole([count, extents.outer]), s.whole([extents.outer]), name="second")
    pruning.check(s.model(y), widths={"first": c})


@pytest.mark.parametrize(("inner", "group", "width"), [(8, 2, 4), (8, 4, 4), (6, 6, 6)])
def test_batch_norm_before_a_grouped_conv(
    sketch: Any, pruning: Any, inner: int, group: int, width: int
) -> None:
    s = sketch()
    a = s.conv(s.input([2, 3, 5, 7]), 3, inner, name="first")
    a = s.add("Relu", _norm(s, s.add("Relu", a), inner))
    b = s.conv(a, inner, inner, 2, name="grouped", group=group)
    y = s.conv(s.add("Relu", b), inner, 5, name="second")
    case = pruning.check(s.model(y))
    assert case.widths["first"] == width
