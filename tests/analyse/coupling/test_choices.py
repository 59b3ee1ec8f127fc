"""Element-wise choices, limits and logic: Where, Clip, Dropout, Cast, comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto


@pytest.mark.parametrize("opset", [9, 16])
@pytest.mark.parametrize("letters", ["", "1c11", "chw", "nchw"])
def test_where_with_a_constant_condition(
    sketch: Any, pruning: Any, extents: Any, letters: str, opset: int
) -> None:
    s, c = sketch(opset), extents.inner
    x = s.input(extents.image)
    a, b = (s.conv(x, extents.source, c, name=name) for name in ("first", "other"))
    condition = s.whole(extents.shape(letters), low=0, high=1, dtype=np.bool_)
    y = s.conv(s.add("Where", condition, a, b), c, extents.outer, 3, name="second", pads=[1] * 4)
    pruning.check(s.model(y), widths={"first": c})


def test_where_with_a_computed_condition(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner

    def middle(a: str) -> str:
        above = s.add("Greater", a, s.whole([c, 1, 1]))
        return str(s.add("Where", above, a, s.whole([c, 1, 1])))

    pruning.check(s.sandwich(extents, middle), widths={"first": c})


def test_where_with_a_condition_that_is_an_input(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    x = s.input(extents.image)
    shape = [extents.batch, 1, extents.height, extents.width]
    condition = s.input(shape, "condition", TensorProto.BOOL)
    a, b = (s.conv(x, extents.source, c, name=name) for name in ("first", "other"))
    y = s.conv(s.add("Where", condition, a, b, name="pick"), c, extents.outer, name="second")
    # Zero in both is zero, whatever is picked; to decline is right, too, if it says so.
    model = s.model(y)
    case = pruning.case(model)
    if case.widths:
        pruning.check(model, widths={"first": c})
    else:
        pruning.check(model, widths={}, refused={"first": "Conv 'second'"})


@pytest.mark.parametrize("opset", [9, 11, 12, 13])
def test_clip(sketch: Any, pruning: Any, extents: Any, opset: int) -> None:
    s = sketch(opset)

    def middle(a: str) -> str:
        if opset < 11:
            return str(s.add("Clip", a, min=1.0, max=6.0))
        return str(s.add("Clip", a, s.constant(1.0), s.constant(6.0)))

    pruning.check(s.sandwich(extents, middle), widths={"first": extents.inner})
    if opset >= 11:
        s = sketch(opset)
        model = s.sandwich(
            extents, lambda a: s.add("Clip", a, "", s.constant(6.0)), kernel=3, pads=[1] * 4
        )
        pruning.check(model, widths={"first": extents.inner})


@pytest.mark.parametrize("opset", [9, 12, 13, 22])
def test_dropout(sketch: Any, pruning: Any, extents: Any, opset: int) -> None:
    s = sketch(opset)

    def middle(a: str) -> str:
        if opset < 12:
            return str(s.add("Dropout", a, ratio=0.5))
        return str(s.add("Dropout", a, s.constant(0.5), s.constant(False, dtype=np.bool_)))

    model = s.sandwich(extents, middle, kernel=3, pads=[1] * 4)
    pruning.check(model, widths={"first": extents.inner})


def test_cast(sketch: Any, pruning: Any, extents: Any) -> None:
    s = sketch()

    def middle(a: str) -> str:
        a = s.add("Cast", s.add("Div", a, s.constant(4.0)), to=TensorProto.INT32)
        return str(s.add("Cast", a, to=TensorProto.FLOAT))

    pruning.check(
        s.sandwich(extents, middle, kernel=3, pads=[1] * 4), widths={"first": extents.inner}
    )


@pytest.mark.parametrize("operator", ["And", "Or", "Xor", "Equal", "Less", "Mod"])
def test_logic(sketch: Any, pruning: Any, extents: Any, operator: str) -> None:
    s, c = sketch(), extents.inner

    def middle(a: str) -> str:
        if operator in {"Equal", "Less"}:
            b = s.add(operator, a, s.whole([c, 1, 1]))
        elif operator == "Mod":
            b = s.add("Mod", a, s.constant(3.0), fmod=1)
        else:
            b = s.add("Greater", a, s.constant(0.0))
            b = s.add(operator, b, s.whole([c, 1, 1], low=0, high=1, dtype=np.bool_))
        return str(s.add("Cast", b, to=TensorProto.FLOAT))

    pruning.check(s.sandwich(extents, middle), widths={"first": c})
