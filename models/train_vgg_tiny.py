"""Train vgg_tiny on Fashion-MNIST, export it to ONNX, and write its manifest entry and card.

    python models/train_vgg_tiny.py              # writes the network, its entry and its figures
    python models/train_vgg_tiny.py --validate   # trains as well, reports the validation images

The test images are used once, at the end, by the first form; the second never sees them.
README.md in this folder says what to install and where the images are looked for.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from descent import Descent
from grey_images import Part, in_proportion, read
from manifest import enter, write_card
from torch import nn
from train_digits_cnn import run, without_traces

MODELS = Path(__file__).resolve().parent
TRAIN_IMAGES = 48_000
MEAN, STD = 0.2860, 0.3530
SHIFT = 2
DESCENT = Descent(epochs=15, batch=128, rate=0.05, decay=5e-4, threads=2)
SEED = 0
OPSET = 18
# What one batch of activations costs in memory: 32 channels of 26x26 are 87 kB an image.
RUN_BATCH = 1000
# Logits reach about 23; float32 sums of 3,872 products in another order differ by about 1e-5.
EXPORT_TOLERANCE = 1e-3

NETWORK = "vgg_tiny.onnx"
DESCRIPTIONS = {NETWORK: "VGG-like CNN for 28x28 images of clothes, 10 classes, float32"}


def training_and_validation() -> tuple[Part, Part]:
    """The official training images as 48,000 and 12,000, every class in the same proportion.

    Returns:
        Both parts, each in the order of the official file.
    """
    return in_proportion(read("fashion_mnist", "fashion_train"), TRAIN_IMAGES)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [N, 28, 28] of 0..255 as the network's input [N, 1, 28, 28]."""
    return ((pixels.float() / 255 - MEAN) / STD)[:, None]


def build() -> nn.Sequential:
    """The network with fresh weights: [N, 1, 28, 28] images to [N, 10] logits."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 1
    for number in (1, 2, 3):
        layers[f"conv{number}"] = nn.Conv2d(channels, 32, 3)
        layers[f"relu{number}"] = nn.ReLU()
        channels = 32
    layers["pool"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(32 * 11 * 11, 128)
    layers["relu4"] = nn.ReLU()
    layers["fc2"] = nn.Linear(128, 10)
    return nn.Sequential(layers)


def augmented(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each of the [N, 28, 28] images moved by up to 2 pixels both ways, black moving in.

    Every other one, at random, is also mirrored left to right.
    """
    count, height, width = pixels.shape
    padded = nn.functional.pad(pixels, (SHIFT, SHIFT, SHIFT, SHIFT))
    offsets = torch.randint(0, 2 * SHIFT + 1, (2, count, 1), generator=generator)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator)
    column = torch.arange(width)
    columns = torch.where(mirrored == 1, width - 1 - column, column) + offsets[1]
    rows = torch.arange(height) + offsets[0]
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def train(part: Part) -> nn.Sequential:
    """Train a fresh network on ``part`` for a fixed number of epochs, with fixed seeds."""
    generator = DESCENT.start(SEED)
    network = build()
    pixels, labels = torch.from_numpy(part.pixels), torch.from_numpy(part.labels)

    def answers(batch: torch.Tensor) -> torch.Tensor:
        return network(normalised(augmented(pixels[batch], generator)))

    DESCENT.run(network, labels, answers, generator)
    return network


def export(network: nn.Sequential, path: Path) -> None:
    """Write the trained network to ``path``, one file, and hold it to the full checker."""
    program = torch.onnx.export(
        network,
        (torch.zeros(2, 1, 28, 28),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"input": {0: torch.export.Dim("N")}},
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
    )
    model = program.model_proto
    without_traces(model)
    # One node a layer and in their order: strict, so that another exporter's graph is noticed.
    for node, (layer, _) in zip(model.graph.node, network.named_children(), strict=True):
        node.name = layer
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def batches(part: Part) -> list[torch.Tensor]:
    """The normalised images of ``part``, at most 1,000 at a time."""
    return [normalised(pixels) for pixels in torch.from_numpy(part.pixels).split(RUN_BATCH)]


def torch_logits(network: nn.Sequential, part: Part) -> npt.NDArray[np.float32]:
    """The logits [N, 10] of ``part`` from PyTorch."""
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = torch.cat([network(x) for x in batches(part)]).numpy()
    return logits


def right_answers(logits: npt.NDArray[np.float32], part: Part) -> int:
    """How many images of ``part`` get their largest logit at their label."""
    return int((logits.argmax(axis=1) == part.labels).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train vgg_tiny and write what models/ ships.")
    parser.add_argument("--validate", action="store_true", help="write nothing, leave test images")
    validate = parser.parse_args().validate
    fit, held_out = training_and_validation()
    network = train(fit)
    fitted = right_answers(torch_logits(network, fit), fit)
    print(f"training: {fitted:,} of {len(fit.labels):,} right")
    chosen = right_answers(torch_logits(network, held_out), held_out)
    print(f"validation: {chosen:,} of {len(held_out.labels):,} right")
    if validate:
        return
    path = MODELS / NETWORK
    export(network, path)
    test = read("fashion_mnist", "fashion_test")
    logits = np.concatenate([run(path, images.numpy()) for images in batches(test)])
    np.testing.assert_allclose(logits, torch_logits(network, test), atol=EXPORT_TOLERANCE, rtol=0)
    correct, total = right_answers(logits, test), len(test.labels)
    enter(MODELS, DESCRIPTIONS, {NETWORK: (correct, total)})
    write_card(
        path,
        test_set="the 10,000 test images",
        parameters_are="parameters",
        further=[
            f"| right answers on the {len(held_out.labels):,} validation images | {chosen:,} |",
            f"| right answers on the {len(fit.labels):,} training images | {fitted:,} |",
        ],
        script="train_vgg_tiny.py",
    )
    print(f"test: {correct:,} of {total:,} right")


if __name__ == "__main__":
    main()
