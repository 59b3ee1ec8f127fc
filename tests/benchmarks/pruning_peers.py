"""One-shot pruning of ResNet-56 without repair, ours beside onnxsim's, judged on the same images.

    python tests/benchmarks/pruning_peers.py [--samples 1024] [--macs 0.75 0.6] [--ours PASS ...]

Needs onnxsim (pip install onnxsim) and the shared folder (ONNXCOMPRESS_DATA, default ../shared).
Top-1 is measured on the 1,000 lossless CIFAR-10 test images, calibration uses training images.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import onnx
import onnxsim

import onnxcompress as oc
from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.graph.cost import Cost, model_cost
from onnxcompress.runtime import open_session

SHARED = Path(os.environ.get("ONNXCOMPRESS_DATA", "../shared"))
MODEL = SHARED / "models" / "resnet56_cifar10.onnx"
IMAGES = SHARED / "data" / "cifar10_lossless"
PREPROCESS = "scale=1/255,mean=[.485,.456,.406],std=[.229,.224,.225]"
OURS = (
    "prune:criterion=weight",
    *(
        f"prune:criterion={name},round_to=2"
        for name in (
            "weight",
            "activation-mean",
            "activation-std",
            "apoz",
            "mutual-information",
            "obd",
            "taylor",
            "taylor-gate",
            "oracle-abs",
            "oracle-loss",
            "random",
        )
    ),
    "prune:criterion=taylor,per_step=4,round_to=2",
    "prune:criterion=taylor,per_step=64,scope=global,round_to=2",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--macs", type=float, nargs="+", default=[0.75, 0.6])
    parser.add_argument("--ours", nargs="+", default=OURS)
    parser.add_argument("--sparsity", type=float, default=0.25)
    arguments = parser.parse_args()
    model = onnx.load(MODEL)
    whole = _cost(model)
    print("| method | top-1 | MACs | parameters | seconds |")
    print("|---|---|---|---|---|")
    _row("original", model, whole, 0.0)
    calibration = [{_input(model): _images("train4000", arguments.samples)[0]}]
    for label, prune in (
        (
            "onnxsim L2",
            lambda: onnxsim.apply_structured_pruning(
                onnx.load(MODEL), sparsity=arguments.sparsity, importance_norm="l2"
            ),
        ),
        (
            "onnxsim Wanda",
            lambda: onnxsim.apply_structured_wanda_pruning(
                onnx.load(MODEL),
                calibration_data=calibration,
                sparsity=arguments.sparsity,
                providers=["CPUExecutionProvider"],
            ),
        ),
    ):
        start = time.perf_counter()
        pruned = prune()
        _row(f"{label}, sparsity {arguments.sparsity}", pruned, whole, time.perf_counter() - start)
    for options in arguments.ours:
        for macs in arguments.macs:
            start = time.perf_counter()
            result = oc.compress(
                MODEL,
                data=str(IMAGES / "cifar10_lossless_train4000.npz"),
                eval_data=str(IMAGES / "cifar10_lossless_test1000.npz"),
                preprocess=PREPROCESS,
                passes=[options],
                target={"macs": macs},
                max_drop=100,
                repair="off",
            )
            _row(f"`{options}`, MACs {macs}", result.model, whole, time.perf_counter() - start)


def _row(label: str, model: onnx.ModelProto, whole: Cost, seconds: float) -> None:
    cost = _cost(model)
    shares = f"{cost.macs / whole.macs:.3f} | {cost.params / whole.params:.3f}"
    print(f"| {label} | {_top1(model):.1f} | {shares} | {seconds:.0f} |", flush=True)


def _cost(model: onnx.ModelProto) -> Cost:
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    del fresh.graph.value_info[:]
    return model_cost(fresh, shapes_for(fresh, {_input(model): (1, 3, 32, 32)}))


def _top1(model: onnx.ModelProto) -> float:
    images, labels = _images("test1000", 1000)
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    del fresh.graph.value_info[:]
    with open_session(fresh) as session:
        (scores, *_) = session.run({_input(model): images})
    return float((scores.argmax(axis=1) == labels).mean() * 100)


def _images(part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    stored = np.load(IMAGES / f"cifar10_lossless_{part}.npz")
    scaled = stored["x"][:count].astype(np.float32) / 255
    scaled = (scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32), stored["y"][:count]


def _input(model: onnx.ModelProto) -> str:
    return str(model.graph.input[0].name)


if __name__ == "__main__":
    main()
