"""What the card of vgg_tiny promises: its layers, any batch size, and its right answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from onnxcompress.analyse.sizes import InputSpec
from onnxcompress.calibrate.preprocess_text import parse_preprocess
from onnxcompress.calibrate.spec import load_dataset
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
    shared_folder: Path, session: onnxruntime.InferenceSession
) -> None:
    path = embedded("vgg_tiny.onnx")
    found = re.search(r"--preprocess '([^']+)'", path.with_suffix(".md").read_text("utf-8"))
    assert found is not None
    manifest = path.with_name("manifest.json").read_text(encoding="utf-8")
    entry: dict[str, Any] = json.loads(manifest)["files"][path.name]
    assert entry["test_total"] == 10_000
    file = shared_folder / "data" / "fashion_mnist" / "fashion_test.npz"
    image = InputSpec("image", np.dtype(np.float32), ("N", 1, 28, 28))
    dataset = load_dataset(str(file), (image,), preprocess=parse_preprocess(found[1]))
    correct = 0
    for feeds, labels in dataset.batches(500):
        (logits,) = session.run(["logits"], feeds)
        correct += int((logits.argmax(axis=1) == labels).sum())
    # Another CPU sums in another order. Its logits differ by some 1e-5, which tips an image or none
    # of ten thousand; a few are allowed for kernels of lower precision.
    assert abs(correct - entry["test_correct"]) <= 5
    with np.load(file) as archive:
        pixels = archive["x"][[9999, 3]].astype(np.float64)
    ((feeds, _),) = dataset.take([9999, 3]).batches(2)
    expected = ((pixels / 255 - 0.2860) / 0.3530)[:, None]
    np.testing.assert_allclose(feeds["image"], expected, rtol=2**-24, atol=1e-12)
