"""Small networks, far below their size, after distillation without labels.

    python tests/benchmarks/finetune_small.py [--only NAME] [--for 20e] [--threads 2]

The embedded `vgg_tiny` with so few filters that its convolutions have at most the 4,077 parameters
of the learned language of Sehgal's poster, on Fashion-MNIST; LeNet-300-100 at 15 % and LeNet-5 at
5 % of their parameters, on MNIST. All 60,000 training images, without their labels; right answers
on the 10,000 test images: of the original, compressed and repaired, and trained.

The shared folder is found through ONNXCOMPRESS_DATA (default ../shared).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
    Case("lenet5_caffe", DIGITS, target={"params": 0.05}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only")
    parser.add_argument("--for", dest="effort", default="20e")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    for case in CASES:
        if arguments.only and arguments.only not in case.network:
            continue
        print(measured(case, arguments.effort, arguments.threads), flush=True)


def measured(case: Case, effort: str, threads: int) -> str:
    """One line about a case."""
    stem, preprocess = case.data
    with np.load(SHARED / "data" / f"{stem}_train.npz") as arrays:
        train = {"x": arrays["x"]}
    with np.load(SHARED / "data" / f"{stem}_test.npz") as arrays:
        test = {"x": arrays["x"], "y": arrays["y"]}
    source = embedded(f"{case.network}.onnx")
    small = oc.compress(
        source,
        data=train,
        eval_data=test,
        preprocess=preprocess,
        passes=case.passes,
        target=case.target,
        max_drop=100.0,
        gate=False,
        threads=threads,
    )
    found = oc.distil(
        small.model,
        source,
        data=train,
        eval_data=test,
        preprocess=preprocess,
        effort=effort,
        threads=threads,
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


def parameters(model: onnx.ModelProto) -> int:
    """Floating-point numbers that a model holds."""
    return sum(
        int(np.prod(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )


if __name__ == "__main__":
    main()
