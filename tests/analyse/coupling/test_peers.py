"""The constructs on which an ONNX pruner was tested: it failed on many, silently; here none may.

Every construct is pruned exactly, or declined with a reason, both with and without the simplifier
in front, because exporters and simplifiers share initializers, and leave aliases and stale shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

TOLERANCE = 2.0**-17
"""Averages, sigmoids and folded factors are rounded; far below 64 roundings of 2**-24."""

pytestmark = pytest.mark.parametrize("slim", [False, True], ids=["as it is", "simplified"])


def _start(s: Any, extents: Any) -> str:
    return str(s.conv(s.input(extents.image), extents.source, extents.inner, name="first"))


def _batch_norm(s: Any, a: str, c: int) -> str:
    zero, variance = np.zeros(c), np.full(c, 0.75)
    constants = [s.whole([c], low=1, high=2), *map(s.constant, (zero, zero, variance))]
    a = s.add("BatchNormalization", s.add("Relu", a), *constants, epsilon=0.25)
    return str(s.add("Relu", a))


def _framed(s: Any, a: str) -> str:
    amounts = s.constant([0, 0, 1, 1, 0, 0, 1, 1], dtype=np.int64)
    return str(s.add("Pad", a, amounts, mode="reflect"))


MIDDLES = {
    "relu": lambda s, a, _: s.add("Relu", a),
    "instance norm": lambda s, a, e: s.add(
        "InstanceNormalization", a, s.whole([e.inner]), s.constant(np.zeros(e.inner))
    ),
    "prelu": lambda s, a, e: s.add("PRelu", a, s.whole([e.inner, 1, 1])),
    "conv transpose": lambda s, a, e: s.add(
        "ConvTranspose", a, s.whole([e.inner, e.inner, 2, 2]), name="up", strides=[2, 2]
    ),
    "depthwise": lambda s, a, e: s.conv(
        a, e.inner, e.inner, 3, name="deep", group=e.inner, pads=[1] * 4
    ),
    "reflected pad and resize": lambda s, a, _: s.add(
        "Resize", _framed(s, a), "", s.constant([1.0, 1.0, 2.0, 2.0]), mode="nearest"
    ),
    "batch norm": lambda s, a, e: _batch_norm(s, a, e.inner),
    "bias as an add": lambda s, a, e: s.add(
        "Relu", s.add("Add", a, s.constant(-np.ones([e.inner, 1, 1])))
    ),
    "factor per channel": lambda s, a, e: s.add("Mul", a, s.whole([1, e.inner, 1, 1])),
    "resize to sizes": lambda s, a, e: s.add(
        "Resize",
        a,
        "",
        "",
        s.constant([e.batch, e.inner, 2 * e.height, 2 * e.width], dtype=np.int64),
        mode="nearest",
    ),
}


@pytest.mark.parametrize("middle", MIDDLES)
def test_between_two_convs(
    sketch: Any, pruning: Any, extents: Any, middle: str, *, slim: bool
) -> None:
    s = sketch()
    model = s.sandwich(extents, lambda a: MIDDLES[middle](s, a, extents), kernel=3, pads=[1] * 4)
    case = pruning.check(model, tolerance=TOLERANCE, fold_constants=slim)
    assert case.widths["first"] == extents.inner


def test_dynamic_sizes(sketch: Any, pruning: Any, *, slim: bool) -> None:
    s = sketch()
    a = s.conv(s.input(["n", 3, "h", "w"]), 3, 6, 3, name="first", pads=[1] * 4)
    y = s.conv(s.add("Relu", a), 6, 4, 3, name="second", pads=[1] * 4)
    pruning.check(
        s.model(y),
        widths={"first": 6},
        sizes={"x": (1, 3, 6, 6)},
        also=[{"x": (5, 3, 4, 9)}],
        fold_constants=slim,
    )


def test_residual_add_of_three_convs(
    sketch: Any, pruning: Any, extents: Any, *, slim: bool
) -> None:
    s, c = sketch(), extents.inner
    x = s.input(extents.image)
    a = s.conv(x, extents.source, c, name="first")
    b = s.conv(s.add("Relu", a), c, c, 3, name="second", pads=[1] * 4)
    d = s.add("Add", s.add("Add", a, b), s.conv(x, extents.source, c, name="third"))
    y = s.conv(s.add("Relu", d), c, extents.outer, name="head")
    case = pruning.check(s.model(y), widths={"first": c}, fold_constants=slim)
    assert set(case.coupling.groups[0].producers) == {"first", "second", "third"}


@pytest.mark.parametrize("same", [False, True])
def test_concat(sketch: Any, pruning: Any, extents: Any, *, same: bool, slim: bool) -> None:
    s, c = sketch(), extents.inner
    a = _start(s, extents)
    b = a if same else s.conv("x", extents.source, 5, name="other")
    width = 2 * c if same else c + 5
    y = s.conv(s.add("Concat", a, b, axis=1), width, extents.outer, name="second")
    widths = {"first": c} if same else {"first": c, "other": 5}
    pruning.check(s.model(y), widths=widths, fold_constants=slim)


def test_squeeze_and_excitation(sketch: Any, pruning: Any, extents: Any, *, slim: bool) -> None:
    s, c = sketch(), extents.inner
    a = s.add("Relu", _start(s, extents))
    b = s.conv(s.add("GlobalAveragePool", a), c, 3, name="squeeze")
    b = s.add("Sigmoid", s.conv(s.add("Relu", b), 3, c, name="excite"))
    y = s.conv(s.add("Mul", a, b), c, extents.outer, 3, name="second", pads=[1] * 4)
    pruning.check(
        s.model(y), widths={"first": c, "squeeze": 3}, tolerance=TOLERANCE, fold_constants=slim
    )


def test_weight_shared_by_two_levels(
    sketch: Any, pruning: Any, extents: Any, *, slim: bool
) -> None:
    s, c = sketch(), extents.inner
    a = s.add("Relu", _start(s, extents))
    weight, bias = s.whole([c, c, 3, 3], "weight"), s.whole([c], "bias")
    ends = []
    for n, level in enumerate((a, s.add("MaxPool", a, kernel_shape=[2, 2]))):
        b = s.add("Conv", level, weight, bias, name=f"shared{n}", pads=[1] * 4)
        ends.append(s.conv(s.add("Relu", b), c, extents.outer, name=f"head{n}"))
    pruning.check(
        s.model(*ends), widths={"first": c, "shared0": c, "shared1": c}, fold_constants=slim
    )


@pytest.mark.parametrize("how", ["one initializer", "identical bits"])
def test_zero_biases_that_are_shared(
    sketch: Any, pruning: Any, extents: Any, how: str, *, slim: bool
) -> None:
    # The simplifier makes one initializer of equal ones: the state in which it broke.
    s, c = sketch(), extents.inner
    zero = [s.constant(np.zeros(c)) for _ in range(3)]
    zero = zero[:1] * 3 if how == "one initializer" else zero
    a, inputs = s.input(extents.image), extents.source
    for n in range(3):
        a = s.add("Conv", a, s.whole([c, inputs, 1, 1], low=-1, high=1), zero[n], name=f"conv{n}")
        a, inputs = s.add("Relu", a), c
    y = s.conv(a, c, extents.outer, name="head")
    pruning.check(s.model(y), widths={"conv0": c, "conv1": c, "conv2": c}, fold_constants=slim)


def test_weights_as_constant_nodes(sketch: Any, pruning: Any, extents: Any, *, slim: bool) -> None:
    s, c = sketch(), extents.inner
    shapes = [(c, extents.source, 1, 1), (extents.outer, c, 1, 1)]
    a = s.input(extents.image)
    for n, shape in enumerate(shapes):
        values = np.arange(np.prod(shape)) % 5 - 2.0
        value = helper.make_tensor(f"value{n}", TensorProto.FLOAT, shape, values)
        weight = s.add("Constant", name=f"weight{n}", value=value)
        a = s.add("Relu", s.add("Conv", a, weight, name=f"conv{n}"))
    pruning.check(s.model(a), widths={"conv0": c}, fold_constants=slim)


@pytest.mark.parametrize("kernel", [1, 3])
def test_sigmoid(sketch: Any, pruning: Any, extents: Any, kernel: int, *, slim: bool) -> None:
    s, c = sketch(), extents.inner
    model = s.sandwich(
        extents, lambda a: s.add("Sigmoid", a), kernel=kernel, pads=[kernel // 2] * 4
    )
    if kernel == 1:
        pruning.check(model, widths={"first": c}, tolerance=TOLERANCE, fold_constants=slim)
    else:
        reasons = ["Conv 'second'", "border"]
        pruning.check(model, widths={}, refused={"first": reasons}, fold_constants=slim)


@pytest.mark.parametrize("how", ["flatten", "average and reshape", "mean and matmul"])
def test_into_a_dense_layer(
    sketch: Any, pruning: Any, extents: Any, how: str, *, slim: bool
) -> None:
    s, c = sketch(), extents.inner
    a = s.add("Relu", _start(s, extents))
    if how == "flatten":
        count = c * extents.height * extents.width
        weight, bias = s.whole([extents.outer, count]), s.whole([extents.outer])
        y = s.add("Gemm", s.add("Flatten", a), weight, bias, name="second", transB=1)
    elif how == "average and reshape":
        a = s.add("GlobalAveragePool", a)
        a = s.add("Reshape", a, s.constant([extents.batch, c], dtype=np.int64))
        y = s.add("Gemm", a, s.whole([c, extents.outer]), s.whole([extents.outer]), name="second")
    else:
        a = s.add("ReduceMean", a, axes=[2, 3], keepdims=0)
        y = s.add("MatMul", a, s.whole([c, extents.outer]), name="second")
    pruning.check(s.model(y), widths={"first": c}, tolerance=TOLERANCE, fold_constants=slim)


@pytest.mark.parametrize(
    ("how", "width"), [("split", 6), ("slice", 6), ("gather", 6), ("shuffle", 6), ("depth", 2)]
)
def test_channels_that_move(sketch: Any, pruning: Any, how: str, width: int, *, slim: bool) -> None:
    s = sketch()
    numbers = {"dtype": np.int64}
    a = s.add("Relu", s.conv(s.input([2, 3, 4, 4]), 3, 6 if width == 6 else 8, name="first"))
    if how == "split":
        parts = s.add("Split", a, s.constant([2, 4], **numbers), outputs=2, axis=1)
        y = s.add("Add", s.conv(parts[0], 2, 5, name="left"), s.conv(parts[1], 4, 5, name="right"))
    elif how == "slice":
        bounds = [s.constant([n], **numbers) for n in (1, 5, 1)]
        y = s.conv(s.add("Slice", a, *bounds), 4, 5, name="second")
        y = s.add("Add", y, s.conv(a, 6, 5, name="whole"))
    elif how == "gather":
        order = s.constant([5, 0, 3, 1, 2, 4], **numbers)
        y = s.conv(s.add("Gather", a, order, axis=1), 6, 5, name="second")
    elif how == "shuffle":
        b = s.add("Reshape", a, s.constant([2, 2, 3, 4, 4], **numbers))
        b = s.add("Transpose", b, perm=[0, 2, 1, 3, 4])
        b = s.add("Reshape", b, s.constant([2, 6, 4, 4], **numbers))
        y = s.conv(b, 6, 5, name="second")
    else:
        y = s.conv(s.add("DepthToSpace", a, blocksize=2), 2, 5, name="second")
    case = pruning.check(s.model(y), fold_constants=slim)
    assert case.widths["first"] == width


def test_weight_behind_an_identity(sketch: Any, pruning: Any, extents: Any, *, slim: bool) -> None:
    s, c = sketch(), extents.inner
    weight = s.add("Identity", s.whole([extents.outer, c, 1, 1]))
    y = s.add("Conv", s.add("Relu", _start(s, extents)), weight, name="second")
    pruning.check(s.model(y), widths={"first": c}, fold_constants=slim)


def test_intermediate_output(sketch: Any, pruning: Any, extents: Any, *, slim: bool) -> None:
    s, c = sketch(), extents.inner
    a = _start(s, extents)
    y = s.conv(s.add("Relu", a), c, extents.outer, name="second")
    pruning.check(
        s.model(y, a), widths={}, refused={"first": "graph's output"}, fold_constants=slim
    )


def test_tensor_that_an_if_reads(sketch: Any, pruning: Any, extents: Any, *, slim: bool) -> None:
    s, c = sketch(), extents.inner
    a = _start(s, extents)
    flag = s.input([], "flag", TensorProto.BOOL)
    branches = {}
    for key, operator in (("then_branch", "Abs"), ("else_branch", "Neg")):
        value = helper.make_tensor_value_info(key, TensorProto.FLOAT, None)
        inner = helper.make_node(operator, [a], [key], name=f"{key}_node")
        branches[key] = helper.make_graph([inner], key, [], [value])
    seen = s.add("If", flag, name="branch", **branches)
    y = s.conv(s.add("Relu", a), c, extents.outer, name="second")
    end = s.add("ReduceSum", seen, keepdims=0)
    pruning.check(s.model(y, end), widths={}, refused={"first": "subgraph"}, fold_constants=slim)


def test_local_function(sketch: Any, pruning: Any, extents: Any, *, slim: bool) -> None:
    # Inlined by the canonical form: what is inside is pruned like everything else.
    s, c = sketch(17, local=1), extents.inner
    a = _start(s, extents)
    b = s.append(helper.make_node("Twice", [a], ["b"], name="call", domain="local"))
    y = s.conv(b, c, extents.outer, name="second")
    shape = [extents.batch, extents.outer, extents.height, extents.width]
    model = s.model(y, **{y: shape})
    body = [
        helper.make_node("Relu", ["p"], ["q"], name="inside"),
        helper.make_node("Add", ["q", "q"], ["r"], name="double"),
    ]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "Twice", ["p"], ["r"], body, opsets))
    onnx.checker.check_model(model)
    pruning.check(model, widths={"first": c}, fold_constants=slim)
