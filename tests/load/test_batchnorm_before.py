"""BatchNormalization folded into the layer after it where that is exact, and only there."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxcompress.load.canonical import canonicalise


def _before(kit, op, x, weight, *, bias, shift, **attributes):
    """x -> BatchNormalization -> layer; without `shift` the normalisation is a pure scale."""
    norm = kit.norm_constants("norm", x[1], seed=2)
    if not shift:
        norm["norm_bias"][:] = 0
        norm["norm_mean"][:] = 0
    constants = {"w": kit.whole(weight, seed=1), **norm}
    names = ["n", "w"]
    if bias:
        channels = {
            "Conv": weight[0],
            "ConvTranspose": weight[1] * attributes.get("group", 1),
            "Gemm": weight[0] if attributes.get("transB") else weight[-1],
        }[op]
        constants["b"] = np.arange(1, channels + 1, dtype=np.float32)
        names.append("b")
    nodes = [
        kit.norm("norm", "x", "n"),
        helper.make_node(op, names, ["y"], name="layer", **attributes),
    ]
    outputs = [kit.value("y", [None] * len(x))]
    return kit.model(nodes, [kit.value("x", x)], outputs, constants)


EXACT = {
    "conv distinct": ("Conv", (2, 3, 9, 7), (5, 3, 4, 1), {"strides": [2, 1]}),
    "conv equal": ("Conv", (3, 3, 3, 3), (3, 3, 3, 3), {}),
    "conv grouped distinct": ("Conv", (1, 6, 5, 7), (4, 3, 2, 3), {"group": 2}),
    "conv grouped equal": ("Conv", (4, 4, 4, 4), (4, 2, 4, 4), {"group": 2}),
    "depthwise": ("Conv", (2, 3, 5, 7), (6, 1, 2, 4), {"group": 3}),
    "conv 1d": ("Conv", (2, 3, 11), (5, 3, 4), {"dilations": [2]}),
    "conv 3d": ("Conv", (1, 2, 3, 4, 5), (6, 2, 2, 1, 3), {}),
    "conv valid": ("Conv", (2, 3, 9, 7), (5, 3, 4, 1), {"auto_pad": "VALID"}),
    "conv zero pads": ("Conv", (2, 3, 9, 7), (5, 3, 4, 1), {"pads": [0, 0, 0, 0]}),
    "gemm distinct": ("Gemm", (2, 3), (3, 5), {}),
    "gemm equal": ("Gemm", (3, 3), (3, 3), {}),
    "gemm transposed": ("Gemm", (2, 3), (5, 3), {"transB": 1}),
    "gemm transposed equal": ("Gemm", (4, 4), (4, 4), {"transB": 1}),
    "gemm alpha, beta": ("Gemm", (2, 3), (3, 5), {"alpha": 0.5, "beta": 2.0}),
    "gemm all at once": ("Gemm", (3, 3), (3, 3), {"alpha": -2.0, "beta": 0.5, "transB": 1}),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("op", "x", "weight", "attributes"), EXACT.values(), ids=EXACT)
def test_folded_into_the_layer_after_it(kit, op, x, weight, attributes, bias):
    model = _before(kit, op, x, weight, bias=bias, shift=True, **attributes)
    canonical = canonicalise(model)
    assert kit.operators(canonical.model) == [op]
    assert "1 BatchNormalization nodes folded" in canonical.notes
    kit.assert_same(model, canonical.model, {"x": kit.whole(x, seed=3)})


PADDED = {
    "pads": {"pads": [0, 1, 0, 0]},
    "same upper": {"auto_pad": "SAME_UPPER"},
    "same lower": {"auto_pad": "SAME_LOWER"},
}


@pytest.mark.parametrize("attributes", PADDED.values(), ids=PADDED)
@pytest.mark.parametrize(
    ("x", "weight"), [((2, 3, 9, 7), (5, 3, 4, 2)), ((3, 3, 3, 3), (3, 3, 3, 3))]
)
def test_shift_before_a_padded_convolution_is_left_alone(kit, x, weight, attributes):
    """At the border the padding is zero, not the shift: folding would be wrong there."""
    model = _before(kit, "Conv", x, weight, bias=True, shift=True, **attributes)
    result = canonicalise(model).model
    assert kit.operators(result) == ["BatchNormalization", "Conv"]
    kit.assert_same(model, result, {"x": kit.whole(x, seed=3)})


@pytest.mark.parametrize("attributes", PADDED.values(), ids=PADDED)
def test_pure_scale_before_a_padded_convolution_is_folded(kit, attributes):
    x = (2, 3, 9, 7)
    model = _before(kit, "Conv", x, (5, 3, 4, 2), bias=True, shift=False, **attributes)
    result = canonicalise(model).model
    assert kit.operators(result) == ["Conv"]
    kit.assert_same(model, result, {"x": kit.whole(x, seed=3)})


TRANSPOSED = {
    "distinct": ((2, 3, 6, 5), (3, 4, 2, 1), {}),
    "equal": ((3, 3, 3, 3), (3, 3, 3, 3), {}),
    "grouped distinct": ((1, 4, 3, 5), (4, 3, 2, 1), {"group": 2}),
    "grouped equal": ((4, 4, 4, 4), (4, 2, 4, 4), {"group": 2}),
}


@pytest.mark.parametrize("shift", [True, False], ids=["shift", "pure scale"])
@pytest.mark.parametrize(("x", "weight", "attributes"), TRANSPOSED.values(), ids=TRANSPOSED)
def test_before_a_transposed_convolution_only_a_pure_scale_is_folded(
    kit, x, weight, attributes, shift
):
    model = _before(kit, "ConvTranspose", x, weight, bias=True, shift=shift, **attributes)
    result = canonicalise(model).model
    left = ["BatchNormalization"] if shift else []
    assert kit.operators(result) == [*left, "ConvTranspose"]
    kit.assert_same(model, result, {"x": kit.whole(x, seed=3)})


@pytest.mark.parametrize("size", [(3, 2), (3, 3)])
def test_before_a_gemm_that_transposes_its_input_is_left_alone(kit, size):
    model = _before(kit, "Gemm", size, (size[0], 5), bias=True, shift=True, transA=1)
    result = canonicalise(model).model
    assert kit.operators(result) == ["BatchNormalization", "Gemm"]
    kit.assert_same(model, result, {"x": kit.whole(size, seed=3)})


@pytest.mark.parametrize(
    ("x", "widths"), [((2, 3, 6, 7), (5, 4)), ((3, 3, 3, 3), (3, 3))], ids=["distinct", "equal"]
)
def test_chain_of_normalisations_around_two_convolutions(kit, x, widths):
    first, second = widths
    constants = {
        "w1": kit.whole((first, x[1], 2, 1), seed=1),
        "w2": kit.whole((second, first, 1, 2), seed=2),
        "b2": np.arange(1, second + 1, dtype=np.float32),
        **kit.norm_constants("n0", x[1], seed=3),
        **kit.norm_constants("n1", first, seed=4),
        **kit.norm_constants("n2", second, seed=5),
        **kit.norm_constants("n3", second, seed=6),
    }
    nodes = [
        kit.norm("n0", "x", "t0"),
        helper.make_node("Conv", ["t0", "w1"], ["t1"], name="c1"),
        kit.norm("n1", "t1", "t2"),
        helper.make_node("Conv", ["t2", "w2", "b2"], ["t3"], name="c2"),
        kit.norm("n2", "t3", "t4"),
        kit.norm("n3", "t4", "y"),
    ]
    model = kit.model(nodes, [kit.value("x", x)], [kit.value("y", [None] * 4)], constants)
    canonical = canonicalise(model)
    assert kit.operators(canonical.model) == ["Conv", "Conv"]
    assert "4 BatchNormalization nodes folded" in canonical.notes
    kit.assert_same(model, canonical.model, {"x": kit.whole(x, seed=7)})


def test_two_normalisations_before_a_convolution_are_both_folded(kit):
    constants = {
        "w": kit.whole((5, 3, 2, 4), seed=1),
        **kit.norm_constants("n0", 3, seed=3),
        **kit.norm_constants("n1", 3, seed=4),
    }
    nodes = [
        kit.norm("n0", "x", "t0"),
        kit.norm("n1", "t0", "t1"),
        helper.make_node("Conv", ["t1", "w"], ["y"], name="c"),
    ]
    x = (2, 3, 6, 7)
    model = kit.model(nodes, [kit.value("x", x)], [kit.value("y", [None] * 4)], constants)
    result = canonicalise(model).model
    kit.assert_same(model, result, {"x": kit.whole(x, seed=7)})
    assert kit.operators(result) == ["Conv"]
