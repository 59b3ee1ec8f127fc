"""The interpreter against ONNX Runtime on whole networks, forwards and, by a step, backwards.

    python tests/benchmarks/interpreter.py DIR [DIR ...] [--most-megabytes 200]

Every .onnx file of the folders (`architectures.py` exports many): relative L2 distance of every
output on random inputs, two samples, and whether gradients come back finite in all weights. Of a
Sigmoid its operand is compared: ONNX Runtime has a Sigmoid to six digits behind the point, and
outputs may be smaller than that. Printed is a table; the last line says how many are within 1e-4.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

from onnxcompress.analyse.sizes import random_feeds, representative_sizes
from onnxcompress.errors import OnnxCompressError
from onnxcompress.finetune.network import Network
from onnxcompress.finetune.objective import last_maker
from onnxcompress.load.source import read_source

BOUND = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--most-megabytes", type=float, default=200.0)
    arguments = parser.parse_args()
    files = sorted(path for folder in arguments.folders for path in folder.glob("*.onnx"))
    within = refused = 0
    print("| file | trained | distance | gradients |\n|---|---|---|---|")
    for path in files:
        if path.stat().st_size > 1e6 * arguments.most_megabytes:
            continue
        try:
            trained, distance, finite = compared(read_source(path).model)
        except OnnxCompressError as error:
            refused += 1
            print(f"| {path.stem} | refused: {error} | | |", flush=True)
            continue
        within += distance <= BOUND
        gradients = "finite" if finite else "NOT finite"
        print(f"| {path.stem} | {trained:,} | {distance:.1e} | {gradients} |", flush=True)
    print(f"{within} of {len(files)} within {BOUND:g}, {refused} refused")


def compared(model: onnx.ModelProto) -> tuple[int, float, bool]:
    """Trained values, the largest relative distance of an output, whether gradients are finite."""
    open_shapes = {
        value.name: tuple(d.dim_value or 320 for d in value.type.tensor_type.shape.dim[1:])
        for value in model.graph.input
        if any(not d.dim_value for d in value.type.tensor_type.shape.dim[1:])
    }
    given = {name: (1, *shape) for name, shape in open_shapes.items()}
    sizes = representative_sizes(model, given, batch=None if given else 2, seen={})
    feeds = random_feeds(model, sizes, seed=0)
    for output in list(model.graph.output):
        maker = last_maker(model, output.name)
        if maker is not None and maker.op_type == "Sigmoid":
            kind = output.type.tensor_type.elem_type
            shown = onnx.helper.make_tensor_value_info(maker.input[0], kind, None)
            output.CopyFrom(shown)
    network = Network(model).eval()
    made = network.answers(feeds)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    distances = []
    for output, wanted in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        found = made[output.name].astype(np.float64)
        distances.append(float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)))
    answers = network(network.given(feeds))
    floating = [value for value in answers.values() if value.is_floating_point()]
    torch.autograd.backward(sum(value.square().mean() for value in floating))
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    finite = bool(gradients) and all(bool(torch.isfinite(g).all()) for g in gradients)
    return sum(p.numel() for p in network.parameters()), max(distances), finite


if __name__ == "__main__":
    main()
