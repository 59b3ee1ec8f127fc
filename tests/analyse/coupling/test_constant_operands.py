"""Element-wise operators with a constant: it is cut along, where it has channels at all."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

OPSETS = [9, 23]
SHAPES = {
    "scalar": "",
    "one": "1",
    "channels": "c11",
    "channels with batch": "1c11",
    "width": "w",
    "image": "hw",
    "channels and height": "ch1",
    "channels and image": "chw",
    "all": "nchw",
    "ones": "1111",
}


def _removable(at_zero: np.ndarray) -> int:
    """How many channels of [N, C, H, W] hold one finite number each."""
    lines = np.moveaxis(at_zero, 1, 0).reshape(at_zero.shape[1], -1)
    return int((np.isfinite(lines).all(axis=1) & (lines == lines[:, :1]).all(axis=1)).sum())


@pytest.mark.parametrize("letters", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(
    ("extents", "last"),
    [("distinct", True), ("distinct", False), ("equal", True)],
    indirect=["extents"],
)
@pytest.mark.parametrize(
    ("operator", "numpy_operator", "low", "high"),
    [
        ("Add", np.add, -2, 2),
        ("Sub", np.subtract, -2, 2),
        ("Mul", np.multiply, -2, 2),
        ("Div", np.divide, 1, 2),
        ("Pow", np.power, 1, 2),
        ("Max", np.maximum, -2, 2),
        ("Min", np.minimum, -2, 2),
    ],
)
def test_constant_operand(
    sketch: Any,
    pruning: Any,
    extents: Any,
    operator: str,
    numpy_operator: Any,
    low: int,
    high: int,
    letters: str,
    *,
    last: bool,
) -> None:
    """A channel may go if what it leaves when it is zero is one number, and finite."""
    s = sketch()
    shape = extents.shape(letters)
    values = np.random.default_rng(3).integers(low, high + 1, shape).astype(np.float32)
    values = np.where(np.arange(values.size).reshape(shape) % 2, values, high).astype(np.float32)

    def middle(a: str) -> str:
        # From 0 to 3, which keeps powers small; what is zero stays zero.
        a = s.add("Clip", a, s.constant(0.0), s.constant(3.0))
        pair = [a, s.constant(values)]
        return str(s.add(operator, *(pair if last else pair[::-1]), name="under_test"))

    model = s.sandwich(extents, middle)
    zero = np.zeros([extents.batch, extents.inner, extents.height, extents.width], np.float32)
    with np.errstate(all="ignore"):
        left = numpy_operator(zero, values) if last else numpy_operator(values, zero)
    count = _removable(np.broadcast_to(left, zero.shape))
    case = pruning.check(model, widths={"first": count} if count else {})
    if not count:
        reason = case.coupling.refusals["first"]
        named = f"{operator} 'under_test'" if operator == "Div" else "Conv 'second'"
        assert named in reason, reason


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("operator", ["Add", "Max"])
def test_constant_operand_in_every_opset(
    sketch: Any, pruning: Any, extents: Any, operator: str, opset: int, *, last: bool
) -> None:
    s = sketch(opset)

    def middle(a: str) -> str:
        pair = [a, s.whole([extents.inner, 1, 1])]
        return str(s.add(operator, *(pair if last else pair[::-1])))

    pruning.check(s.sandwich(extents, middle), widths={"first": extents.inner})


@pytest.mark.parametrize(
    ("letters", "along_channels"),
    [("", False), ("1", False), ("c11", True), ("1c11", True), ("w", False), ("1hw", False)],
)
@pytest.mark.parametrize("opset", [9, 16])
def test_prelu(
    sketch: Any, pruning: Any, extents: Any, letters: str, opset: int, *, along_channels: bool
) -> None:
    s = sketch(opset)
    slope = s.whole(extents.shape(letters), "slope")
    model = s.sandwich(
        extents, lambda a: s.add("PRelu", a, slope, name="slopes"), kernel=3, pads=[1] * 4
    )
    case = pruning.check(model, widths={"first": extents.inner})
    result = pruning.remove(case, {"first": [0]})
    used = next(node for node in result.graph.node if node.name == "slopes").input[1]
    dims = next(list(t.dims) for t in result.graph.initializer if t.name == used)
    whole = extents.shape(letters)
    expected = [d - 1 if c == "c" else d for d, c in zip(whole, letters, strict=True)]
    assert dims == (expected if along_channels else whole)


def test_prelu_behind_gemm(sketch: Any, pruning: Any) -> None:
    for source, inner, outer in ((3, 6, 5), (4, 4, 4)):
        s = sketch()
        a = s.add("Gemm", s.input([2, source]), s.whole([source, inner]), name="first")
        a = s.add("PRelu", a, s.whole([inner]))
        y = s.add("Gemm", a, s.whole([inner, outer]), name="second")
        pruning.check(s.model(y), widths={"first": inner})


def test_prelu_with_a_computed_slope(sketch: Any, pruning: Any) -> None:
    s = sketch()
    x = s.input([2, 3, 4, 4])
    a, b = s.conv(x, 3, 4, name="first"), s.conv(x, 3, 4, name="slopes")
    y = s.conv(s.add("PRelu", a, b), 4, 5, name="second")
    pruning.check(s.model(y), widths={"first": 4})


def test_constants_that_meet_in_one_node(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner

    def middle(a: str) -> str:
        return str(s.add("Sum", a, s.whole([c, 1, 1]), s.whole([1, c, 1, 1]), s.constant(2.0)))

    pruning.check(s.sandwich(extents, middle), widths={"first": c})


def test_one_constant_in_two_places(sketch: Any, pruning: Any, extents: Any) -> None:
    # Two streams of equal width share a constant and are cut differently.
    s, c = sketch(), extents.inner
    shared = s.whole([c, 1, 1], "shared")
    x = s.input(extents.image)
    ends = []
    for n in range(2):
        a = s.add("Mul", s.conv(x, extents.source, c, name=f"first{n}"), shared)
        ends.append(s.conv(a, c, extents.outer, name=f"second{n}"))
    pruning.check(s.model(*ends), widths={"first0": c, "first1": c})


@pytest.mark.parametrize(
    ("left", "right"), list(itertools.product(["c11", "1c11"], ["c11", "1hw"]))
)
def test_constants_in_a_row(sketch: Any, pruning: Any, extents: Any, left: str, right: str) -> None:
    s = sketch()

    def middle(a: str) -> str:
        a = s.add("Mul", a, s.whole(extents.shape(left)))
        return str(s.add("Mul", s.whole(extents.shape(right)), a))

    model = s.sandwich(extents, middle, kernel=3, pads=[1] * 4)
    pruning.check(model, widths={"first": extents.inner})
