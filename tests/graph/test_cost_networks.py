"""Whole networks whose totals are published: VGG-16 and AlexNet, written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcompress.graph.cost import Cost, model_cost, node_cost
from onnxcompress.graph.infer import shapes_at
from onnxcompress.graph.view import GraphView

VGG16 = [64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool"]
VGG16 += [512, 512, 512, "pool", 512, 512, 512, "pool"]
DENSE = [4096, 4096, 1000]


def _weight(name, *dims):
    """A weight of which only the dimensions are there: counting needs no values."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT)
    tensor.dims.extend(dims)
    return tensor


class Network:
    """Adds layers one behind the other."""

    def __init__(self, kit, x):
        self.kit, self.x = kit, x
        self.nodes, self.constants, self.tensor = [], [], "x"
        self.channels = x[1]

    def _node(self, op, inputs=(), **attributes):
        output = f"t{len(self.nodes)}"
        name = f"{op.lower()}{len(self.nodes)}"
        node = helper.make_node(op, [self.tensor, *inputs], [output], name=name, **attributes)
        self.nodes.append(node)
        self.tensor = output
        return name

    def layer(self, op, channels, dims, **attributes):
        tag = f"w{len(self.nodes)}"
        self.constants += [_weight(tag, *dims), _weight(f"{tag}b", channels)]
        self.constants[-1].raw_data = np.zeros(channels, np.float32).tobytes()
        self._node(op, (tag, f"{tag}b"), **attributes)
        self.channels = channels

    def conv(self, channels, size, **attributes):
        group = attributes.get("group", 1)
        dims = (channels, self.channels // group, size, size)
        self.layer("Conv", channels, dims, **attributes)
        self._node("Relu")

    def pool(self, size, stride):
        self._node("MaxPool", kernel_shape=[size, size], strides=[stride, stride])

    def dense(self, widths, features):
        self._node("Flatten")
        for width in widths:
            self.layer("Gemm", width, (width, features), transB=1)
            features = width

    def model(self):
        outputs = [self.kit.value(self.tensor, (self.x[0], self.channels))]
        model = self.kit.model(self.nodes, [self.kit.value("x", self.x)], outputs)
        model.graph.initializer.extend(self.constants)
        return model


def _vgg16(kit, *, width=1.0, side=224, batch=1):
    network = Network(kit, (batch, 3, side, side))
    for layer in VGG16:
        if layer == "pool":
            network.pool(2, 2)
        else:
            network.conv(int(layer * width), 3, pads=[1, 1, 1, 1])
    network.dense([int(d * width) for d in DENSE], int(512 * width) * (side // 32) ** 2)
    return network.model(), {"x": network.x}


def _by_formula(width, side, batch):
    """The same totals as a sum over layers, from the list above and nothing else."""
    macs = params = 0
    channels = 3
    for layer in VGG16:
        if layer == "pool":
            side //= 2
            continue
        out = int(layer * width)
        macs += batch * out * channels * 9 * side * side
        params += out * channels * 9 + out
        channels = out
    features = channels * side * side
    for dense in DENSE:
        out = int(dense * width)
        macs += batch * out * features
        params += out * features + out
        features = out
    return macs, params


def test_vgg16_has_its_published_totals(kit):
    model, sizes = _vgg16(kit)
    cost = model_cost(model, shapes_at(model, sizes))
    # 15.3466 G in the convolutions, 123.6 M in the dense layers; 138,357,544 parameters.
    assert cost == Cost(15_346_630_656 + 123_633_664, 138_357_544, 4 * 138_357_544)


def test_vgg16_layer_by_layer(kit):
    model, sizes = _vgg16(kit)
    shapes, view = shapes_at(model, sizes), GraphView(model)
    rows = [node_cost(node, shapes, view) for node in model.graph.node]
    layers = [row for row in rows if row != Cost()]
    assert len(layers) == 16
    assert layers[0] == Cost(86_704_128, 1_792, 4 * 1_792)
    assert layers[1].macs == 1_849_688_064
    assert layers[13] == Cost(102_760_448, 102_764_544, 4 * 102_764_544)
    assert sum(rows, Cost()) == model_cost(model, shapes)


@pytest.mark.parametrize(("width", "side", "batch"), [(0.25, 64, 3), (0.125, 96, 2)])
def test_scaled_down(kit, width, side, batch):
    model, sizes = _vgg16(kit, width=width, side=side, batch=batch)
    macs, params = _by_formula(width, side, batch)
    assert model_cost(model, shapes_at(model, sizes)) == Cost(macs, params, 4 * params)


def test_alexnet_with_its_two_groups(kit):
    """The two-tower network of 2012: 60,965,224 parameters, 724,406,816 MACs."""
    network = Network(kit, (1, 3, 227, 227))
    network.conv(96, 11, strides=[4, 4])
    network.pool(3, 2)
    network.conv(256, 5, pads=[2, 2, 2, 2], group=2)
    network.pool(3, 2)
    network.conv(384, 3, pads=[1, 1, 1, 1])
    network.conv(384, 3, pads=[1, 1, 1, 1], group=2)
    network.conv(256, 3, pads=[1, 1, 1, 1], group=2)
    network.pool(3, 2)
    network.dense(DENSE, 9216)
    model, sizes = network.model(), {"x": network.x}
    cost = model_cost(model, shapes_at(model, sizes))
    assert cost == Cost(724_406_816, 60_965_224, 4 * 60_965_224)
