"""Sizes and MACs of torchvision's ResNets with narrower stages, from both exporters' files.

    python tests/benchmarks/superblock_counts.py [--out DIR]

ResNet-18, 34 and 50 (random weights) are exported by TorchScript and by dynamo, at 224 x 224; the
pass `scbp` (`within=even`) narrows their stages, and what is left is counted: parameters as
torchvision counts them (a bias of a folded convolution stands for a scale and a shift) and
multiplications, each over the whole network's. Needs torch, torchvision and onnxscript.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnx
from architectures import build, export

from onnxcompress.analyse.facts import analyse
from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.graph.cost import model_cost
from onnxcompress.load.canonical import canonicalise
from onnxcompress.plan.options import collect
from onnxcompress.plan.registry import make_pass
from onnxcompress.rewrite.manager import rewrite
from tests.passes.scbp.resnets import parameters_before_folding
from tests.passes.scbp.test_counts import TABLE

SIZE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = arguments.out or Path(tempfile.mkdtemp())
    print("| network | exporter | superblocks | ratios | size (paper's reading) | MACs |")
    print("|---|---|---|---|---|---|")
    worst = 0.0
    for depth in (18, 34, 50):
        module = build("torchvision", f"resnet{depth}")
        for exporter in ("torchscript", "dynamo"):
            path = folder / f"resnet{depth}-{exporter}.onnx"
            export(module, SIZE, path, exporter)
            model = canonicalise(onnx.load(path)).model
            sizes = {value.name: (1, 3, SIZE, SIZE) for value in model.graph.input}
            facts = analyse(model, sizes)
            whole = parameters_before_folding(model)
            for ratios, expected in TABLE.items():
                text = "+".join(f"{ratio:g}" for ratio in ratios)
                owner = make_pass("scbp", ranking="weight", within="even", widths=text)
                chosen = [offers[0] for offers in collect(facts, [owner]).sites]
                small = rewrite(model, chosen, {"scbp": owner}, strict=True).model
                found = (
                    parameters_before_folding(small) / whole,
                    model_cost(small, shapes_for(small, sizes)).macs / facts.total().macs,
                )
                apart = [abs(a - b) for a, b in zip(found, expected[depth], strict=True)]
                worst = max(worst, *apart)
                told = [f"{a:.4f} ({b})" for a, b in zip(found, expected[depth], strict=True)]
                print(
                    f"| ResNet-{depth} ({whole:,}) | {exporter} | {len(ratios)} | {text} | "
                    f"{' | '.join(told)} |",
                    flush=True,
                )
    print(f"\nfarthest from the table: {worst:.4f}")


if __name__ == "__main__":
    main()
