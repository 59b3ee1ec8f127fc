"""What the cards of the two LeNets promise: layers, any batch size, and their right answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from onnxcompress.embedded import embedded

LAYERS = {
    "lenet_300_100": ["flatten", "fc1", "relu1", "fc2", "relu2", "fc3"],
    # No ReLU after a convolution, as in Caffe.
    "lenet5_caffe": ["conv1", "pool1", "conv2", "pool2", "flatten", "fc1", "relu1", "fc2"],
}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "lenet_300_100": {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)},
    "lenet5_caffe": {
        "conv1": (20, 1, 5, 5),
        "conv2": (50, 20, 5, 5),
        "fc1": (500, 800),
        "fc2": (10, 500),
    },
}
PARAMETERS = {"lenet_300_100": 266_610, "lenet5_caffe": 431_080}


@pytest.fixture(params=sorted(LAYERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> onnx.ModelProto:
    return onnx.load(embedded(f"{name}.onnx"))


@pytest.fixture
def session(name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        embedded(f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
    )


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype == np.float32}


def by_hand(name: str, images: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """The network as its card describes it, in float64 with NumPy alone."""
    x = images.astype(np.float64)
    hidden = ["fc1", "fc2"]
    if name == "lenet5_caffe":
        hidden = ["fc1"]
        for layer in ("conv1", "conv2"):
            windows = np.lib.stride_tricks.sliding_window_view(x, (5, 5), axis=(2, 3))
            x = np.einsum("nchwij,ocij->nohw", windows, w[f"{layer}.weight"].astype(np.float64))
            x += w[f"{layer}.bias"][:, None, None]
            count, channels, height, width = x.shape
            x = x.reshape(count, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))
    x = x.reshape(len(x), -1)
    for layer in hidden:
        x = np.maximum(x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"], 0)
    last = f"fc{len(hidden) + 1}"
    logits: np.ndarray = x @ w[f"{last}.weight"].T + w[f"{last}.bias"]
    return logits


def test_every_layer_has_a_readable_name(name: str, model: onnx.ModelProto) -> None:
    assert [node.name for node in model.graph.node] == LAYERS[name]


def test_the_weights_are_those_of_the_card(name: str, model: onnx.ModelProto) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for layer, shape in SHAPES[name].items():
        expected |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
    assert {key: array.shape for key, array in weights(model).items()} == expected
    assert sum(array.size for array in weights(model).values()) == PARAMETERS[name]
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]


@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_what_the_card_describes(
    name: str, model: onnx.ModelProto, session: onnxruntime.InferenceSession, batch: int
) -> None:
    images = np.random.default_rng(batch).standard_normal((batch, 1, 28, 28)).astype(np.float32)
    (logits,) = session.run(["logits"], {"image": images})
    # Sums of up to 800 products through at most four layers: a few hundred roundings of 2**-24 of
    # the largest value, which a wrong order of the 800 or a ReLU too many exceeds by far.
    expected = by_hand(name, images, weights(model))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=500 * 2**-24 * np.abs(expected).max())


@pytest.mark.shared
def test_the_accuracy_on_the_card_is_reproduced_with_its_preprocessing(
    shared_folder: Path, hold_to_card: Any, name: str, session: onnxruntime.InferenceSession
) -> None:
    file = shared_folder / "data" / "mnist" / "mnist_test.npz"
    hold_to_card(f"{name}.onnx", session, file, mean=0.1307, deviation=0.3081)
