"""ResNets as torchvision builds them, with BatchNormalization folded and random weights."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class _Builder:
    def __init__(self, seed: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.generator = np.random.default_rng(seed)

    def constant(self, name: str, *shape: int) -> str:
        values = self.generator.standard_normal(shape, dtype=np.float32)
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, source: str, name: str, ins: int, outs: int, kernel: int, stride: int) -> str:
        inputs = [
            source,
            self.constant(f"{name}_w", outs, ins, kernel, kernel),
            self.constant(f"{name}_b", outs),
        ]
        pads = [kernel // 2] * 4
        self.nodes.append(
            helper.make_node("Conv", inputs, [name], name, pads=pads, strides=[stride] * 2)
        )
        return name

    def node(self, operator: str, name: str, *sources: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, sources, [name], name, **attributes))
        return name


def resnet(depth: int, *, size: int = 224, width: int = 64) -> onnx.ModelProto:
    """ResNet-18, 34 or 50 with random weights."""
    make = _Builder(depth)
    bottleneck, channels = depth >= 50, width
    tensor = make.node("Relu", "r", make.conv("x", "stem", 3, width, 7, 2))
    tensor = make.node(
        "MaxPool", "pool", tensor, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
    )
    for stage, count in enumerate(BLOCKS[depth]):
        inner = width * 2**stage
        outer = inner * (4 if bottleneck else 1)
        for block in range(count):
            stride = 2 if stage and not block else 1
            name = f"s{stage + 1}b{block}"
            shapes = [(channels, inner, 3, stride), (inner, outer, 3, 1)]
            if bottleneck:
                shapes = [(channels, inner, 1, 1), (inner, inner, 3, stride), (inner, outer, 1, 1)]
            branch = tensor
            for number, (ins, outs, kernel, step) in enumerate(shapes, 1):
                branch = make.conv(branch, f"{name}c{number}", ins, outs, kernel, step)
                if number < len(shapes):
                    branch = make.node("Relu", f"{name}r{number}", branch)
            if channels != outer or stride != 1:
                tensor = make.conv(tensor, f"{name}down", channels, outer, 1, stride)
            tensor = make.node("Relu", f"{name}r", make.node("Add", f"{name}a", branch, tensor))
            channels = outer
    flat = make.node("Flatten", "flat", make.node("GlobalAveragePool", "mean", tensor))
    make.node(
        "Gemm", "y", flat, make.constant("w", 1000, channels), make.constant("b", 1000), transB=1
    )
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size, size]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1000]),
    ]
    graph = helper.make_graph(make.nodes, "resnet", values[:1], values[1:], make.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def parameters_before_folding(model: onnx.ModelProto) -> int:
    """As torchvision counts: every convolution's bias stands for a scale and a shift."""
    biases = {node.input[2] for node in model.graph.node if node.op_type == "Conv"}
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer}
    return sum(sizes.values()) + sum(size for name, size in sizes.items() if name in biases)
