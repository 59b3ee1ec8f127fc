"""Criteria beside the oracle on two networks, and what gradients and the oracle cost.

    python tests/benchmarks/saliency_tables.py [--samples 4000] [--only resnet20] [--no-tables]

Needs the shared folder (ONNXCOMPRESS_DATA, default ../shared). Training images, as in Molchanov et
al. 2017; gradients and oracle on the same ones. About 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from onnxcompress.analyse.facts import analyse
from onnxcompress.analyse.sizes import input_specs, representative_sizes
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.inputs import open_data
from onnxcompress.calibrate.sensitivity import CollectedSensitivity
from onnxcompress.load.canonical import canonicalise
from onnxcompress.plan.saliency.question import Question
from onnxcompress.progress import Silent
from onnxcompress.runtime import Execution, default_threads, open_session
from onnxcompress.study import study

SHARED = Path(os.environ.get("ONNXCOMPRESS_DATA", "../shared"))
MODELS = Path(__file__).resolve().parents[2] / "models"
NETWORKS = {
    "vgg_tiny": (
        MODELS / "vgg_tiny.onnx",
        SHARED / "data/fashion_mnist/fashion_train.npz",
        "layout=nchw,color=gray,scale=1/255,mean=.2860,std=.3530",
    ),
    "resnet20": (
        SHARED / "models/resnet20_cifar10.onnx",
        SHARED / "data/cifar10_lossless/cifar10_lossless_train4000.npz",
        "scale=1/255,mean=[.485,.456,.406],std=[.229,.224,.225]",
    ),
}
ROUNDS = 5
CHUNK = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--no-tables", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.only:
        path, source, preprocess = NETWORKS[name]
        model = onnx.load(path)
        data = open_data(str(source), input_specs(model), preprocess, "--data")
        print(f"\n### {name}\n", flush=True)
        costs(model, data)
        if not arguments.no_tables:
            table(model, data, arguments.samples)


def table(model: onnx.ModelProto, data: Dataset, samples: int) -> None:
    """Spearman's rank correlation of every criterion with the oracle."""
    start = time.perf_counter()
    found = study(model, data, samples=samples, ablated=samples)
    seconds = time.perf_counter() - start
    layers = list(found.scores[found.reference])
    print(f"\n{found.measured.samples} images, {len(layers)} layers, {seconds:.0f} s\n")
    print("| criterion | per layer | worst | all layers | all layers, l2 |")
    print("|---|---|---|---|---|")
    for name, each in found.correlations.items():
        row = (each.mean, each.worst, each.all_layers, each.all_normalised)
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in row)} |")
    print("\n| layer | " + " | ".join(found.correlations) + " |")
    print("|---|" + "---|" * len(found.correlations))
    for layer in layers:
        row = [f"{each.layers[layer]:.2f}" for each in found.correlations.values()]
        print(f"| {layer} | {' | '.join(row)} |", flush=True)


def costs(given: onnx.ModelProto, data: Dataset) -> None:
    """Gradients against one forward pass, and the oracle against one without a kept prefix."""
    model = canonicalise(given).model
    facts = analyse(model, representative_sizes(model))
    question = Question(facts, facts.coupling(), {}, "l2", 0)
    taps, shapes = question.axes(question.gates), facts.shapes()
    execution = Execution()
    print(f"{default_threads()} threads; medians of {ROUNDS} interleaved rounds\n")
    ratios = []
    for _ in range(ROUNDS):
        thousand = CollectedSensitivity(model, shapes, data, execution, 0, 1000)
        backward = _seconds(thousand.gate_gradients, taps)
        forward = _seconds(_forward, model, list(thousand.drawn.batches()), execution)
        ratios.append(backward / forward)
    print(
        f"taylor over 1,000 images, labels and set-up included: {np.median(ratios):.2f} times one "
        f"forward pass ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    ratios = []
    ablations = [
        {tap: (channel,)} for tap, axis in taps.items() for channel in range(shapes[tap][axis])
    ]
    for round_ in range(3):
        chunk = data.take(range(CHUNK * round_, CHUNK * (round_ + 1)))
        few = CollectedSensitivity(model, shapes, chunk, execution, 0, CHUNK, CHUNK, Silent())
        kept = _seconds(few.ablate, taps, ablations)
        whole = _seconds(_without_prefix, model, taps, shapes, list(few.drawn.batches()), execution)
        ratios.append(whole / kept)
    print(
        f"oracle of {len(ablations)} channels, prefix kept: {np.median(ratios):.2f} times faster "
        f"than without ({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


def _forward(model: onnx.ModelProto, parts: list, execution: Execution) -> None:
    with open_session(model, execution) as session:
        for part in parts:
            session.run(part.feeds)


def _without_prefix(
    model: onnx.ModelProto, taps: dict, shapes: dict, parts: list, execution: Execution
) -> None:
    """The whole network for every channel, with a factor behind its tensor."""
    for tap, axis in taps.items():
        masked = onnx.ModelProto()
        masked.CopyFrom(model)
        at = next(i for i, node in enumerate(masked.graph.node) if tap in node.output)
        for node in masked.graph.node:
            node.input[:] = ["masked" if name == tap else name for name in node.input]
        product = onnx.helper.make_node("Mul", [tap, "mask"], ["masked"], "masking")
        masked.graph.node.insert(at + 1, product)
        width = shapes[tap][axis]
        lined = [width if a == axis else 1 for a in range(len(shapes[tap]))]
        masked.graph.input.append(onnx.helper.make_tensor_value_info("mask", 1, lined))
        with open_session(masked, execution) as session:
            for part in parts:
                for channel in range(width):
                    mask = np.ones(width, dtype=np.float32)
                    mask[channel] = 0.0
                    session.run({**part.feeds, "mask": mask.reshape(lined)})


def _seconds(work: Callable[..., object], *operands: object) -> float:
    start = time.perf_counter()
    work(*operands)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
