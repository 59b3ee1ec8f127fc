"""Streams that are multiplied or divided by what is computed from them: gates, norms, ratios."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


def _gate(s: Any, a: str, c: int, kind: str, activation: str) -> str:
    if kind == "conv":
        b = s.conv(s.add("GlobalAveragePool", a), c, 3, name="squeeze")
        return str(s.add(activation, s.conv(s.add("Relu", b), 3, c, name="excite")))
    if kind == "reduce":
        b = s.conv(s.add("ReduceMean", a, axes=[2, 3]), c, 3, name="squeeze")
        return str(s.add(activation, s.conv(s.add("Relu", b), 3, c, name="excite")))
    b = s.add("Flatten", s.add("GlobalAveragePool", a))
    b = s.add("Gemm", b, s.whole([c, 3]), s.whole([3]), name="squeeze")
    b = s.add("Gemm", s.add("Relu", b), s.whole([c, 3]), s.whole([c]), name="excite", transB=1)
    b = s.add(activation, b)
    if kind == "unsqueeze":
        return str(s.add("Unsqueeze", b, s.constant([2, 3], dtype=np.int64)))
    sizes = {"minus one": [-1, c, 1, 1], "zero": [0, -1, 1, 1], "written": [0, c, 1, 1]}
    return str(s.add("Reshape", b, s.constant(sizes[kind], dtype=np.int64)))


@pytest.mark.parametrize("kind", ["conv", "reduce", "unsqueeze", "minus one", "zero", "written"])
@pytest.mark.parametrize(("activation", "first"), [("Sigmoid", True), ("HardSigmoid", False)])
def test_squeeze_and_excitation(
    sketch: Any, pruning: Any, extents: Any, kind: str, activation: str, *, first: bool
) -> None:
    s, c = sketch(), extents.inner

    def middle(a: str) -> str:
        a = s.add("Relu", a)
        pair = [a, _gate(s, a, c, kind, activation)]
        return str(s.add("Mul", *(pair if first else pair[::-1])))

    # The gate leaves 1/2 times 0, which is 0 at borders, too. Averages and products are rounded,
    # and sums run in another order: fewer than 64 terms of 2**-24 each.
    model = s.sandwich(extents, middle, kernel=3, pads=[1] * 4)
    case = pruning.check(model, widths={"first": c, "squeeze": 3}, tolerance=64 * 2.0**-24)
    assert set(case.coupling.group("first").producers) == {"first", "excite"}


def test_gate_with_one_channel_unites_nothing(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner

    def middle(a: str) -> str:
        mask = s.conv(a, c, 1, 3, name="mask", pads=[1] * 4)
        return str(s.add("Mul", s.add("Sigmoid", mask), a, name="gate"))

    pruning.check(
        s.sandwich(extents, middle, kernel=3),
        widths={"first": c},
        refused={"mask": ["Mul 'gate'", "spreads"]},
        tolerance=9 * c * 2.0**-22,
    )


def test_gate_from_statistics_over_channels(sketch: Any, pruning: Any, extents: Any) -> None:
    # CBAM: the largest of all channels is not the largest of those that stay.
    s = sketch()

    def middle(a: str) -> str:
        most = s.add("ReduceMax", a, name="most", axes=[1])
        return str(s.add("Mul", s.add("Sigmoid", s.conv(most, 1, 1, name="mask")), a))

    pruning.check(
        s.sandwich(extents, middle), widths={}, refused={"first": "ReduceMax 'most' works across"}
    )


def test_hand_written_swish(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    model = s.sandwich(
        extents, lambda a: s.add("Mul", a, s.add("Sigmoid", a)), kernel=3, pads=[1] * 4
    )
    pruning.check(model, widths={"first": c}, tolerance=9 * c * 2.0**-22)


def test_normalisation_by_the_norm_of_all_channels(sketch: Any, pruning: Any, extents: Any) -> None:
    s = sketch()

    def middle(a: str) -> str:
        return str(s.add("Div", a, s.add("ReduceL2", a, name="norm", axes=[1])))

    pruning.check(
        s.sandwich(extents, middle), widths={}, refused={"first": "ReduceL2 'norm' works across"}
    )


def test_division_by_a_tensor_of_channels(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    x = s.input(extents.image)
    a, b = (s.conv(x, extents.source, c, name=name) for name in ("above", "below"))
    y = s.conv(s.add("Div", a, b, name="ratio"), c, extents.outer, name="second")
    pruning.check(s.model(y), widths={}, refused={"above": "Div 'ratio'", "below": "Div 'ratio'"})


def test_outer_product_of_two_layers(sketch: Any, pruning: Any, extents: Any) -> None:
    # Channels of one on rows, of the other on columns: neither may unite with the other.
    s = sketch()
    x = s.input([2, 3])
    a = s.add("Gemm", x, s.whole([3, 4]), name="rows")
    b = s.add("Gemm", x, s.whole([3, 4]), name="columns")
    a = s.add("Unsqueeze", a, s.constant([2], dtype=np.int64))
    b = s.add("Unsqueeze", b, s.constant([1], dtype=np.int64))
    y = s.add("MatMul", s.add("Mul", a, b, name="outer"), s.whole([4, 5]), name="second")
    pruning.check(s.model(y), widths={}, refused={"rows": "Mul 'outer'", "columns": "Mul 'outer'"})
