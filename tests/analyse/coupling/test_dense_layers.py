"""Gemm and MatMul: pruned exactly, or declined with a reason."""

from __future__ import annotations

from typing import Any

import pytest

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


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_dequantised_matmul_takes_constant_channels(
    sketch: Any, pruning: Any, axis: int | None
) -> None:
    for source, inner, outer in ((3, 6, 5), (4, 4, 4)):
        s = sketch()
        a = s.add(
            "MatMul",
            s.input([2, source]),
            s.dequantised([source, inner], axis),
            name="first",
        )
        a = s.add("Add", a, s.whole([inner], low=-3, high=3))
        y = s.add("MatMul", a, s.dequantised([inner, outer], axis), name="second")
        pruning.check(s.model(y), widths={"first": inner})
