"""Joining, turning and flattening: Concat, Transpose, Flatten, Reshape, Squeeze and Unsqueeze."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

NEWEST = 26
# A mean that is no binary fraction is rounded alike with and without the removed channels; the sum
# of at most 16 products of it that follows is rounded in another order: below 16 ulps of 2**-24.
ROUNDED = 16 * 2.0**-24


def two_branches(s: Any, e: Any, left: int, right: int) -> tuple[str, str]:
    x = s.input(e.image)
    return s.conv(x, e.source, left, name="left"), s.conv(x, e.source, right, name="right")


@pytest.mark.parametrize(("opset", "axis"), [(9, 1), (11, -3), (13, 1), (NEWEST, -3)])
def test_concat_of_two_branches(
    sketch: Any, pruning: Any, extents: Any, opset: int, axis: int
) -> None:
    s, e = sketch(opset), extents
    a, b = two_branches(s, e, e.inner, e.inner - 1)
    y = s.conv(s.add("Concat", a, b, axis=axis), 2 * e.inner - 1, e.outer, 3, name="last")
    pruning.check(s.model(y), widths={"left": e.inner, "right": e.inner - 1})


def test_concat_of_a_tensor_with_itself(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    a = s.conv(s.input(e.image), e.source, e.inner, name="first")
    y = s.conv(s.add("Concat", a, a, a, axis=1), 3 * e.inner, e.outer, 3, name="last")
    pruning.check(s.model(y), widths={"first": e.inner})


def test_concat_of_a_tensor_with_its_own_negative(sketch: Any, pruning: Any, extents: Any) -> None:
    # Concatenated ReLU: both halves of a channel go together.
    s, e = sketch(), extents
    a = s.conv(s.input(e.image), e.source, e.inner, name="first")
    both = s.add("Relu", s.add("Concat", a, s.add("Neg", a), axis=1))
    pruning.check(
        s.model(s.conv(both, 2 * e.inner, e.outer, name="last")), widths={"first": e.inner}
    )


@pytest.mark.parametrize("opset", [9, 17, NEWEST])
@pytest.mark.parametrize("kernel", [1, 3])
def test_dense_blocks(sketch: Any, pruning: Any, extents: Any, opset: int, kernel: int) -> None:
    # DenseNet: every layer reads all before it through a norm that leaves constants behind.
    s, e = sketch(opset), extents
    growth, width = 3, e.inner
    a = s.conv(s.input(e.image), e.source, width, name="stem")
    for n in range(3):
        parts = [s.constant(v) for v in _norm(width, n)]
        b = s.add("Relu", s.add("BatchNormalization", a, *parts, epsilon=0.25, name=f"norm{n}"))
        b = s.conv(b, width, growth, kernel, name=f"grow{n}", pads=[kernel // 2] * 4)
        a, width = s.add("Concat", a, b, axis=1), width + growth
    y = s.conv(a, width, e.outer, name="last")
    if kernel == 1:
        pruning.check(
            s.model(y), widths={"stem": e.inner, **{f"grow{n}": growth for n in range(3)}}
        )
        return
    # Behind a 3x3 with zero padding only the last layer, and what a norm leaves at zero, may go.
    case = pruning.check(s.model(y))
    assert case.widths["grow2"] == growth
    assert any("borders would show" in reason for reason in case.coupling.reasons.values())


def _norm(width: int, seed: int) -> list[np.ndarray]:
    channel = np.arange(width)
    generator = np.random.default_rng(seed)
    # Exact with epsilon 0.25: the factors are powers of two.
    return [
        1.0 + channel % 2,
        generator.integers(-2, 3, width).astype(float),
        generator.integers(-2, 3, width).astype(float),
        np.where(channel % 3, 0.75, 3.75),
    ]


def test_concat_with_a_constant_and_an_input(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    x = s.input(e.image)
    a = s.conv(x, e.source, e.inner, name="first")
    fixed = s.whole([e.batch, 2, e.height, e.width])
    joined = s.add("Concat", x, a, fixed, axis=1)
    y = s.conv(joined, e.source + e.inner + 2, e.outer, name="last")
    pruning.check(s.model(y), widths={"first": e.inner})


def test_a_constant_that_changes_in_space_is_no_constant_to_a_bias(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    s, e = sketch(), extents
    x = s.input(e.image)
    a = s.conv(x, e.source, e.inner, name="first")
    joined = s.add("Concat", a, s.whole([e.batch, 3, e.height, e.width]), axis=1)
    other = s.conv(x, e.source, e.inner + 3, name="other")
    y = s.conv(s.add("Add", joined, other), e.inner + 3, e.outer, name="last")
    case = pruning.check(s.model(y), widths={"first": e.inner})
    assert set(case.coupling.reasons.values()) >= {
        "when it is zero, what reaches Conv 'last' is not a constant"
    }


def test_a_uniform_constant_that_is_joined_on_goes_into_the_bias(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    s, e = sketch(), extents
    x = s.input(e.image)
    a = s.conv(x, e.source, e.inner, name="first")
    fixed = s.constant(
        np.broadcast_to(np.reshape([2.0, -1, 3], (1, 3, 1, 1)), [e.batch, 3, e.height, e.width])
    )
    other = s.conv(x, e.source, e.inner + 3, name="other")
    joined = s.add("Add", other, s.add("Concat", a, fixed, axis=1))
    y = s.conv(joined, e.inner + 3, e.outer, name="last")
    case = pruning.check(s.model(y))
    assert sum(case.widths.values()) == e.inner + 3


@pytest.mark.parametrize("axis", [2, -1])
def test_concat_over_space(sketch: Any, pruning: Any, extents: Any, axis: int) -> None:
    s, e = sketch(), extents
    a, b = two_branches(s, e, e.inner, e.inner)
    y = s.conv(s.add("Concat", a, b, a, axis=axis), e.inner, e.outer, 3, name="last")
    pruning.check(s.model(y), widths={"left": e.inner})


def test_concat_over_space_with_an_input_stays(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    x = s.input(e.image)
    a = s.conv(x, e.source, e.source, name="first")
    y = s.conv(s.add("Concat", a, x, axis=2), e.source, e.outer, name="last")
    pruning.check(s.model(y), widths={}, refused={"first": "joins it with values"})


def test_concat_over_space_with_a_constant(sketch: Any, pruning: Any, extents: Any) -> None:
    # A learned border: the constant has the same channels, so it can be cut with them.
    s, e = sketch(), extents
    a = s.conv(s.input(e.image), e.source, e.inner, name="first")
    border = s.constant(np.zeros([e.batch, e.inner, 2, e.width]))
    y = s.conv(s.add("Concat", a, border, axis=2), e.inner, e.outer, name="last")
    pruning.check(s.model(y), widths={"first": e.inner})


@pytest.mark.parametrize("opset", [9, 13, NEWEST])
def test_channels_last_and_back(sketch: Any, pruning: Any, extents: Any, opset: int) -> None:
    s, e = sketch(opset), extents

    def middle(a: str) -> str:
        a = s.add("Transpose", a, perm=[0, 2, 3, 1])
        a = s.add("Mul", a, s.whole([e.inner]))
        a = s.add("Add", s.add("Relu", a), s.whole([1, e.inner]))
        return str(s.add("Transpose", a, perm=[0, 3, 1, 2]))

    pruning.check(s.sandwich(e, middle), widths={"first": e.inner})


def test_channels_last_into_a_dense_layer(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    a = s.conv(s.input(e.image), e.source, e.inner, name="first")
    a = s.add("Transpose", a, perm=[0, 2, 3, 1])
    a = s.add("Add", s.add("MatMul", a, s.whole([e.inner, 5]), name="dense"), s.whole([5]))
    y = s.conv(s.add("Transpose", a, perm=[0, 3, 1, 2]), 5, e.outer, name="last")
    pruning.check(s.model(y), widths={"first": e.inner, "dense": 5})


def test_transpose_without_a_permutation(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents

    def middle(a: str) -> str:
        # [W, H, C, N]: the constant lies along C in the last axis but one.
        turned = s.add("Add", s.add("Transpose", a), s.whole([e.inner, 1]))
        return str(s.add("Transpose", turned))

    pruning.check(s.sandwich(e, middle), widths={"first": e.inner})


@pytest.mark.parametrize(("opset", "axis"), [(9, 1), (11, -3), (13, 1), (NEWEST, -3)])
def test_flatten_into_gemm(sketch: Any, pruning: Any, extents: Any, opset: int, axis: int) -> None:
    s, e = sketch(opset), extents
    a = s.add("Relu", s.conv(s.input(e.image), e.source, e.inner, name="first"))
    count = e.inner * e.height * e.width
    y = s.add("Gemm", s.add("Flatten", a, axis=axis), s.whole([count, 5]), s.whole([5]))
    pruning.check(s.model(y), widths={"first": e.inner})


def test_flatten_behind_constants_goes_into_the_bias(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    s, e = sketch(), extents
    a = s.conv(s.input(e.image), e.source, e.inner, name="first")
    a = s.add("Relu", s.add("Add", a, s.whole([e.inner, 1, 1], high=3)))
    count = e.inner * e.height * e.width
    y = s.add("Gemm", s.add("Flatten", a), s.whole([5, count]), s.whole([5]), transB=1)
    pruning.check(s.model(y), widths={"first": e.inner})


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_flatten_that_joins_batch_and_channels(
    sketch: Any, pruning: Any, extents: Any, axis: int
) -> None:
    # [N C, H W] and back: rows of a matrix are channels.
    s, e = sketch(), extents

    def middle(a: str) -> str:
        flat = s.add("Relu", s.add("Flatten", a, axis=axis))
        shape = s.constant([e.batch, e.inner, e.height, e.width], dtype=np.int64)
        return str(s.add("Reshape", flat, shape))

    case = pruning.case(s.sandwich(e, middle))
    if case.widths:
        pruning.assert_exact(case)
    assert case.widths == {"first": e.inner}


TARGETS = {"0,-1": [0, -1], "-1,C": [-1, "c"], "n,C": ["n", "c"]}


@pytest.mark.parametrize("opset", [9, 13, 14, NEWEST])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("pooled", [False, True])
def test_reshape_into_gemm(
    sketch: Any, pruning: Any, extents: Any, opset: int, target: str, *, pooled: bool
) -> None:
    s, e = sketch(opset), extents
    a = s.add("Relu", s.conv(s.input(e.image), e.source, e.inner, name="first"))
    a = s.add("GlobalAveragePool", a) if pooled else a
    count = e.inner * (1 if pooled else e.height * e.width)
    shape = [{"n": e.batch, "c": count}.get(v, v) for v in TARGETS[target]]
    flat = s.add("Reshape", a, s.constant(shape, dtype=np.int64))
    y = s.add("Gemm", flat, s.whole([count, 5]), s.whole([5]))
    pruning.check(s.model(y), widths={"first": e.inner}, tolerance=ROUNDED if pooled else 0.0)


def test_reshape_channels_last_to_rows(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    a = s.conv(s.input(e.image), e.source, e.inner, name="first")
    rows = s.add("Transpose", a, perm=[0, 2, 3, 1])
    rows = s.add("Reshape", rows, s.constant([-1, e.inner], dtype=np.int64))
    y = s.add("MatMul", s.add("Add", rows, s.whole([1, e.inner])), s.whole([e.inner, 5]))
    pruning.check(s.model(y), widths={"first": e.inner})


@pytest.mark.parametrize("opset", [9, 12, 13, 21, NEWEST])
def test_squeeze_and_unsqueeze(sketch: Any, pruning: Any, extents: Any, opset: int) -> None:
    s, e = sketch(opset), extents

    def call(operator: str, a: str, axes: list[int]) -> str:
        if opset < 13:
            return str(s.add(operator, a, axes=axes))
        return str(s.add(operator, a, s.constant(axes, dtype=np.int64)))

    def middle(a: str) -> str:
        a = call("Unsqueeze", a, [1])  # [N, 1, C, H, W]
        a = call("Unsqueeze", s.add("Mul", a, s.whole([e.inner, 1, 1])), [0, 6])
        a = s.add("Add", a, s.whole([1, 1, 1, e.inner, 1, 1, 1]))  # [1, N, 1, C, H, W, 1]
        return call("Squeeze", a, [0, 2, 6])

    pruning.check(s.sandwich(e, middle), widths={"first": e.inner})


@pytest.mark.parametrize("opset", [12, 17])
def test_squeeze_without_axes_says_so(sketch: Any, pruning: Any, opset: int) -> None:
    # With one channel left it would drop the channel axis, too.
    s = sketch(opset)
    a = s.add("GlobalMaxPool", s.conv(s.input([2, 3, 5, 7]), 3, 6, name="first"))
    y = s.add("Gemm", s.add("Squeeze", a, name="drop"), s.whole([6, 5]), s.whole([5]))
    pruning.check(s.model(y), widths={}, refused={"first": ["Squeeze 'drop'", "which axes"]})
