"""Two layers in one: bit for bit on whole numbers, and never where padding would show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

SAME = ", pads = [1, 1, 1, 1]"


def pair(first: str, second: str, *, middle: int = 6, size: str = "6, 8", outputs: int = 5) -> str:
    return f"""net (float[N, 4, {size}] x) => (float[N, {outputs}, P, Q] y) {{
        [one] a = Conv <{first}> (x, w1, b1)
        [two] y = Conv <{second}> (a, w2, b2) }}"""


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(
    ("first", "second", "shapes"),
    [
        ("kernel_shape = [3, 3]" + SAME, "kernel_shape = [1, 1]", ((6, 4, 3, 3), (5, 6, 1, 1))),
        (
            "kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]",
            "kernel_shape = [1, 1]",
            ((6, 4, 3, 2), (5, 6, 1, 1)),
        ),
        ("kernel_shape = [1, 1]", "kernel_shape = [3, 3]", ((6, 4, 1, 1), (5, 6, 3, 3))),
        (
            "kernel_shape = [1, 1]",
            "kernel_shape = [3, 2], strides = [1, 2], dilations = [2, 1]",
            ((6, 4, 1, 1), (5, 6, 3, 2)),
        ),
        # Depthwise, then dense: the zeros between channels are filled in.
        (
            "kernel_shape = [3, 3], group = 4" + SAME,
            "kernel_shape = [1, 1]",
            ((4, 1, 3, 3), (4, 4, 1, 1)),
        ),
        # Both in two groups: so is the result.
        (
            "kernel_shape = [3, 3], group = 2",
            "kernel_shape = [1, 1], group = 2",
            ((6, 2, 3, 3), (4, 3, 1, 1)),
        ),
        # All extents equal.
        ("kernel_shape = [1, 1]", "kernel_shape = [1, 1]", ((4, 4, 1, 1), (4, 4, 1, 1))),
    ],
)
def test_convolutions(
    bench: Any, nets: Any, kit: Any, first: str, second: str, shapes: Any, biases: Any
) -> None:
    one, two = shapes
    text = pair(first, second, outputs=two[0])
    constants = {"w1": kit.whole(one, seed=1), "w2": kit.whole(two, seed=2)}
    for number, (given, shape) in enumerate(zip(biases, shapes, strict=True), 1):
        if given:
            constants[f"b{number}"] = kit.whole((shape[0],), seed=3)
        else:
            text = text.replace(f", b{number})", ")")
    result = bench.checked(nets.build(text, **constants))
    assert kit.operators(result) == ["Conv"]


def test_a_bias_in_front_of_padding(bench: Any, nets: Any, kit: Any) -> None:
    """At the border the second layer reads zeros, not what the first answers to zeros."""
    text = pair("kernel_shape = [1, 1]", "kernel_shape = [3, 3]" + SAME)
    shapes = {"w1": kit.whole((6, 4, 1, 1), seed=1), "w2": kit.whole((5, 6, 3, 3), seed=2)}
    one = nets.build(text, **shapes, b1=kit.whole((6,), seed=3), b2=kit.whole((5,), seed=4))
    assert bench.kinds(one) == []
    silent = nets.build(text, **shapes, b1=np.zeros(6, np.float32), b2=kit.whole((5,), seed=4))
    assert kit.operators(bench.checked(silent)) == ["Conv"]


@pytest.mark.parametrize(
    ("first", "second", "shapes"),
    [
        # Two kernels of several taps make a larger one: that is never faster.
        ("kernel_shape = [3, 3]", "kernel_shape = [3, 3]", ((6, 4, 3, 3), (5, 6, 3, 3))),
        ("kernel_shape = [1, 1], strides = [2, 2]", "kernel_shape = [3, 3]",
         ((6, 4, 1, 1), (5, 6, 3, 3))),
        ("kernel_shape = [3, 3]", "kernel_shape = [1, 1], strides = [2, 2]",
         ((6, 4, 3, 3), (5, 6, 1, 1))),
        # A bottleneck of one channel: four and more times the parameters.
        ("kernel_shape = [1, 1]", "kernel_shape = [1, 1]", ((1, 20, 1, 1), (40, 1, 1, 1))),
    ],
)  # fmt: skip
def test_no_pair(bench: Any, nets: Any, first: str, second: str, shapes: Any) -> None:
    text = pair(first, second, outputs=shapes[1][0])
    text = text.replace("N, 4, 6, 8", f"N, {shapes[0][1]}, 6, 8")
    biases = {"b1": (shapes[0][0],), "b2": (shapes[1][0],)}
    assert bench.kinds(nets.build(text, w1=shapes[0], w2=shapes[1], **biases)) == []


def test_what_lies_between_and_is_read_stays(bench: Any, nets: Any) -> None:
    text = pair("kernel_shape = [1, 1]", "kernel_shape = [1, 1]")
    shapes = {"w1": (6, 4, 1, 1), "b1": (6,), "w2": (5, 6, 1, 1), "b2": (5,)}
    shown = text.replace("=> (float", "=> (float[N, 6, 6, 8] a, float")
    assert bench.kinds(nets.build(shown, **shapes)) == []
    bent = text.replace("[two]", "[bend] c = Relu (a)\n[two]").replace("(a, w2", "(c, w2")
    assert bench.kinds(nets.build(bent, **shapes)) == []


def test_three_in_a_row_take_two_rounds(bench: Any, nets: Any, kit: Any) -> None:
    model = nets.build(
        """net (float[N, 4, 6, 8] x) => (float[N, 5, 6, 8] y) {
        [one] a = Conv (x, w1)
        [two] b = Conv (a, w2)
        [three] y = Conv (b, w3) }""",
        w1=kit.whole((6, 4, 1, 1), seed=1),
        w2=kit.whole((7, 6, 1, 1), seed=2),
        w3=kit.whole((5, 7, 1, 1), seed=3),
    )
    once = bench.checked(model)
    assert kit.operators(once) == ["Conv", "Conv"]
    assert kit.operators(bench.checked(once)) == ["Conv"]


@pytest.mark.parametrize(
    ("first", "second", "constants"),
    [
        ("Gemm (x, w1, b1)", "Gemm (a, w2, b2)", ((4, 6), (6,), (6, 5), (5,))),
        (
            "Gemm <transB = 1, alpha = 2.0, beta = 3.0> (x, w1, b1)",
            "Gemm <alpha = 0.5, beta = 2.0> (a, w2, b2)",
            ((6, 4), (6,), (6, 5), (5,)),
        ),
        ("MatMul (x, w1)", "Gemm <transB = 1> (a, w2, b2)", ((4, 6), (6,), (5, 6), (5,))),
        ("Gemm (x, w1, b1)", "MatMul (a, w2)", ((4, 4), (4,), (4, 4), (4,))),
        ("MatMul (x, w1)", "MatMul (a, w2)", ((4, 6), (6,), (6, 5), (5,))),
    ],
)
def test_dense_layers(
    bench: Any, nets: Any, kit: Any, first: str, second: str, constants: Any
) -> None:
    w1, b1, w2, b2 = (kit.whole(shape, seed=at) for at, shape in enumerate(constants))
    width = len(b2)
    model = nets.build(
        f"""net (float[N, 4] x) => (float[N, {width}] y) {{
        [one] a = {first}
        [two] y = {second} }}""",
        w1=w1, b1=b1, w2=w2, b2=b2,
    )  # fmt: skip
    assert len(bench.checked(model).graph.node) == 1


def test_matmul_of_three_axes(bench: Any, nets: Any, kit: Any) -> None:
    model = nets.build(
        """net (float[N, 7, 4] x) => (float[N, 7, 5] y) {
        [one] a = MatMul (x, w1)
        [two] y = MatMul (a, w2) }""",
        w1=kit.whole((4, 6), seed=1),
        w2=kit.whole((6, 5), seed=2),
    )
    assert kit.operators(bench.checked(model)) == ["MatMul"]


def test_weights_that_are_no_numbers_stay(bench: Any, nets: Any, kit: Any) -> None:
    weight = kit.whole((6, 4, 1, 1), seed=1)
    weight[0, 0] = np.nan
    text = pair("kernel_shape = [1, 1]", "kernel_shape = [1, 1]")
    constants = {"b1": (6,), "w2": (5, 6, 1, 1), "b2": (5,)}
    assert bench.kinds(nets.build(text, w1=weight, **constants)) == []
