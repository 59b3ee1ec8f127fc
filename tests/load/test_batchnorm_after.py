"""BatchNormalization folded into the layer before it, compared in ONNX Runtime, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxcompress.load.canonical import canonicalise


@dataclass(frozen=True)
class Layer:
    """A layer by its extents; weight is in ONNX layout."""

    op: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    channels: int
    attributes: dict[str, Any] = field(default_factory=dict)


def _conv(n, c, m, kernel, size, group=1, **attributes):
    return Layer("Conv", (n, c, *size), (m, c // group, *kernel), m, {"group": group, **attributes})


def _transpose(n, c, m, kernel, size, group=1, **attributes):
    return Layer(
        "ConvTranspose", (n, c, *size), (c, m // group, *kernel), m, {"group": group, **attributes}
    )


CONVOLUTIONS = {
    "1d distinct": _conv(2, 3, 5, (4,), (11,), strides=[2], pads=[1, 2]),
    "1d equal": _conv(3, 3, 3, (3,), (3,)),
    "2d distinct": _conv(
        2, 3, 5, (4, 1), (9, 7), strides=[1, 2], pads=[0, 1, 2, 3], dilations=[2, 1]
    ),
    "2d equal": _conv(4, 4, 4, (4, 4), (4, 4), pads=[4, 4, 4, 4]),
    "2d grouped distinct": _conv(3, 6, 4, (5, 1), (8, 7), group=2),
    "2d grouped equal": _conv(4, 4, 4, (4, 4), (4, 4), group=2, pads=[1, 1, 1, 1]),
    "2d depthwise": _conv(2, 3, 6, (4, 1), (7, 5), group=3),
    "3d distinct": _conv(1, 2, 6, (2, 3, 1), (3, 5, 4), strides=[1, 2, 1]),
    "3d equal": _conv(2, 2, 2, (2, 2, 2), (2, 2, 2), pads=[1] * 6),
    "3d grouped": _conv(1, 4, 6, (2, 1, 3), (5, 2, 3), group=2),
    "pointwise": _conv(2, 3, 5, (1, 1), (4, 7)),
    "over 1024 weights": _conv(1, 12, 16, (3, 3), (5, 6), pads=[1, 1, 1, 1]),
    "transposed 1d": _transpose(2, 3, 5, (4,), (6,), strides=[2], pads=[1, 0]),
    "transposed distinct": _transpose(
        2, 3, 5, (4, 1), (6, 7), strides=[2, 3], output_padding=[1, 2], pads=[1, 0, 0, 0]
    ),
    "transposed equal": _transpose(4, 4, 4, (4, 4), (4, 4)),
    "transposed grouped distinct": _transpose(1, 4, 6, (5, 2), (3, 7), group=2, strides=[1, 2]),
    "transposed grouped equal": _transpose(4, 4, 4, (4, 4), (4, 4), group=2),
    "transposed 3d": _transpose(1, 2, 3, (2, 1, 3), (4, 5, 2)),
}


def _model(kit, layer, *, bias, dtype=np.float32):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants = {"w": kit.whole(layer.weight, seed=1, dtype=dtype)}
    if bias:
        constants["b"] = np.arange(1, layer.channels + 1, dtype=dtype)
    constants |= kit.norm_constants("norm", layer.channels, seed=2, dtype=dtype)
    inputs = ["x", "w", "b"] if bias else ["x", "w"]
    nodes = [
        helper.make_node(layer.op, inputs, ["a"], name="layer", **layer.attributes),
        kit.norm("norm", "a", "y"),
    ]
    free = [None] * len(layer.x)
    return kit.model(
        nodes, [kit.value("x", layer.x, kind)], [kit.value("y", free, kind)], constants
    )


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("layer", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_folded_into_convolution(kit, layer, bias):
    model = _model(kit, layer, bias=bias)
    before = model.SerializeToString()
    canonical = canonicalise(model)
    assert kit.operators(canonical.model) == [layer.op]
    assert "1 BatchNormalization nodes folded" in canonical.notes
    kit.assert_same(model, canonical.model, {"x": kit.whole(layer.x, seed=3)})
    assert model.SerializeToString() == before


GEMMS = {
    "plain": ((2, 3), 5, {}, None),
    "equal": ((3, 3), 3, {}, (3,)),
    "transposed weight": ((2, 3), 5, {"transB": 1}, (5,)),
    "transposed weight equal": ((4, 4), 4, {"transB": 1}, None),
    "transposed input": ((2, 3), 5, {"transA": 1}, (5,)),
    "alpha, beta": ((2, 3), 5, {"alpha": 0.5, "beta": 2.0}, (5,)),
    "alpha, beta, transposed": ((3, 3), 3, {"alpha": 2.0, "beta": -0.5, "transB": 1}, (3,)),
    "alpha, no C": ((2, 3), 5, {"alpha": 0.5, "beta": 2.0}, None),
    "C row": ((2, 3), 5, {"beta": 2.0}, (1, 5)),
    "C scalar": ((2, 3), 5, {"beta": 2.0}, ()),
    "C one": ((2, 3), 5, {"beta": 3.0}, (1,)),
    "C one by one": ((2, 3), 5, {}, (1, 1)),
    "C equal row": ((3, 3), 3, {}, (1, 3)),
    "C of one sample": ((1, 3), 5, {"beta": 2.0}, (1, 5)),
}


def _gemm(kit, x, channels, attributes, c):
    inner = x[1]
    shape = (channels, inner) if attributes.get("transB") else (inner, channels)
    constants = {"w": kit.whole(shape, seed=1)}
    if c is not None:
        constants["c"] = kit.whole(c, seed=4) + 4
    constants |= kit.norm_constants("norm", channels, seed=2)
    nodes = [
        helper.make_node(
            "Gemm", ["x", "w", *(["c"] if c is not None else [])], ["a"], name="layer", **attributes
        ),
        kit.norm("norm", "a", "y"),
    ]
    fed = x[::-1] if attributes.get("transA") else x
    outputs = [kit.value("y", (x[0], channels))]
    return kit.model(nodes, [kit.value("x", fed)], outputs, constants), kit.whole(fed, seed=3)


@pytest.mark.parametrize(("x", "channels", "attributes", "c"), GEMMS.values(), ids=GEMMS)
def test_folded_into_gemm(kit, x, channels, attributes, c):
    model, feed = _gemm(kit, x, channels, attributes, c)
    canonical = canonicalise(model)
    assert kit.operators(canonical.model) == ["Gemm"]
    kit.assert_same(model, canonical.model, {"x": feed})


@pytest.mark.parametrize(
    ("x", "channels", "c"),
    [
        ((2, 3), 5, (2, 5)),
        ((2, 3), 5, (2, 1)),
        ((3, 3), 3, (3, 3)),
        # As many rows as channels: a column that must not be taken for a bias per channel.
        ((3, 3), 3, (3, 1)),
        ((5, 3), 5, (5, 1)),
    ],
)
def test_gemm_with_one_c_per_row_is_left_alone(kit, x, channels, c):
    model, feed = _gemm(kit, x, channels, {}, c)
    canonical = canonicalise(model)
    kit.assert_same(model, canonical.model, {"x": feed})
    assert kit.operators(canonical.model) == ["Gemm", "BatchNormalization"]


def test_gemm_with_computed_c_is_left_alone(kit):
    nodes = [
        helper.make_node("Gemm", ["x", "w", "c"], ["a"], name="layer"),
        kit.norm("norm", "a", "y"),
    ]
    constants = {"w": kit.whole((3, 5), seed=1), **kit.norm_constants("norm", 5, seed=2)}
    inputs = [kit.value("x", (2, 3)), kit.value("c", (5,))]
    model = kit.model(nodes, inputs, [kit.value("y", (2, 5))], constants)
    canonical = canonicalise(model)
    assert kit.operators(canonical.model) == ["Gemm", "BatchNormalization"]
    feeds = {"x": kit.whole((2, 3), seed=3), "c": kit.whole((5,), seed=4)}
    kit.assert_same(model, canonical.model, feeds)


def test_float16_stays_float16(kit):
    # Whole numbers below 2048 are exact in float16.
    layer = _conv(1, 2, 5, (2, 1), (4, 3))
    model = _model(kit, layer, bias=True, dtype=np.float16)
    result = canonicalise(model).model
    assert kit.operators(result) == ["Conv"]
    assert {t.data_type for t in result.graph.initializer} == {TensorProto.FLOAT16}
    kit.assert_same(model, result, {"x": kit.whole(layer.x, seed=3, dtype=np.float16)})


def test_float16_that_would_overflow_is_left_alone(kit):
    # 1000 * 128 is beyond float16's 65504, although 0.01 * 1000 * 128 is not.
    halves = {
        "w": np.full((2, 1, 1, 1), 1000, np.float16),
        "norm_scale": np.full(2, 128, np.float16),
        "norm_bias": np.zeros(2, np.float16),
        "norm_mean": np.zeros(2, np.float16),
        "norm_var": np.full(2, 0.75, np.float16),
    }
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], name="layer"), kit.norm("norm", "a", "y")]
    half = TensorProto.FLOAT16
    model = kit.model(
        nodes, [kit.value("x", (1, 1, 2, 3), half)], [kit.value("y", [None] * 4, half)], halves
    )
    result = canonicalise(model).model
    assert kit.operators(result) == ["Conv", "BatchNormalization"]
    kit.assert_same(model, result, {"x": np.full((1, 1, 2, 3), 0.015625, np.float16)})


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_float64_stays_float64(kit, op):
    if op == "Conv":
        layer = _conv(2, 3, 5, (2, 1), (4, 7))
        model, x = _model(kit, layer, bias=True, dtype=np.float64), layer.x
    else:
        x = (2, 3)
        layer = Layer("Gemm", x, (3, 5), 5)
        model = _model(kit, layer, bias=True, dtype=np.float64)
    result = canonicalise(model).model
    assert kit.operators(result) == [op]
    assert {t.data_type for t in result.graph.initializer} == {TensorProto.DOUBLE}
    # ONNX Runtime has no Conv in float64 on the CPU: the standard's own evaluator stands in.
    feeds = {"x": kit.whole(x, seed=3, dtype=np.float64)}
    expected = ReferenceEvaluator(model).run(None, feeds)[0]
    found = ReferenceEvaluator(result).run(None, feeds)[0]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)


def test_folded_values_are_rounded_once(kit):
    """Weights on no grid: w f and f b + s in float64, rounded to float32 once, to the last bit."""
    generator = np.random.default_rng(7)
    weight = generator.standard_normal((5, 3, 2, 4)).astype(np.float32)
    scale, beta, mean = generator.standard_normal((3, 5)).astype(np.float32)
    variance = generator.uniform(0.1, 2, 5).astype(np.float32)
    bias = generator.standard_normal(5).astype(np.float32)
    constants = {
        "w": weight,
        "b": bias,
        "norm_scale": scale,
        "norm_bias": beta,
        "norm_mean": mean,
        "norm_var": variance,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="layer"),
        kit.norm("norm", "a", "y", epsilon=1e-3),
    ]
    model = kit.model(
        nodes, [kit.value("x", (1, 3, 6, 7))], [kit.value("y", [None] * 4)], constants
    )
    result = canonicalise(model).model
    folded = [numpy_helper.to_array(t) for t in result.graph.initializer]
    epsilon = float(np.float32(1e-3))
    factor = scale.astype(float) / np.sqrt(variance.astype(float) + epsilon)
    expected_weight = (weight * factor[:, None, None, None]).astype(np.float32)
    expected_bias = (factor * bias + beta - mean * factor).astype(np.float32)
    # Another order of operations in float64 moves a value by 2^-53 of it, which changes what it
    # rounds to in float32 about once in 2^28 times: these seeds give no such case.
    np.testing.assert_array_equal(folded[0], expected_weight)
    np.testing.assert_array_equal(folded[1], expected_bias)
    assert folded[1].dtype == np.float32
