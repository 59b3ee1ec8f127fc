"""vgg_tiny with filters and kernels that share, against the poster's table, on Fashion-MNIST.

    python tests/benchmarks/dsl_tables.py [--samples 1024] [--descents]
        [--figure docs/figures/dsl_vgg_tiny.png]

Needs Fashion-MNIST in the shared folder (ONNXCOMPRESS_DATA, default ../shared), and PyTorch;
matplotlib for the figure. Calibrated on unlabelled training images, judged on the 10,000 test
images. Conv parameters are counted as the poster counts them: numbers that stand for weights of
convolutions, without biases and without which entry a kernel takes; bits count everything.
`--descents` prints the comparison of searches and descents alone.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from figures import pyplot

from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.config import Config
from onnxcompress.finetune.program_choice import Chooser, choose_programs, chooser
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.memo import Memo
from onnxcompress.kernels.emission import DOMAIN
from onnxcompress.kernels.gumbel import Schedule, refine
from onnxcompress.kernels.induction import LayerPrograms, induce, relative_error
from onnxcompress.kernels.search import vocabulary
from onnxcompress.pipeline import prepare
from onnxcompress.plan.channels.known import remember_coupling
from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.known_moments import layer_moments, remember_facts
from onnxcompress.plan.options import collect
from onnxcompress.plan.registry import parse_pass
from onnxcompress.progress import Silent
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.rewrite.repair import Repair
from onnxcompress.runtime import Execution, open_session

SHARED = Path(os.environ.get("ONNXCOMPRESS_DATA", "../shared"))
FASHION = SHARED / "data" / "fashion_mnist"
MODEL = Path(__file__).resolve().parents[2] / "models" / "vgg_tiny.onnx"
ONE = Execution(threads=1)
INNER = ("conv2", "conv3")
ALL = ("conv1", *INNER)

FAMILIES: dict[str, Sequence[tuple[str, tuple[str, ...]]]] = {
    "kernels, dictionary": [
        (f"dsl:shared=kernels,count={count}", INNER) for count in (96, 32, 16, 8, 4, 2)
    ],
    "kernels, predefined": [
        (f"dsl:shared=kernels,source=predefined,price={price}", ALL) for price in (0.03, 0.1, 0.3)
    ],
    "filters, by answers": [
        (f"dsl:count={counts}", ALL) for counts in ("24+24+24", "16+16+16", "8+8+8", "5+6+8")
    ],
    "filters, by SSIM": [
        (f"dsl:distance=ssim,count={counts}", ALL) for counts in ("16+16+16", "5+6+8")
    ],
    "filters, as the poster clusters": [("dsl:distance=ssim,linkage=poster,count=5+6+8", ALL)],
}


@dataclass(frozen=True)
class Point:
    """One network: conv parameters, bits of all conv weights, and right answers."""

    numbers: int
    bits: float
    accuracy: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--descents", action="store_true")
    arguments = parser.parse_args()
    train, test = (np.load(FASHION / f"fashion_{part}.npz") for part in ("train", "test"))
    drawn = np.random.default_rng(0).permutation(48_000)[: arguments.samples]
    images, judged = scaled(train["x"][np.sort(drawn)]), (scaled(test["x"]), test["y"])
    facts = facts_of(images)
    base = point(facts.model, judged)
    print(f"original: {base.numbers} conv parameters, {base.accuracy:.2%}\n")
    print(
        "| what | conv parameters | kB | accuracy | repaired | seconds |\n|---|---|---|---|---|---|"
    )
    points: dict[str, list[Point]] = {}
    for family, specs in [] if arguments.descents else list(FAMILIES.items()):
        for spec, nodes in specs:
            started = time.perf_counter()
            plain, mended = compressed(facts, spec, nodes, images)
            seconds = time.perf_counter() - started
            before, after = point(plain, judged), point(mended, judged)
            points.setdefault(family, []).append(after)
            print(
                f"| `{spec}` | {after.numbers} | {after.bits / 8e3:.1f} | {before.accuracy:.2%} | "
                f"{after.accuracy:.2%} | {seconds:.0f} |",
                flush=True,
            )
    descents(facts)
    by_task(facts, images, judged)
    if arguments.figure:
        draw(points, base, arguments.figure)


def facts_of(images: np.ndarray) -> Facts:
    owner = parse_pass("dsl")
    config = Config(passes=(owner,), data={"image": images}, execution=ONE, metric="agreement")
    return prepare(onnx.load(MODEL), config, Silent()).facts


def compressed(
    facts: Facts, spec: str, nodes: tuple[str, ...], images: np.ndarray
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The tightest candidate of every node; before and after repair."""
    memo = Memo()
    remember_facts(facts, memo)
    remember_coupling(facts, memo)
    owner = parse_pass(spec)
    offers = [site[-1] for site in collect(facts, [owner]).sites]
    chosen: list[Candidate[Any]] = [c for c in offers if c.site.node in nodes]
    model = rewrite(facts.model, chosen, {owner.name: owner}, strict=True, memo=memo).model
    kept = owner.kept_channels(chosen, Editor(facts.model, memo=memo))
    feeds = [{"image": part} for part in np.array_split(images, len(images) // 64)]
    return model, Repair(facts.model, feeds, ONE)(model, kept).model


def point(model: onnx.ModelProto, judged: tuple[np.ndarray, np.ndarray]) -> Point:
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    read = [n for node in model.graph.node for n in weights_of(node) if n in held]
    numbers = sum(held[name].size for name in read if held[name].dtype == np.float32)
    octets = sum(held[name].nbytes for name in read)
    with open_session(model, ONE) as session:
        (scores, *_) = session.run({"image": judged[0]})
    return Point(numbers, 8.0 * octets, float((scores.argmax(axis=1) == judged[1]).mean()))


def weights_of(node: onnx.NodeProto) -> Sequence[str]:
    """What a node reads that stands for weights of a convolution."""
    if node.op_type == "Conv":
        return [node.input[1]]
    return list(node.input) if node.domain == DOMAIN else []


def descents(facts: Facts) -> None:
    """Gumbel-Softmax against the exact search, at the same price and single atoms."""
    print("\n| layer | price | search: error, kB | descent: error, kB | shares of the search |")
    print("|---|---|---|---|---|")
    words = vocabulary(3, 1)
    for node in INNER:
        weight = facts.view.array64(facts.view.nodes[node].input[1])
        rows = weight.reshape(*weight.shape[:2], -1)
        metric = layer_moments(facts, INNER)[node].centred().gram[0]
        for level in (0.1, 0.3, 1.0):
            price = level / float(words.bits[-1] * rows[..., 0].size)
            found: list[LayerPrograms] = [
                induce(rows, words, price, metric),
                refine(rows, words, price, metric, Schedule(steps=200)),
            ]
            cells = [
                f"{relative_error(rows, one.weights, metric):.4f}, {one.bits / 8e3:.1f}"
                for one in found
            ]
            shares = ", ".join(f"{k} {v:.0%}" for k, v in list(found[0].shares().items())[:5])
            print(f"| {node} | {level:g} | {cells[0]} | {cells[1]} | {shares} |", flush=True)


def by_task(facts: Facts, images: np.ndarray, judged: tuple[np.ndarray, np.ndarray]) -> None:
    """The descent by the network's answers, from what the exact search found, not repaired."""
    print("\n| price | search: kB, accuracy | by the answers: kB, accuracy | seconds |")
    print("|---|---|---|---|")
    words, model = vocabulary(3, 1), facts.model
    layers = {
        node: chooser(model, node, words, layer_moments(facts, INNER)[node].centred().gram[0])
        for node in INNER
    }
    data = dataset_from_arrays(
        {"image": images}, input_specs(model), purpose="--data", source="Fashion-MNIST"
    )
    kernels = sum(layer.weight[..., 0].size for layer in layers.values())
    for level in (0.1, 0.3, 1.0):
        found = {
            node: induce(one.weight, words, level / float(words.bits[-1] * kernels), one.metric)
            for node, one in layers.items()
        }
        start = {node: programs.choice for node, programs in found.items()}
        started = time.perf_counter()
        chosen = choose_programs(model, layers, data, level, start=start)
        seconds = time.perf_counter() - started
        cells = [
            f"{sum(one.bits for one in programs.values()) / 8e3:.1f}, "
            f"{right(facts, layers, programs, judged):.2%}"
            for programs in (found, chosen)
        ]
        print(f"| {level:g} | {cells[0]} | {cells[1]} | {seconds:.0f} |", flush=True)


def right(
    facts: Facts,
    layers: Mapping[str, Chooser],
    found: Mapping[str, LayerPrograms],
    judged: tuple[np.ndarray, np.ndarray],
) -> float:
    """Right answers with these programs in place of the kernels."""
    model = onnx.ModelProto()
    model.CopyFrom(facts.model)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node, layer in layers.items():
        values = found[node].weights.reshape(layer.shape).astype(np.float32)
        held[layer.parameter].CopyFrom(onnx.numpy_helper.from_array(values, layer.parameter))
    with open_session(model, ONE) as session:
        (scores, *_) = session.run({"image": judged[0]})
    return float((scores.argmax(axis=1) == judged[1]).mean())


def draw(points: dict[str, list[Point]], base: Point, path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.6), sharey=True)
    for axis, words in zip(axes, ("conv parameters", "kilobytes of conv weights"), strict=True):
        numbers = words == "conv parameters"
        for family, found in points.items():
            x = [p.numbers if numbers else p.bits / 8e3 for p in found]
            axis.plot(x, [100 * p.accuracy for p in found], "o-", ms=4, lw=1, label=family)
        axis.axhline(100 * base.accuracy, color="0.5", lw=0.8, ls="--")
        axis.axvline(base.numbers if numbers else base.bits / 8e3, color="0.5", lw=0.8, ls=":")
        if numbers:
            poster = ((18660, 91.67), (18660, 72.19), (4077, 90.31))
            axis.plot(*zip(*poster, strict=True), "k*", ms=8, label="poster (trained)")
        axis.set(xlabel=words, xscale="log", ylim=(70, 94))
        axis.tick_params(which="minor", labelbottom=False)
        axis.grid(visible=True, lw=0.3)
    axes[0].set_ylabel("accuracy on Fashion-MNIST, %")
    axes[0].legend(fontsize=7, loc="center")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def scaled(pixels: np.ndarray) -> np.ndarray:
    return np.asarray((pixels.astype(np.float32)[:, None] / 255 - 0.2860) / 0.3530, np.float32)


if __name__ == "__main__":
    main()
