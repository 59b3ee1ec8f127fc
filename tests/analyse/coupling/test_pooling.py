"""Pooling: channel by channel, and what it makes of constant ones."""

from __future__ import annotations

from typing import Any

import pytest

NEWEST = 26
# A result that is no binary fraction is rounded alike with and without the removed channels; a sum
# of at most 54 products of it (6 channels, 3x3) is then rounded in another order: 54 half ulps.
ROUNDED = 54 * 2.0**-24


def first(s: Any, e: Any) -> str:
    return str(s.conv(s.input(e.image), e.source, e.inner, name="first"))


POOLS: dict[str, dict[str, Any]] = {
    "MaxPool": {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 1, 0, 1]},
    "AveragePool": {"kernel_shape": [2, 2]},
    "LpPool": {"kernel_shape": [2, 2], "p": 1},
    "GlobalAveragePool": {},
    "GlobalMaxPool": {},
    "GlobalLpPool": {"p": 1},
}


@pytest.mark.parametrize(
    ("opset", "operator"),
    # ONNX Runtime has no GlobalLpPool of opset 22.
    [(v, p) for v in (9, 11, 18, 22, NEWEST) for p in POOLS if p != "GlobalLpPool" or v < 22],
)
def test_pooling(sketch: Any, pruning: Any, extents: Any, opset: int, operator: str) -> None:
    s, e = sketch(opset), extents
    model = s.sandwich(e, lambda a: s.add(operator, a, **POOLS[operator]))
    pruning.check(model, widths={"first": e.inner}, tolerance=ROUNDED)


# Whether a channel of one constant stays constant, borders and windows that hang over included.
AVERAGES: dict[str, tuple[dict[str, Any], bool]] = {
    "plain": ({}, True),
    "padded": ({"pads": [1, 1, 1, 1]}, True),
    "padding counted": ({"pads": [1, 1, 1, 1], "count_include_pad": 1}, False),
    "hanging over": ({"strides": [3, 3], "ceil_mode": 1}, False),
    "same": ({"auto_pad": "SAME_UPPER"}, True),
}


@pytest.mark.parametrize("opset", [11, 19, NEWEST])
@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("shifted", [False, True])
def test_average_pooling_of_constants(
    sketch: Any, pruning: Any, extents: Any, opset: int, kind: str, *, shifted: bool
) -> None:
    s, e = sketch(opset), extents
    attributes, keeps = AVERAGES[kind]

    def middle(a: str) -> str:
        a = s.add("Add", a, s.whole([e.inner, 1, 1], low=1)) if shifted else a
        return str(s.add("AveragePool", a, kernel_shape=[2, 2], **attributes))

    model = s.sandwich(e, middle)
    if keeps or not shifted:
        pruning.check(model, widths={"first": e.inner}, tolerance=ROUNDED)
    else:
        pruning.check(model, widths={}, refused={"first": "what reaches Conv 'second' is not"})


def test_max_pooling_of_constants_fills_no_zeros_in(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    s, e = sketch(), extents

    def middle(a: str) -> str:
        a = s.add("Sub", a, s.constant(2.0))
        return str(s.add("MaxPool", a, kernel_shape=[3, 3], pads=[1] * 4, ceil_mode=1))

    pruning.check(s.sandwich(e, middle), widths={"first": e.inner})


@pytest.mark.parametrize("opset", [9, 12, 22])
def test_max_pooling_with_positions_is_a_barrier(
    sketch: Any, pruning: Any, extents: Any, opset: int
) -> None:
    s, e = sketch(opset), extents
    a, where = s.add("MaxPool", first(s, e), outputs=2, kernel_shape=[2, 2], name="pool")
    y = s.conv(a, e.inner, e.outer, name="last")
    said = {"first": ["MaxPool 'pool'", "positions"]}
    pruning.check(s.model(y, where), widths={}, refused=said)


def test_pooling_over_what_a_depth_to_space_left(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    a = s.conv(s.input(e.image), e.source, 16, name="first")
    a = s.add("MaxPool", s.add("DepthToSpace", a, blocksize=2), kernel_shape=[2, 2])
    pruning.check(s.model(s.conv(a, 4, e.outer, name="last")), widths={"first": 4})
