"""Element-wise operators: tensors that meet go together, constants are cut along, gates spread."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

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


def _shape(letters: str, extents: Any) -> list[int]:
    real = {
        "n": extents.batch,
        "c": extents.inner,
        "h": extents.height,
        "w": extents.width,
        "1": 1,
    }
    return [real[letter] for letter in letters]


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
    shape = _shape(letters, extents)
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
    slope = s.whole(_shape(letters, extents), "slope")
    model = s.sandwich(
        extents, lambda a: s.add("PRelu", a, slope, name="slopes"), kernel=3, pads=[1] * 4
    )
    case = pruning.check(model, widths={"first": extents.inner})
    result = pruning.remove(case, {"first": [0]})
    used = next(node for node in result.graph.node if node.name == "slopes").input[1]
    dims = next(list(t.dims) for t in result.graph.initializer if t.name == used)
    whole = _shape(letters, extents)
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
        parts.insert(1, s.whole(_shape(constant, extents), **values))
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


@pytest.mark.parametrize("opset", [9, 16])
@pytest.mark.parametrize("letters", ["", "1c11", "chw", "nchw"])
def test_where_with_a_constant_condition(
    sketch: Any, pruning: Any, extents: Any, letters: str, opset: int
) -> None:
    s, c = sketch(opset), extents.inner
    x = s.input(extents.image)
    a, b = (s.conv(x, extents.source, c, name=name) for name in ("first", "other"))
    condition = s.whole(_shape(letters, extents), low=0, high=1, dtype=np.bool_)
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


def test_division_by_a_tensor_of_channels(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    x = s.input(extents.image)
    a, b = (s.conv(x, extents.source, c, name=name) for name in ("above", "below"))
    y = s.conv(s.add("Div", a, b, name="ratio"), c, extents.outer, name="second")
    pruning.check(s.model(y), widths={}, refused={"above": "Div 'ratio'", "below": "Div 'ratio'"})


def test_normalisation_by_the_norm_of_all_channels(sketch: Any, pruning: Any, extents: Any) -> None:
    s = sketch()

    def middle(a: str) -> str:
        return str(s.add("Div", a, s.add("ReduceL2", a, name="norm", axes=[1])))

    pruning.check(
        s.sandwich(extents, middle), widths={}, refused={"first": "ReduceL2 'norm' works across"}
    )


def test_hand_written_swish(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    model = s.sandwich(
        extents, lambda a: s.add("Mul", a, s.add("Sigmoid", a)), kernel=3, pads=[1] * 4
    )
    pruning.check(model, widths={"first": c}, tolerance=9 * c * 2.0**-22)


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
        a = s.add("Mul", a, s.whole(_shape(left, extents)))
        return str(s.add("Mul", s.whole(_shape(right, extents)), a))

    model = s.sandwich(extents, middle, kernel=3, pads=[1] * 4)
    pruning.check(model, widths={"first": extents.inner})


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
