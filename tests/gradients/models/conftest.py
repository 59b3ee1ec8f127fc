"""A small classifier, what is built of it, and how it is run and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcompress.gradients.build import GradientModel, gradient_model

node = helper.make_node
Feeds = Mapping[str, np.ndarray]
# Batch, input channels, height, width, inner channels and classes.
SIZES = {"distinct": (2, 3, 7, 5, 4, 6), "equal": (3, 3, 3, 3, 3, 3)}
TAPS = {"b": 1, "d": 1, "e": 1, "g": 1}
# Of sums over a few dozen positions behind three layers, in float32.
ROUNDED = 1e-5


@dataclass(frozen=True)
class Small:
    """A classifier, what it is fed, and what is built of it."""

    model: onnx.ModelProto
    feeds: Feeds
    classes: int
    oracle: Any

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs."""
        return {name: values.shape for name, values in self.feeds.items()}

    @property
    def target(self) -> np.ndarray:
        """A distribution over classes for every sample, no two alike."""
        raw = np.random.default_rng(3).uniform(0.1, 1.0, (len(self.feeds["x"]), self.classes))
        return np.asarray(raw / raw.sum(axis=1, keepdims=True), np.float32)

    def built(self, **how: Any) -> GradientModel:
        """Its backward graph, from the usual taps unless others are given."""
        return gradient_model(self.model, self.sizes, **{"taps": TAPS, **how})

    def changed(self, outputs: Sequence[str] = ("logits",), *extra: Any, drop: int = 0) -> Small:
        """With further nodes behind it, and other outputs, whose shapes are inferred."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        kept = list(copy.graph.node)[: len(copy.graph.node) - drop]
        del copy.graph.node[:], copy.graph.output[:]
        copy.graph.node.extend([*kept, *extra])
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        inferred = onnx.shape_inference.infer_shapes(copy).graph.output
        del copy.graph.output[:]
        copy.graph.output.extend(inferred)
        return Small(copy, self.feeds, self.classes, self.oracle)

    def run(self, built: GradientModel, feeds: Feeds) -> dict[str, np.ndarray]:
        """Every output by name; gates that are not fed are one."""
        shapes = input_shapes(built.model)
        ones = {gate: np.ones(shapes[gate], np.float32) for gate in built.gates.values()}
        names = [output.name for output in built.model.graph.output]
        found = self.oracle.run(built.model, {**ones, **self.feeds, **feeds})
        return dict(zip(names, found, strict=True))

    def products(self, built: GradientModel, feeds: Feeds) -> dict[str, np.ndarray]:
        """The products by tap."""
        found = self.run(built, feeds)
        return {tap: found[name] for tap, name in built.products.items()}

    @staticmethod
    def assert_close(found: np.ndarray, expected: np.ndarray, what: str = "") -> None:
        """Element by element, relative to the largest one."""
        scale = float(np.abs(expected).max())
        assert scale > 0
        np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDED * scale, err_msg=what)


def input_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes of the inputs of a built model, which are all fixed."""
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}


@pytest.fixture(params=SIZES)
def small(request: Any, kit: Any, oracle: Any) -> Small:
    """Two convolutions with a residual, pooled and classified."""
    batch, source, height, width, inner, classes = SIZES[request.param]
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["a"], name="first", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"], name="relu"),
        node("Conv", ["b", "w1"], ["c"], name="second", pads=[1, 1, 1, 1]),
        node("Tanh", ["c"], ["d"], name="tanh"),
        node("Add", ["d", "b"], ["e"], name="sum"),
        node("GlobalAveragePool", ["e"], ["f"], name="pool"),
        node("Flatten", ["f"], ["g"], name="flat"),
        node("Gemm", ["g", "w2"], ["logits"], name="dense", transB=1),
    ]
    constants = {
        "w0": oracle.draw("smooth", (inner, source, 3, 3), seed=1) / 4,
        "b0": oracle.draw("smooth", (inner,), seed=2),
        "w1": oracle.draw("smooth", (inner, inner, 3, 3), seed=3) / 4,
        "w2": oracle.draw("smooth", (classes, inner), seed=4),
    }
    shape = (batch, source, height, width)
    inputs = [kit.value("x", ["N", source, height, width])]
    outputs = [kit.value("logits", ["N", classes])]
    model = kit.model(nodes, inputs, outputs, constants, opset=21, ir_version=10)
    return Small(model, {"x": oracle.draw("smooth", shape, seed=5)}, classes, oracle)
