"""Small networks, far below their size, after distillation without labels.

    python tests/benchmarks/finetune_small.py [--only NAME] [--for 20e] [--stages 3] [--threads 2]
        [--batch 64] [--rate 2e-4] [--labels 0] [--augment none]

The embedded `vgg_tiny` with so few filters that its convolutions have at most the 4,077 parameters
of the learned language of Sehgal's poster, on Fashion-MNIST; LeNet-300-100 at 15 % and LeNet-5 at
5 % of their parameters, on MNIST. All 60,000 training images, without their labels unless these are
given a share; right answers
on the 10,000 test images: of the original, compressed and repaired, and trained. With --stages
cases that have a target go there in steps, each repaired and trained.

The shared folder is found through ONNXCOMPRESS_DATA (default ../shared).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxcompress as oc
from onnxcompress.embedded import embedded

SHARED = Path(os.environ.get("ONNXCOMPRESS_DATA", "../shared"))
FASHION = ("fashion_mnist/fashion", "scale=1/255,mean=0.2860,std=0.3530")
DIGITS = ("mnist/mnist", "scale=1/255,mean=0.1307,std=0.3081")


@dataclass(frozen=True)
class Case:
    """A network, its data, and how it is compressed."""

    network: str
    data: tuple[str, str]
    passes: tuple[str, ...] | None = None
    target: Mapping[str, float] = field(default_factory=dict)


CASES = (
    Case("vgg_tiny", FASHION, ("dsl:shared=filters,count=14",)),
    Case("vgg_tiny", FASHION, ("dsl:shared=filters,count=5+6+8",)),
    Case("lenet_300_100", DIGITS, target={"params": 0.15}),
    Case("lenet5_caffe", DIGITS, ("lnr",), target={"params": 0.05}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only")
    parser.add_argument("--for", dest="effort", default="20e")
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--labels", type=float, default=0.0)
    parser.add_argument("--augment", default="auto")
    arguments = parser.parse_args()
    own = (arguments.batch, arguments.rate, arguments.labels, arguments.augment)
    if arguments.stages > 1 and own != (None, None, 0.0, "auto"):
        parser.error("--batch, --rate, --labels and --augment are of one stage")
    for case in CASES:
        if arguments.only and arguments.only not in case.network:
            continue
        if arguments.stages > 1 and case.target:
            print(staged(case, arguments.effort, arguments.stages, arguments.threads), flush=True)
        elif arguments.stages == 1:
            print(measured(case, arguments), flush=True)


def measured(case: Case, arguments: argparse.Namespace) -> str:
    """One line about a case."""
    source, images = embedded(f"{case.network}.onnx"), inputs(case)
    small = oc.compress(source, **asked(case), **images, threads=arguments.threads)
    found = oc.distil(
        small.model,
        source,
        **images,
        effort=arguments.effort,
        threads=arguments.threads,
        batch=arguments.batch,
        rate=arguments.rate,
        labels=arguments.labels,
        augment=arguments.augment,
    )
    report = found.report
    rates = [report[k]["metric"]["value"] for k in ("before", "after")]
    convolutions = sum(
        int(np.prod(tensor.dims))
        for tensor in found.model.graph.initializer
        if any(n.op_type == "Conv" and tensor.name == n.input[1] for n in found.model.graph.node)
    )
    left = parameters(found.model) / parameters(onnx.load(source))
    return (
        f"{case.network} {', '.join(case.passes or ())}{dict(case.target) or ''}: "
        f"{100 * report['reference_metric']['value']:.2f} % original, {100 * rates[0]:.2f} % "
        f"repaired, {100 * rates[1]:.2f} % trained; {left:.4f} of the parameters, {convolutions:,} "
        f"weights of convolutions; {report['finetune']['seconds']:.0f} s"
    )


def staged(case: Case, effort: str, stages: int, threads: int) -> str:
    """The same in steps."""
    source = embedded(f"{case.network}.onnx")
    result = oc.compress(
        source, **asked(case), **inputs(case), threads=threads, finetune=effort, stages=stages
    )
    every = [*result.report["stages"], result.report]
    rates = [100 * one["after"]["metric"]["value"] for one in every]
    left = parameters(result.model) / parameters(onnx.load(source))
    return (
        f"{case.network} {dict(case.target)} in {stages} stages of {effort}: "
        f"{', '.join(f'{rate:.2f}' for rate in rates)} %, {left:.4f} of the parameters; "
        f"{sum(one['finetune']['seconds'] for one in every):.0f} s"
    )


def asked(case: Case) -> dict[str, Any]:
    return {"passes": case.passes, "target": case.target, "max_drop": 100.0, "gate": False}


def inputs(case: Case) -> dict[str, Any]:
    """All training images, and the test images."""
    stem, preprocess = case.data
    train, test = (arrays(stem, part) for part in ("train", "test"))
    return {"data": train, "eval_data": test, "preprocess": preprocess}


def arrays(stem: str, part: str) -> dict[str, np.ndarray]:
    with np.load(SHARED / "data" / f"{stem}_{part}.npz") as stored:
        return {name: stored[name] for name in ("x", "y")}


def parameters(model: onnx.ModelProto) -> int:
    """Floating-point numbers that a model holds."""
    return sum(
        int(np.prod(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )


if __name__ == "__main__":
    main()
