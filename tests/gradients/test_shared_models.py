"""Published networks end to end: dC/dg = sum z dC/dz, against differences in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.analyse.facts import analyse
from onnxcompress.analyse.sizes import random_feeds, representative_sizes
from onnxcompress.gradients.build import GradientModel, gradient_model
from onnxcompress.load.canonical import canonicalise
from onnxcompress.load.source import read_source

pytestmark = pytest.mark.shared

STEP = 1e-6
# Of networks up to fifty layers deep in float32, against float64.
TOLERANCE = 1e-3
MODELS = [
    "ic_resnet8_float",
    "kws_dscnn_float",
    "mnist_cntk",
    "mobilenet_v1_0.25_128_dq",
    "resnet20_cifar10",
    "squeezenet1.1_fp16w_imagenet",
    "super_resolution_espcn",
    "yunet_n_320",
]
# The reference evaluator takes a second a run for those of 224 pixels a side.
SLOW = {"squeezenet1.1_fp16w_imagenet", "super_resolution_espcn", "yunet_n_320"}


@pytest.mark.parametrize("name", MODELS)
def test_gate_identity(oracle: Any, shared_folder: Any, name: str) -> None:
    source = read_source(shared_folder / "models" / f"{name}.onnx").model
    model = canonicalise(source).model
    sizes = representative_sizes(model, {}, batch=None)
    coupling = analyse(model, sizes).coupling()
    tensors = [t for t in coupling.producers.values() if t in coupling.lanes]
    # The way back to the first holds that to all others.
    picked = dict.fromkeys([tensors[0], *(() if name in SLOW else tensors[1::4])])
    taps = {tensor: coupling.lanes[tensor].axis for tensor in picked}
    built = gradient_model(model, sizes, taps=taps, gated=True)
    assert set(built.products) == set(taps)
    feeds = _feeds(built, random_feeds(model, sizes))
    names = [output.name for output in built.model.graph.output]
    found = dict(zip(names, oracle.run(built.model, feeds), strict=True))
    loss = _loss(oracle, model, built, feeds)
    generator = np.random.default_rng(1)
    for tap, output in built.products.items():
        gradient = found[output].astype(np.float64)
        norm = float(np.linalg.norm(gradient))
        assert norm > 0, tap
        gate = built.gates[tap]
        along = (gradient / norm).reshape(feeds[gate].shape)
        sides = [loss(gate, feeds[gate] + way * along) for way in (STEP, -STEP)]
        slope = (sides[0] - sides[1]) / (2 * STEP)
        # Along the gradient, the slope is its norm; any error in it makes that smaller.
        assert slope == pytest.approx(norm, rel=TOLERANCE), tap
        if name in SLOW:
            continue
        # Along another direction, errors that are no common factor show as well.
        other = generator.standard_normal(along.shape)
        other /= np.linalg.norm(other)
        sides = [loss(gate, feeds[gate] + way * other) for way in (STEP, -STEP)]
        slope = (sides[0] - sides[1]) / (2 * STEP)
        expected = float((gradient.reshape(along.shape) * other).sum())
        assert slope == pytest.approx(expected, abs=TOLERANCE * norm), tap


def _feeds(built: GradientModel, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gates at one, the second class as target, signs as cotangents."""
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in built.model.graph.input
    }
    result = dict(feeds)
    for gate in built.gates.values():
        result[gate] = np.ones(shapes[gate], np.float32)
    if built.loss.target:
        result[built.loss.target] = np.zeros(shapes[built.loss.target], np.float32)
        result[built.loss.target][:, 1] = 1
    generator = np.random.default_rng(0)
    for cotangent in built.loss.cotangents.values():
        result[cotangent] = generator.choice([-1.0, 1.0], shapes[cotangent]).astype(np.float32)
    return result


def _loss(
    oracle: Any, model: onnx.ModelProto, built: GradientModel, feeds: dict[str, np.ndarray]
) -> Any:
    """The loss in float64 as a function of one gate, of the network with gates made by hand."""
    run = oracle.reference(_gated(model, built, feeds))
    wide = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in feeds.items()}
    fed = [value.name for value in model.graph.input] + list(built.gates.values())
    outputs = [output.name for output in model.graph.output]

    def loss(gate: str, values: np.ndarray) -> float:
        made = run({name: {**wide, gate: values}[name] for name in fed})
        found = dict(zip(outputs, made, strict=True))
        if not built.loss.target:
            pairs = built.loss.cotangents.items()
            return sum(float((found[name] * wide[v]).sum()) for name, v in pairs)
        target = wide[built.loss.target]
        scores = found[outputs[0]].reshape(target.shape)
        if scores.min() < 0 or not np.allclose(scores.sum(axis=1), 1, atol=1e-6):
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        return -float((target * np.log(scores)).sum())

    return loss


def _gated(
    model: onnx.ModelProto, built: GradientModel, feeds: dict[str, np.ndarray]
) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for tap, gate in built.gates.items():
        shape = feeds[gate].shape
        graph.input.append(helper.make_tensor_value_info(gate, TensorProto.FLOAT, shape))
        at = next(i for i, one in enumerate(graph.node) if tap in one.output)
        for reader in graph.node:
            reader.input[:] = [f"gated:{tap}" if name == tap else name for name in reader.input]
        graph.node.insert(at + 1, helper.make_node("Mul", [tap, gate], [f"gated:{tap}"]))
    return copy
