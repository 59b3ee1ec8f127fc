"""Train digits_cnn on the digits, export it to ONNX, and write its manifest and measured card.

    python models/train_digits_cnn.py              # writes everything that this folder ships
    python models/train_digits_cnn.py --validate   # tries the recipe on a part of the training data

The test images are used once, at the end, by the first form; the second never sees them.
README.md in this folder says what to install.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from descent import Descent
from export_digits import MODELS, Part, digits, split_part, write
from manifest import enter, write_card
from torch import nn

WIDTHS = (64, 128, 128, 128, 128)
POOL_AFTER = 4
# Some twenty times the usual decay: filters end nearer to low rank, which makes room for Tucker-2.
DESCENT = Descent(epochs=60, batch=50, rate=0.1, decay=1e-2, threads=2)
SEED = 0
VALIDATION_IMAGES = 200
OPSET = 18
# Logits reach about 7; float32 sums of 1,152 products in another order differ by about 1e-5.
EXPORT_TOLERANCE = 1e-3

DESCRIPTIONS = {
    "digits_cnn.onnx": "five-layer CNN for 8x8 handwritten digits, 10 classes, float32",
    "digits_test.npz": "797 labelled test images (x, y), never used in training",
    "digits_train.npz": "1,000 unlabelled training images (x), for calibration",
}


def build() -> nn.Sequential:
    """The network with fresh weights: [N, 1, 8, 8] images to [N, 10] logits."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 1
    for number, width in enumerate(WIDTHS, start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers[f"bn{number}"] = nn.BatchNorm2d(width)
        layers[f"relu{number}"] = nn.ReLU()
        if number == POOL_AFTER:
            layers["pool"] = nn.MaxPool2d(2)
        channels = width
    layers["mean"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, 10)
    return nn.Sequential(layers)


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each of the [N, 1, 8, 8] images moved by -1, 0 or 1 pixel both ways, zeros moving in."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (1, 1, 1, 1))[:, 0]
    offsets = torch.randint(0, 3, (2, count, 1), generator=generator)
    rows = (offsets[0] + torch.arange(height))[:, :, None]
    columns = (offsets[1] + torch.arange(width))[:, None, :]
    return padded[torch.arange(count)[:, None, None], rows, columns][:, None]


def train(part: Part) -> nn.Sequential:
    """Train a fresh network on ``part`` for a fixed number of epochs, with fixed seeds."""
    generator = DESCENT.start(SEED)
    network = build()
    images, labels = torch.from_numpy(part.images), torch.from_numpy(part.labels)

    def answers(batch: torch.Tensor) -> torch.Tensor:
        return network(shifted(images[batch], generator))

    DESCENT.run(network, labels, answers, generator)
    return network


def without_traces(model: onnx.ModelProto) -> None:
    """Drop what the exporter says about the machine it ran on, and name layers after weights."""
    graph = model.graph
    holders = [model, graph, *graph.node, *graph.input, *graph.output]
    for holder in (*holders, *graph.value_info, *graph.initializer):
        del holder.metadata_props[:]
    for node in graph.node:
        weight = next((name for name in node.input if name.endswith(".weight")), None)
        if weight is not None:
            node.name = weight.removesuffix(".weight")


def export(network: nn.Sequential, path: Path) -> None:
    """Write the trained network to ``path``, one file, and hold it to the full checker."""
    program = torch.onnx.export(
        network,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"input": {0: torch.export.Dim("N")}},
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
    )
    model = program.model_proto
    without_traces(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def run(path: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The logits [N, 10] of the exported network, from ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits: npt.NDArray[np.float32] = session.run(["logits"], {"image": images})[0]
    return logits


def right_answers(logits: npt.NDArray[np.float32], part: Part) -> int:
    """How many images of ``part`` get their largest logit at their label."""
    return int((logits.argmax(axis=1) == part.labels).sum())


def torch_logits(network: nn.Sequential, part: Part) -> npt.NDArray[np.float32]:
    """The logits [N, 10] of ``part`` from PyTorch."""
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = network(torch.from_numpy(part.images)).numpy()
    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description="Train digits_cnn and write what models/ ships.")
    parser.add_argument("--validate", action="store_true", help="hold out training images instead")
    validate = parser.parse_args().validate
    training, test = digits()
    if validate:
        fitted = len(training.labels) - VALIDATION_IMAGES
        fit, held_out = split_part(training, first=fitted, seed=SEED)
        right = right_answers(torch_logits(train(fit), held_out), held_out)
        print(f"validation: {right} of {VALIDATION_IMAGES} right")
        return
    write(MODELS)
    network = train(training)
    path = MODELS / "digits_cnn.onnx"
    export(network, path)
    logits = run(path, test.images)
    np.testing.assert_allclose(logits, torch_logits(network, test), atol=EXPORT_TOLERANCE, rtol=0)
    correct, total = right_answers(logits, test), len(test.labels)
    enter(MODELS, DESCRIPTIONS, {path.name: (correct, total)})
    write_card(
        path,
        test_set="`digits_test.npz`",
        parameters_are="parameters, batch normalisation folded",
        script="train_digits_cnn.py",
    )
    print(f"test: {correct} of {total} right")


if __name__ == "__main__":
    main()
