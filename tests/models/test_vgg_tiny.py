"""What the card of vgg_tiny promises: its layers, any batch size, and its right answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from onnxcompress.embedded import embedded

LAYERS = ["conv1", "relu1", "conv2", "relu2", "conv3", "relu3"]
LAYERS += ["pool", "flatten", "fc1", "relu4", "fc2"]


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(embedded("vgg_tiny.onnx"))


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        embedded("vgg_tiny.onnx"), options, providers=["CPUExecutionProvider"]
    )


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype == np.float32}


def by_hand(images: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    """The network as its card describes it, in float64 with NumPy alone."""
    x = images.astype(np.float64)
    for layer in ("conv1", "conv2", "conv3"):
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
        x = np.einsum("nchwij,ocij->nohw", windows, w[f"{layer}.weight"].astype(np.float64))
        x = np.maximum(x + w[f"{layer}.bias"][:, None, None], 0)
    count, channels, height, width = x.shape
    x = x.reshape(count, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))
    x = np.maximum(x.reshape(count, -1) @ w["fc1.weight"].T + w["fc1.bias"], 0)
    return x @ w["fc2.weight"].T + w["fc2.bias"]


def test_every_layer_has_a_readable_name(model: onnx.ModelProto) -> None:
    assert [node.name for node in model.graph.node] == LAYERS


def test_the_weights_are_those_of_the_card(model: onnx.ModelProto) -> None:
    shapes = {name: array.shape for name, array in weights(model).items()}
    assert shapes == {
        "conv1.weight": (32, 1, 3, 3),
        "conv1.bias": (32,),
        "conv2.weight": (32, 32, 3, 3),
        "conv2.bias": (32,),
        "conv3.weight": (32, 32, 3, 3),
        "conv3.bias": (32,),
        "fc1.weight": (128, 3872),
        "fc1.bias": (128,),
        "fc2.weight": (10, 128),
        "fc2.bias": (10,),
    }
    assert sum(array.size for array in weights(model).values()) == 515_850
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]


@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_what_the_card_describes(
    model: onnx.ModelProto, session: onnxruntime.InferenceSession, batch: int
) -> None:
    images = np.random.default_rng(batch).standard_normal((batch, 1, 28, 28)).astype(np.float32)
    (logits,) = session.run(["logits"], {"image": images})
    # Sums of up to 3,872 products through five layers: a few hundred roundings of 2**-24 of the
    # largest value, which a wrong pad, stride or order of the 3,872 exceeds by far.
    expected = by_hand(images, weights(model))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=500 * 2**-24 * np.abs(expected).max())


@pytest.mark.shared
def test_the_accuracy_on_the_card_is_reproduced_with_its_preprocessing(
    shared_folder: Path, hold_to_card: Any, session: onnxruntime.InferenceSession
) -> None:
    file = shared_folder / "data" / "fashion_mnist" / "fashion_test.npz"
    hold_to_card("vgg_tiny.onnx", session, file, mean=0.2860, deviation=0.3530)
