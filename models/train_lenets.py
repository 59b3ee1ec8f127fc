"""Train LeNet-300-100 and Caffe's LeNet-5 on MNIST, export them, write their entries and cards.

    python models/train_lenets.py              # writes both networks, entries and figures
    python models/train_lenets.py --validate   # trains as well, reports the validation images
    python models/train_lenets.py --seed 3 --out FOLDER   # FOLDER/lenet_300_100_seed3.onnx, ...

The name of a network, before the options, leaves the other one out. The recipe was chosen on the
validation images; the second form never sees the test images.
README.md in this folder says what to install and where the images are looked for.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from descent import Descent
from grey_images import MODELS, Part, in_proportion, read
from manifest import enter, write_card
from torch import nn
from train_digits_cnn import run
from train_vgg_tiny import EXPORT_TOLERANCE, RUN_BATCH, export, right_answers

TRAIN_IMAGES = 50_000
MEAN, STD = 0.1307, 0.3081
SHIPPED_SEED = 0


@dataclass(frozen=True)
class Recipe:
    """One of the two networks: its line in the manifest, its layers and how long it is trained."""

    description: str
    build: Callable[[], nn.Sequential]
    epochs: int


def lenet_300_100() -> nn.Sequential:
    """LeNet-300-100 with fresh weights: [N, 1, 28, 28] images to [N, 10] logits."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(28 * 28, 300)
    layers["relu1"] = nn.ReLU()
    layers["fc2"] = nn.Linear(300, 100)
    layers["relu2"] = nn.ReLU()
    layers["fc3"] = nn.Linear(100, 10)
    return nn.Sequential(layers)


def lenet5_caffe() -> nn.Sequential:
    """Caffe's LeNet-5 with fresh weights: [N, 1, 28, 28] images to [N, 10] logits.

    As in Caffe's ``lenet_train_test.prototxt``, no ReLU follows a convolution.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = nn.Conv2d(1, 20, 5)
    layers["pool1"] = nn.MaxPool2d(2)
    layers["conv2"] = nn.Conv2d(20, 50, 5)
    layers["pool2"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(50 * 4 * 4, 500)
    layers["relu1"] = nn.ReLU()
    layers["fc2"] = nn.Linear(500, 10)
    return nn.Sequential(layers)


RECIPES = {
    "lenet_300_100": Recipe(
        "fully connected LeNet-300-100 for 28x28 handwritten digits, 10 classes, float32",
        lenet_300_100,
        epochs=15,
    ),
    "lenet5_caffe": Recipe(
        "Caffe's LeNet-5 for 28x28 handwritten digits, 10 classes, float32",
        lenet5_caffe,
        epochs=8,
    ),
}


def training_and_validation() -> tuple[Part, Part]:
    """The official training images as 50,000 and 10,000, every class in the same proportion.

    Returns:
        Both parts, each in the order of the official file; the same for every seed of a training.
    """
    return in_proportion(read("mnist", "mnist_train"), TRAIN_IMAGES)


def normalised(part: Part) -> torch.Tensor:
    """The images of ``part`` as the networks' input [N, 1, 28, 28]."""
    return ((torch.from_numpy(part.pixels).float() / 255 - MEAN) / STD)[:, None]


def train(recipe: Recipe, part: Part, seed: int) -> nn.Sequential:
    """Train a fresh network on ``part``; ``seed`` fixes the first weights and the order."""
    descent = Descent(recipe.epochs, batch=100, rate=0.05, decay=5e-4, threads=1)
    generator = descent.start(seed)
    # Channels last is half as long to train on a CPU. What is returned is in the usual order.
    network = recipe.build().to(memory_format=torch.channels_last)
    images = normalised(part)
    labels = torch.from_numpy(part.labels)
    descent.run(network, labels, lambda batch: network(images[batch]), generator)
    return network.to(memory_format=torch.contiguous_format)


def torch_logits(network: nn.Sequential, part: Part) -> npt.NDArray[np.float32]:
    """The logits [N, 10] of ``part`` from PyTorch."""
    with torch.no_grad():
        parts = [network(images) for images in normalised(part).split(RUN_BATCH)]
        logits: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return logits


def make(name: str, *, seed: int, out: Path | None, validate: bool) -> None:
    """Train one network, report its answers and, unless ``validate``, write it.

    Args:
        name: a key of ``RECIPES``.
        seed: of the training.
        out: where to write the network alone; None to write what this folder ships.
        validate: write nothing and leave the test images alone.
    """
    recipe = RECIPES[name]
    fit, held_out = training_and_validation()
    network = train(recipe, fit, seed)
    fitted = right_answers(torch_logits(network, fit), fit)
    print(f"{name}, seed {seed}, training: {fitted:,} of {len(fit.labels):,} right")
    chosen = right_answers(torch_logits(network, held_out), held_out)
    print(f"{name}, seed {seed}, validation: {chosen:,} of {len(held_out.labels):,} right")
    if validate:
        return
    path = MODELS / f"{name}.onnx" if out is None else out / f"{name}_seed{seed}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    export(network, path)
    test = read("mnist", "mnist_test")
    logits = np.concatenate([run(path, x.numpy()) for x in normalised(test).split(RUN_BATCH)])
    np.testing.assert_allclose(logits, torch_logits(network, test), atol=EXPORT_TOLERANCE, rtol=0)
    correct, total = right_answers(logits, test), len(test.labels)
    print(f"{name}, seed {seed}, test: {correct:,} of {total:,} right")
    if out is not None:
        return
    enter(MODELS, {path.name: recipe.description}, {path.name: (correct, total)})
    write_card(
        path,
        test_set="the 10,000 test images",
        parameters_are="parameters",
        further=[
            f"| right answers on the {len(held_out.labels):,} validation images | {chosen:,} |",
            f"| right answers on the {len(fit.labels):,} training images | {fitted:,} |",
        ],
        script="train_lenets.py",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the LeNets and write what models/ ships.")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=" or ".join(RECIPES))
    parser.add_argument("--seed", type=int, default=SHIPPED_SEED, metavar="N", help="of training")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write there, networks alone")
    parser.add_argument("--validate", action="store_true", help="write nothing, leave test images")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.networks) - set(RECIPES)):
        parser.error(f"no network {unknown[0]!r}; there are: {', '.join(RECIPES)}")
    if arguments.seed != SHIPPED_SEED and arguments.out is None and not arguments.validate:
        parser.error(f"what models/ ships has seed {SHIPPED_SEED}; give --out for another")
    for name in arguments.networks or RECIPES:
        make(name, seed=arguments.seed, out=arguments.out, validate=arguments.validate)


if __name__ == "__main__":
    main()
