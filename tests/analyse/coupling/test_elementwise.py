"""Element-wise operators on several tensors: those that meet go together."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("operator", ["Sum", "Mean", "Max", "Min"])
@pytest.mark.parametrize("constant", [None, "", "c11", "w"])
def test_several_tensors(
    sketch: Any, pruning: Any, extents: Any, operator: str, constant: str | None
) -> None:
    s, c = sketch(13), extents.inner
    x = s.input(extents.image)
    parts = [
        s.conv(x, extents.source, c, name=f"part{n}") for n in range(4 - (constant is not None))
    ]
    if constant is not None:
        # Signs under which Max and Min leave zero behind along the width.
        sign = {"low": -2, "high": 0} if operator == "Max" else {"low": 0, "high": 2}
        values = sign if constant == "w" else {"low": -2, "high": 2}
        parts.insert(1, s.whole(extents.shape(constant), **values))
    y = s.conv(s.add(operator, *parts, name="all"), c, extents.outer, name="second")
    if constant == "w" and operator in {"Sum", "Mean"}:
        pruning.check(s.model(y), widths={}, refused={"part0": ["Conv 'second'", "constant"]})
        return
    # A mean of three or four is not exact in thirds: four roundings of 2**-24 each, and the sum.
    tolerance = (4 + c) * 2.0**-23 if operator == "Mean" else 0.0
    case = pruning.check(s.model(y), widths={"part0": c}, tolerance=tolerance)
    assert len(case.coupling.group("part0").producers) == (4 if constant is None else 3)


@pytest.mark.parametrize("operator", ["Add", "Mul", "Sub", "Max"])
def test_chain_of_residual_blocks(sketch: Any, pruning: Any, extents: Any, operator: str) -> None:
    s, c = sketch(), extents.inner
    a = s.conv(s.input(extents.image), extents.source, c, name="stem")
    a = s.add("Relu", a)
    for n in range(2):
        b = s.conv(a, c, 3, name=f"in{n}", bias=False)
        b = s.conv(s.add("Relu", b), 3, c, name=f"out{n}", bias=False)
        b = s.add("Clip", b, s.constant(-3.0), s.constant(3.0))
        a = s.add("Relu", s.add(operator, a, b))
    y = s.conv(a, c, extents.outer, name="head")
    case = pruning.check(s.model(y), widths={"stem": c, "in0": 3, "in1": 3})
    assert set(case.coupling.group("stem").producers) == {"stem", "out0", "out1"}


def test_residual_from_the_graph_input(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.source
    x = s.input(extents.image)
    a = s.conv(x, c, 5, name="first")
    b = s.conv(s.add("Relu", a), 5, c, name="second")
    y = s.conv(s.add("Add", b, x, name="shortcut"), c, extents.outer, name="third")
    pruning.check(
        s.model(y), widths={"first": 5}, refused={"second": ["Add 'shortcut'", "cannot be cut"]}
    )


def test_graph_input_that_broadcasts(sketch: Any, pruning: Any, extents: Any) -> None:
    # One number per sample times all channels: zero stays zero, and nothing else is tied.
    s = sketch()
    scale = s.input([extents.batch, 1, 1, 1], "scale")
    model = s.sandwich(extents, lambda a: s.add("Mul", a, scale), kernel=3, pads=[1] * 4)
    pruning.check(model, widths={"first": extents.inner})


def test_graph_input_that_is_added_and_broadcasts(sketch: Any, pruning: Any, extents: Any) -> None:
    s = sketch()
    shift = s.input([extents.batch, 1, 1, 1], "shift")
    model = s.sandwich(extents, lambda a: s.add("Add", a, shift))
    pruning.check(model, widths={}, refused={"first": ["Conv 'second'", "not a constant"]})


def test_tensor_added_to_itself(sketch: Any, pruning: Any, extents: Any) -> None:
    s = sketch()
    model = s.sandwich(extents, lambda a: s.add("Add", a, a), kernel=3, pads=[1] * 4)
    pruning.check(model, widths={"first": extents.inner})


def test_tensor_and_its_transpose(sketch: Any, pruning: Any) -> None:
    # Gram-like: channel i meets position i, so that cutting one would cut the other.
    s = sketch()
    a = s.add("MatMul", s.input([4, 4]), s.whole([4, 4]), name="first")
    b = s.add("Add", a, s.add("Transpose", a, perm=[1, 0]), name="both")
    y = s.add("MatMul", b, s.whole([4, 5]), name="second")
    pruning.check(s.model(y), widths={}, refused={"first": "first_out"})
