"""Counted cost against arithmetic by hand, and against the totals everyone knows for VGG-16."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcompress.errors import ModelError
from onnxcompress.graph.cost import Cost, activation_bytes, model_cost, node_cost, tensor_cost
from onnxcompress.graph.infer import shapes_at
from onnxcompress.graph.view import GraphView


def _cost(kit, op, x, weight, *, bias=None, inputs=(), **attributes):
    """Cost of a one-layer network."""
    node = helper.make_node(op, ["x", "w", *(["b"] if bias else [])], ["y"], name="n", **attributes)
    constants = {"w": np.zeros(weight, np.float32)}
    if bias:
        constants["b"] = np.zeros(bias, np.float32)
    free = kit.value("y", [None] * len(x))
    model = kit.model([node], [kit.value("x", x)], [free], constants)
    cost = model_cost(model, shapes_at(model, {"x": x}))
    shapes = shapes_at(model, {"x": x})
    assert node_cost(model.graph.node[0], shapes, GraphView(model)) == cost
    return cost


LAYERS = {
    # 5 filters of 3*2*4 over (7-2+1) * (9-4+1) positions of 2 images.
    "conv": ("Conv", (2, 3, 7, 9), (5, 3, 2, 4), (5,), {}, 2 * 5 * 6 * 6 * 3 * 2 * 4, 120 + 5),
    # Strides 2, 3: floor(5 / 2) + 1 = 3, floor(5 / 3) + 1 = 2.
    "stride": ("Conv", (2, 3, 7, 9), (5, 3, 2, 4), None, {"strides": [2, 3]}, 2 * 5 * 6 * 24, 120),
    "pads": (
        "Conv",
        (1, 3, 7, 9),
        (5, 3, 2, 4),
        None,
        {"pads": [1, 0, 2, 3]},
        5 * (7 + 3 - 1) * (9 + 3 - 3) * 24,
        120,
    ),
    # Dilation 2 spreads the kernel to 3 by 7.
    "dilation": (
        "Conv",
        (1, 3, 7, 9),
        (5, 3, 2, 4),
        None,
        {"dilations": [2, 2]},
        5 * 5 * 3 * 24,
        120,
    ),
    "groups": ("Conv", (2, 6, 5, 5), (4, 3, 2, 2), None, {"group": 2}, 2 * 4 * 16 * 3 * 4, 48),
    "depthwise": ("Conv", (1, 6, 5, 5), (6, 1, 3, 3), (6,), {"group": 6}, 6 * 9 * 9, 54 + 6),
    "equal": ("Conv", (3, 3, 3, 3), (3, 3, 3, 3), (3,), {}, 3 * 3 * 27, 81 + 3),
    "one dimension": ("Conv", (2, 3, 11), (5, 3, 4), None, {}, 2 * 5 * 8 * 12, 60),
    "three dimensions": (
        "Conv",
        (1, 2, 3, 4, 5),
        (6, 2, 2, 1, 3),
        None,
        {},
        6 * 2 * 4 * 3 * 12,
        72,
    ),
    # Every input value meets every tap of its channel once: 3*4*5 values, 4*2*3 taps each.
    "transposed": ("ConvTranspose", (1, 3, 4, 5), (3, 4, 2, 3), (4,), {}, 60 * 24, 72 + 4),
    "transposed, stride": (
        "ConvTranspose",
        (2, 3, 4, 5),
        (3, 4, 2, 3),
        None,
        {"strides": [2, 3]},
        120 * 24,
        72,
    ),
    "transposed, groups": (
        "ConvTranspose",
        (1, 6, 4, 5),
        (6, 2, 2, 3),
        None,
        {"group": 3},
        120 * 12,
        72,
    ),
    "gemm": ("Gemm", (2, 7), (7, 5), (5,), {}, 2 * 7 * 5, 35 + 5),
    "gemm, transposed weight": ("Gemm", (2, 7), (5, 7), None, {"transB": 1}, 2 * 7 * 5, 35),
    "gemm, transposed input": ("Gemm", (7, 2), (7, 5), None, {"transA": 1}, 2 * 7 * 5, 35),
    "gemm, both": ("Gemm", (7, 2), (5, 7), None, {"transA": 1, "transB": 1}, 2 * 7 * 5, 35),
    "matmul": ("MatMul", (2, 7), (7, 5), None, {}, 2 * 7 * 5, 35),
    "matmul of a batch": ("MatMul", (3, 2, 4, 7), (7, 5), None, {}, 3 * 2 * 4 * 7 * 5, 35),
    "matmul of two batches": ("MatMul", (3, 1, 4, 7), (2, 7, 5), None, {}, 3 * 2 * 4 * 7 * 5, 70),
    "matmul of a vector": ("MatMul", (7,), (7, 5), None, {}, 7 * 5, 35),
    "no layer": ("Mul", (2, 7), (2, 7), None, {}, 0, 14),
}


@pytest.mark.parametrize(
    ("op", "x", "weight", "bias", "attributes", "macs", "params"), LAYERS.values(), ids=LAYERS
)
def test_layer(kit, op, x, weight, bias, attributes, macs, params):
    cost = _cost(kit, op, x, weight, bias=bias, **attributes)
    assert cost == Cost(macs, params, 4 * params)


def test_both_operands_at_run_time(kit):
    nodes = [
        helper.make_node("MatMul", ["x", "z"], ["a"], name="attention"),
        helper.make_node("Conv", ["img", "k"], ["b"], name="dynamic"),
    ]
    sizes = {"x": (2, 3, 4), "z": (2, 4, 5), "img": (1, 3, 6, 5), "k": (4, 3, 2, 2)}
    inputs = [kit.value(name, size) for name, size in sizes.items()]
    outputs = [kit.value("a", [None] * 3), kit.value("b", [None] * 4)]
    model = kit.model(nodes, inputs, outputs)
    cost = model_cost(model, shapes_at(model, sizes))
    assert cost == Cost(2 * 3 * 4 * 5 + 4 * 5 * 4 * 12, 0, 0)


def test_quantised_layers(kit):
    """QLinearConv's weight is its fourth input, ConvInteger's and MatMulInteger's the second."""
    scalars = ["s", "z"]
    nodes = [
        helper.make_node("QLinearConv", ["x", *scalars, "w", *scalars, *scalars], ["a"], name="q"),
        helper.make_node("ConvInteger", ["x", "w"], ["b"], name="ci"),
        helper.make_node("MatMulInteger", ["m", "v"], ["c"], name="mi"),
        helper.make_node(
            "QLinearMatMul", ["m", *scalars, "v", *scalars, *scalars], ["d"], name="qm"
        ),
    ]
    constants = {
        "s": np.array(1, np.float32),
        "z": np.array(0, np.uint8),
        "w": np.zeros((4, 3, 2, 2), np.uint8),
        "v": np.zeros((7, 5), np.uint8),
    }
    byte = TensorProto.UINT8
    inputs = [kit.value("x", (1, 3, 6, 5), byte), kit.value("m", (2, 7), byte)]
    outputs = [
        kit.value("a", [None] * 4, byte),
        kit.value("b", [None] * 4, TensorProto.INT32),
        kit.value("c", [None] * 2, TensorProto.INT32),
        kit.value("d", [None] * 2, byte),
    ]
    model = kit.model(nodes, inputs, outputs, constants)
    shapes = shapes_at(model, {"x": (1, 3, 6, 5), "m": (2, 7)})
    # Two convolutions of 4*5*4*12, two products of 2*7*5; 48 + 35 weights, a scale, a zero point.
    assert model_cost(model, shapes) == Cost(2 * 960 + 2 * 70, 48 + 35 + 2, 48 + 35 + 4 + 1)


def test_operators_of_other_domains_count_as_free(kit):
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="n", domain="elsewhere")
    model = kit.model(
        [node],
        [kit.value("x", (1, 3, 6, 5))],
        [kit.value("y", (1, 4, 5, 4))],
        {"w": np.zeros((4, 3, 2, 2), np.float32)},
        domains={"elsewhere": 1},
    )
    assert model_cost(model, {"x": (1, 3, 6, 5), "y": (1, 4, 5, 4)}).macs == 0


def test_unknown_sizes_are_not_counted_as_zero(kit):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="n")
    constants = {"w": np.zeros((7, 5), np.float32)}
    model = kit.model([node], [kit.value("x", (2, 7))], [kit.value("y", (2, 5))], constants)
    with pytest.raises(ModelError, match="'y' is not known"):
        model_cost(model, {"x": (2, 7)})


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("FLOAT", 32), ("FLOAT16", 16), ("BFLOAT16", 16), ("DOUBLE", 64), ("INT8", 8), ("UINT8", 8)],
)
def test_weight_types(kind, bits):
    tensor = TensorProto(data_type=getattr(TensorProto, kind))
    tensor.dims.extend([3, 4, 5])
    assert tensor_cost(tensor) == Cost(0, 60, 60 * bits // 8)


@pytest.mark.parametrize("kind", ["INT4", "UINT4"])
@pytest.mark.parametrize(("count", "octets"), [(6, 3), (7, 4)])
def test_half_bytes_are_stored_in_whole_ones(kind, count, octets):
    tensor = TensorProto(data_type=getattr(TensorProto, kind))
    tensor.dims.extend([count])
    assert tensor_cost(tensor) == Cost(0, count, octets)


@pytest.mark.parametrize("kind", ["INT64", "INT32", "BOOL", "STRING"])
def test_index_and_shape_constants_are_no_parameters(kind):
    tensor = TensorProto(data_type=getattr(TensorProto, kind))
    tensor.dims.extend([3, 4])
    assert tensor_cost(tensor) == Cost()


def test_shared_weight_counts_once(kit):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="m1"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="m2"),
    ]
    constants = {"w": np.zeros((7, 7), np.float32)}
    model = kit.model(nodes, [kit.value("x", (2, 7))], [kit.value("y", (2, 7))], constants)
    shapes = shapes_at(model, {"x": (2, 7)})
    assert model_cost(model, shapes) == Cost(2 * 2 * 49, 49, 196)
    twice = helper.make_node("MatMul", ["w", "w"], ["z"], name="square")
    model.graph.node.append(twice)
    shapes = shapes_at(model, {"x": (2, 7)})
    assert node_cost(twice, shapes, GraphView(model)) == Cost(343, 49, 196)


def test_activation_bytes(kit):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")]
    constants = {"w": np.zeros((7, 5), np.float32)}
    model = kit.model(nodes, [kit.value("x", (2, 7))], [kit.value("y", (2, 5))], constants)
    shapes = shapes_at(model, {"x": (2, 7)}) | {"w": (7, 5)}
    assert activation_bytes(nodes[0], shapes, GraphView(model)) == 4 * (14 + 10)


def test_costs_add_and_subtract():
    one, other = Cost(10, 20, 30), Cost(1, 2, 3)
    assert one + other == Cost(11, 22, 33)
    assert one - other == Cost(9, 18, 27)
    assert other - one == Cost(-9, -18, -27)
    assert one + Cost() == one
