"""A teacher, a student that has forgotten some of it, and inputs for both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.calibrate.dataset import Dataset

NET = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 8, 8] x) => (float[N, 4] y) {
    [a] a = Conv <pads = [1, 1, 1, 1]> (x, wa, ba) [ra] a1 = Relu (a)
    [c] c = Conv <pads = [1, 1, 1, 1]> (a1, wc, bc) [s] s = Add (c, a1) [rs] s1 = Relu (s)
    [g] g = GlobalAveragePool (s1) [f] f = Flatten (g) [y] y = Gemm <transB = 1> (f, wy, by) }"""
SHAPES = {
    "wa": (6, 3, 3, 3),
    "ba": (6,),
    "wc": (6, 6, 3, 3),
    "bc": (6,),
    "wy": (4, 6),
    "by": (4,),
}


def filled(text: str, shapes: dict[str, tuple[int, ...]], seed: int) -> onnx.ModelProto:
    """A model with random weights."""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(seed)
    for name, shape in shapes.items():
        weight = 0.4 * generator.standard_normal(shape)
        if name.startswith("positive"):
            weight = np.abs(weight) + 0.5
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(weight.astype(np.float32), name)
        )
    return model


@pytest.fixture
def fill() -> Callable[..., onnx.ModelProto]:
    return filled


@pytest.fixture
def images() -> Callable[[onnx.ModelProto, int], Dataset]:
    return dataset_of


@pytest.fixture
def teacher() -> onnx.ModelProto:
    return filled(NET, SHAPES, 0)


@pytest.fixture
def forgetful() -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """Adds noise to every weight."""

    def make(model: onnx.ModelProto, deviation: float = 0.15) -> onnx.ModelProto:
        student = onnx.ModelProto()
        student.CopyFrom(model)
        generator = np.random.default_rng(7)
        for tensor in student.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            noisy = values + deviation * generator.standard_normal(values.shape)
            new = np.abs(noisy) if tensor.name.startswith("positive") else noisy
            tensor.CopyFrom(onnx.numpy_helper.from_array(new.astype(values.dtype), tensor.name))
        return student

    return make


@pytest.fixture
def data(teacher: onnx.ModelProto) -> Dataset:
    return dataset_of(teacher, 160)


def dataset_of(model: onnx.ModelProto, count: int) -> Dataset:
    """Inputs like images: neighbouring pixels are alike."""
    generator = np.random.default_rng(3)
    coarse = generator.standard_normal((count, 3, 4, 4)).astype(np.float32)
    images = coarse.repeat(2, 2).repeat(2, 3)
    return dataset_from_arrays({"x": images}, input_specs(model), purpose="--data", source="made")
