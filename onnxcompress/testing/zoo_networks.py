"""Builders of the zoo's networks of several layers: how a layer may hang in a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnxcompress.testing.zoo_layers import (
    IR_VERSION,
    OPSET,
    Size,
    Weights,
    assemble,
    bias,
    weight,
)

_node = onnx.helper.make_node


def _trunk(x: Size, *, opset: int = OPSET, ir_version: int = IR_VERSION) -> onnx.ModelProto:
    """What most classifiers are made of: k x k and strided 1x1 convolutions, mean, dense."""
    nodes = [
        _node("Conv", ["x", "w1", "b1"], ["c1"], "first", kernel_shape=[3, 2], pads=[1, 1, 1, 0]),
        _node("Relu", ["c1"], ["r1"], "relu"),
        _node("Conv", ["r1", "w2"], ["c2"], "point", kernel_shape=[1, 1], strides=[2, 2]),
        _node("GlobalAveragePool", ["c2"], ["m"], "mean"),
        _node("Flatten", ["m"], ["f"], "flat"),
        _node("Gemm", ["f", "w3", "b3"], ["y"], "dense", transB=1),
    ]
    constants = {
        "w1": weight(1, (24, 18, 3, 2), rank=9),
        "b1": bias(2, 24),
        "w2": weight(3, (40, 24, 1, 1), rank=9),
        "w3": weight(4, (28, 40), rank=9),
        "b3": bias(5, 28),
    }
    return assemble(nodes, {"x": x}, ["y"], constants, opset=opset, ir_version=ir_version)


def opset11() -> onnx.ModelProto:
    """An old export."""
    return _trunk((2, 18, 7, 9), opset=11, ir_version=6)


def opset21() -> onnx.ModelProto:
    """A recent export."""
    return _trunk((2, 18, 7, 9), opset=21, ir_version=10)


def dynamic_batch() -> onnx.ModelProto:
    """A symbolic first dimension; runs at any batch."""
    return _trunk(("N", 18, 7, 9))


def dynamic_sizes() -> onnx.ModelProto:
    """Every dimension but the channels symbolic."""
    return _trunk(("N", 18, "H", "W"))


def shared_weight() -> onnx.ModelProto:
    """Two convolutions, and two dense layers, that read one weight; canonicalising unties them."""
    nodes = [
        _node("Conv", ["x", "w", "b"], ["c1"], "first", pads=[1, 1, 1, 1]),
        _node("Relu", ["c1"], ["r1"], "relu1"),
        _node("Conv", ["r1", "w", "b"], ["c2"], "second", strides=[2, 1]),
        _node("GlobalMaxPool", ["c2"], ["m"], "max"),
        _node("Flatten", ["m"], ["f"], "flat"),
        _node("Gemm", ["f", "v"], ["g"], "third"),
        _node("MatMul", ["g", "v"], ["y"], "fourth"),
    ]
    constants = {
        "w": weight(11, (24, 24, 3, 3), rank=9),
        "b": bias(12, 24),
        "v": weight(13, (24, 24), rank=9),
    }
    return assemble(nodes, {"x": (2, 24, 7, 9)}, ["y"], constants)


def omitted_bias() -> onnx.ModelProto:
    """Layers whose bias is left out by an empty name instead of a missing input."""
    nodes = [
        _node("Conv", ["x", "w1", ""], ["c1"], "first"),
        _node("Conv", ["c1", "w2", ""], ["c2"], "point"),
        _node("GlobalMaxPool", ["c2"], ["m"], "max"),
        _node("Flatten", ["m"], ["f"], "flat"),
        _node("Gemm", ["f", "w3", ""], ["y"], "dense"),
    ]
    constants = {
        "w1": weight(17, (24, 20, 2, 3), rank=9),
        "w2": weight(18, (32, 24, 1, 1), rank=9),
        "w3": weight(19, (32, 40), rank=9),
    }
    return assemble(nodes, {"x": (3, 20, 5, 7)}, ["y"], constants)


def conv_is_output() -> onnx.ModelProto:
    """Layers whose outputs are outputs of the network, and are read inside it as well."""
    nodes = [
        _node("Conv", ["x", "w1"], ["y1"], "first"),
        _node("Conv", ["y1", "w2"], ["y2"], "point"),
        _node("Relu", ["y2"], ["y3"], "relu"),
    ]
    constants = {
        "w1": weight(21, (32, 20, 3, 2), rank=9),
        "w2": weight(22, (40, 32, 1, 1), rank=9),
    }
    return assemble(nodes, {"x": (3, 20, 7, 6)}, ["y2", "y1", "y3"], constants)


def residual() -> onnx.ModelProto:
    """Skip connections around a k x k and a 1x1 convolution."""
    nodes = [
        _node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        _node("Add", ["c1", "x"], ["a1"], "add1"),
        _node("Relu", ["a1"], ["r1"], "relu1"),
        _node("Conv", ["r1", "w2", "b2"], ["c2"], "point"),
        _node("Add", ["r1", "c2"], ["a2"], "add2"),
        _node("Relu", ["a2"], ["y"], "relu2"),
    ]
    constants = {
        "w1": weight(31, (24, 24, 3, 3), rank=9),
        "b1": bias(32, 24),
        "w2": weight(33, (24, 24, 1, 1), rank=9),
        "b2": bias(34, 24),
    }
    return assemble(nodes, {"x": (2, 24, 5, 7)}, ["y"], constants)


def branches() -> onnx.ModelProto:
    """Layers side by side on one input, of equal extents, so that any two can be confused."""
    nodes = [
        _node("Conv", ["x", "w1"], ["c1"], "left", pads=[1, 1, 1, 1]),
        _node("Conv", ["x", "w2"], ["c2"], "right", pads=[1, 1, 1, 1]),
        _node("Conv", ["x", "w3"], ["c3"], "left_point"),
        _node("Conv", ["x", "w4"], ["c4"], "right_point"),
        _node("Concat", ["c1", "c2", "c3", "c4"], ["y"], "join", axis=1),
    ]
    constants = {
        "w1": weight(41, (24, 24, 3, 3), rank=9),
        "w2": weight(42, (24, 24, 3, 3), rank=9),
        "w3": weight(43, (24, 24, 1, 1), rank=9),
        "w4": weight(44, (24, 24, 1, 1), rank=9),
    }
    return assemble(nodes, {"x": (2, 24, 6, 6)}, ["y"], constants)


def many() -> onnx.ModelProto:
    """Ten small layers in a row: where the order of things has the most to show."""
    nodes, constants = [], {}
    for at in range(10):
        size = 3 if at % 2 else 1
        constants[f"w{at}"] = weight(45 + at, (6, 6, size, size), rank=3)
        pads = [size // 2] * 4
        nodes.append(_node("Conv", [f"x{at}", f"w{at}"], [f"x{at + 1}"], f"layer{at}", pads=pads))
    return assemble(nodes, {"x0": (2, 6, 4, 5)}, ["x10"], constants)


def zero_weight() -> onnx.ModelProto:
    """Layers that training switched off."""
    nodes = [
        _node("Conv", ["x", "w1", "b1"], ["c1"], "first"),
        _node("Conv", ["c1", "w2", "b1"], ["c2"], "point"),
        _node("GlobalAveragePool", ["c2"], ["m"], "mean"),
        _node("Flatten", ["m"], ["f"], "flat"),
        _node("Gemm", ["f", "w3"], ["y"], "dense"),
    ]
    constants: dict[str, Weights] = {
        "w1": np.zeros((24, 20, 3, 3), np.float32),
        "b1": bias(52, 24),
        "w2": np.zeros((24, 24, 1, 1), np.float32),
        "w3": np.zeros((24, 28), np.float32),
    }
    return assemble(nodes, {"x": (2, 20, 5, 6)}, ["y"], constants)


def name_clash() -> onnx.ModelProto:
    """Nodes and tensors that bear the very names that a low-rank pass would think of."""
    nodes = [
        _node("Conv", ["x", "conv_tucker_in"], ["conv_tucker_core_out"], "conv", pads=[1, 1, 1, 1]),
        _node("Conv", ["conv_tucker_core_out", "conv_svd_in"], ["conv_svd_in_out"], "conv_svd_in"),
        _node("Add", ["conv_svd_in_out", "conv_tucker_core"], ["s"], "conv_tucker_in"),
        _node("Mul", ["s", "conv_tucker_out"], ["conv_tucker_in_out"], "conv_tucker_core"),
        _node("Relu", ["conv_tucker_in_out"], ["y"], "conv_tucker_out"),
    ]
    constants = {
        "conv_tucker_in": weight(61, (24, 24, 3, 3), rank=9),
        "conv_svd_in": weight(62, (24, 24, 1, 1), rank=9),
        "conv_tucker_core": bias(63, 1, 24, 1, 1),
        "conv_tucker_out": bias(64, 24, 1, 1),
    }
    return assemble(nodes, {"x": (2, 24, 5, 7)}, ["y"], constants)


def fed_at_run_time(op: str, x: Size, w: Size, fed: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """One layer some of whose parameters are inputs of the network.

    Args:
        op: Conv, Gemm or MatMul.
        x: input size.
        w: weight shape.
        fed: shapes of the parameters (`w`, `b`) that are fed.
    """
    constants = {} if "w" in fed else {"w": weight(71, [int(d) for d in w], rank=9)}
    names = ["x", "w", *(["b"] if "b" in fed else [])]
    node = _node(op, names, ["y"], "layer")
    return assemble([node], {"x": x} | dict(fed), ["y"], constants)


def subgraph() -> onnx.ModelProto:
    """An If whose branches read, from outside, the output of a convolution and a constant."""
    value = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    then = onnx.helper.make_graph(
        [_node("Mul", ["c1", "scale"], ["t"], "scaled")], "then", [], [value("t", kind, None)]
    )
    other = onnx.helper.make_graph(
        [_node("Relu", ["c1"], ["e"], "rectified")], "else", [], [value("e", kind, None)]
    )
    nodes = [
        _node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        _node("If", ["flag"], ["i"], "choice", then_branch=then, else_branch=other),
        _node("Conv", ["i", "w2"], ["y"], "point"),
    ]
    constants = {
        "w1": weight(81, (24, 20, 3, 3), rank=9),
        "b1": bias(82, 24),
        "scale": bias(83, 24, 1, 1),
        "w2": weight(84, (32, 24, 1, 1), rank=9),
    }
    return assemble(
        nodes,
        {"x": (2, 20, 5, 7), "flag": ()},
        ["y"],
        constants,
        types={"flag": onnx.TensorProto.BOOL},
    )
