"""Conv and dense layers as passes see them."""

from __future__ import annotations

import pytest
from onnx import helper

from onnxcompress.errors import ModelError
from onnxcompress.graph.spec import ConvSpec, DenseSpec, conv_spec, dense_spec
from onnxcompress.graph.view import GraphView


def _spec(kit, read, op, weight, *, bias=None, **attributes):
    names = ["x", "w", *(["b"] if bias else [])]
    node = helper.make_node(op, names, ["y"], name="layer", **attributes)
    constants = {"w": kit.whole(weight, seed=1)}
    if bias:
        constants["b"] = kit.whole(bias, seed=2)
    shape = (2, 3, 8, 9)[: len(weight)]
    model = kit.model([node], [kit.value("x", shape)], [kit.value("y", shape)], constants)
    return read(model.graph.node[0], GraphView(model))


def test_defaults_of_conv(kit):
    assert _spec(kit, conv_spec, "Conv", (5, 3, 2, 4)) == ConvSpec(
        node="layer",
        weight="w",
        bias=None,
        out_channels=5,
        in_channels=3,
        kernel=(2, 4),
        strides=(1, 1),
        pads=(0, 0, 0, 0),
        dilations=(1, 1),
        group=1,
        auto_pad="NOTSET",
        input="x",
        output="y",
    )


def test_conv_with_everything(kit):
    spec = _spec(
        kit,
        conv_spec,
        "Conv",
        (6, 2, 3, 1),
        bias=(6,),
        group=3,
        kernel_shape=[3, 1],
        strides=[2, 1],
        pads=[1, 2, 3, 4],
        dilations=[1, 2],
    )
    assert (spec.out_channels, spec.in_channels, spec.group, spec.bias) == (6, 6, 3, "b")
    assert (spec.strides, spec.pads, spec.dilations) == ((2, 1), (1, 2, 3, 4), (1, 2))
    assert (spec.spatial, spec.pointwise, spec.depthwise) == (2, False, False)
    assert spec.geometry() == {"strides": [2, 1], "dilations": [1, 2], "pads": [1, 2, 3, 4]}


def test_auto_pad_takes_the_place_of_pads(kit):
    spec = _spec(kit, conv_spec, "Conv", (5, 3, 2, 4), auto_pad="SAME_LOWER")
    assert spec.pads == (0, 0, 0, 0)
    expected = {"strides": [1, 1], "dilations": [1, 1], "auto_pad": "SAME_LOWER"}
    assert spec.geometry() == expected


@pytest.mark.parametrize(
    ("weight", "group", "pointwise", "depthwise"),
    [
        ((5, 3, 1, 1), 1, True, False),
        ((5, 3, 1), 1, True, False),
        ((3, 1, 2, 2), 3, False, True),
        ((6, 1, 1, 1), 3, True, True),
        ((1, 1, 2, 2), 1, False, False),
        ((4, 2, 1, 2), 2, False, False),
    ],
)
def test_kinds(kit, weight, group, pointwise, depthwise):
    spec = _spec(kit, conv_spec, "Conv", weight, group=group)
    assert (spec.pointwise, spec.depthwise) == (pointwise, depthwise)
    assert spec.spatial == len(weight) - 2


@pytest.mark.parametrize(
    ("weight", "attributes", "naming"),
    [
        ((5, 3, 2, 2), {"group": 2}, "group=2"),
        ((5, 3, 2, 2), {"group": 0}, "group=0"),
        ((5, 3, 2, 2), {"group": -1}, "group=-1"),
        ((5, 3), {}, "does not fit"),
        ((5, 3, 2, 2), {"kernel_shape": [3, 3]}, "contradicts"),
        ((5, 3, 2, 2), {"strides": 2}, "list of integers"),
        ((5, 3, 2, 2), {"group": [1]}, "a number"),
    ],
)
def test_contradictory_conv(kit, weight, attributes, naming):
    with pytest.raises(ModelError, match=naming):
        _spec(kit, conv_spec, "Conv", weight, **attributes)


@pytest.mark.parametrize("read", [conv_spec, dense_spec])
def test_weight_that_is_not_constant(kit, read):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    inputs = [kit.value("x", (2, 3)), kit.value("w", (3, 4))]
    model = kit.model([node], inputs, [kit.value("y", (2, 4))])
    with pytest.raises(ModelError, match="'w' is computed or fed"):
        read(model.graph.node[0], GraphView(model))


def test_matmul(kit):
    assert _spec(kit, dense_spec, "MatMul", (3, 5)) == DenseSpec(
        node="layer",
        op="MatMul",
        weight="w",
        bias=None,
        in_features=3,
        out_features=5,
        transposed=False,
        alpha=1.0,
        beta=1.0,
        input="x",
        output="y",
    )


def test_gemm(kit):
    spec = _spec(kit, dense_spec, "Gemm", (5, 3), bias=(5,), transB=1, alpha=0.5, beta=2.0)
    assert (spec.in_features, spec.out_features, spec.transposed) == (3, 5, True)
    assert (spec.alpha, spec.beta, spec.bias) == (0.5, 2.0, "b")


@pytest.mark.parametrize(
    ("weight", "attributes", "naming"),
    [
        ((2, 3, 5), {}, "not a matrix"),
        ((3,), {}, "not a matrix"),
        ((3, 5), {"transA": 1}, "transA"),
    ],
)
def test_dense_that_cannot_be_described(kit, weight, attributes, naming):
    op = "Gemm" if attributes else "MatMul"
    with pytest.raises(ModelError, match=naming):
        _spec(kit, dense_spec, op, weight, **attributes)
