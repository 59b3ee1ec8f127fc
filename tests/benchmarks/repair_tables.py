"""Accuracy without training: ResNets for CIFAR-10, no labels, 1,024 images, beside onnxsim.

    python tests/benchmarks/repair_tables.py [--nets resnet56_cifar10 resnet20_cifar10] [--seeds 3]

Every row is a whole job (`onnxcompress.compress`), calibrated on 1,024 unlabelled training images
drawn anew for every seed, and scored on the 1,000 lossless test images, which no choice has seen.
Needs the shared folder (ONNXCOMPRESS_DATA, default ../shared), onnxsim, and onnx-tool as the
outside counter of MACs (pip install onnxsim onnx-tool).
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_tool
import onnxsim

import onnxcompress as oc
from onnxcompress.runtime import open_session

SHARED = Path(os.environ.get("ONNXCOMPRESS_DATA", "../shared"))
IMAGES = SHARED / "data" / "cifar10_lossless"
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
MIXED = ("lnr:round_to=2,branches=false", "tucker2:round_to=1,rungs=24")
PRUNING = ("lnr:round_to=2,branches=false",)
JOBS = {
    "resnet56_cifar10": [(0.75, MIXED), (0.5, MIXED), (0.4, MIXED), (0.5, PRUNING)],
    "resnet20_cifar10": [(0.75, MIXED), (0.5, MIXED), (0.5, PRUNING)],
}
UNREPAIRED = ("prune:criterion=weight,round_to=2,branches=false",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--macs", type=float, nargs="+", help="only these targets")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    print("| net | method | MACs | MACs (onnx-tool) | parameters | top-1 | per seed | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for net in arguments.nets:
        model = onnx.load(SHARED / "models" / f"{net}.onnx")
        row(net, "original", [model], model, 0.0)
        if arguments.peers:
            peers(net, model)
        for macs, passes in JOBS[net]:
            if arguments.macs and macs not in arguments.macs:
                continue
            start = time.perf_counter()
            made = [compressed(model, passes, macs, seed) for seed in range(arguments.seeds)]
            seconds = (time.perf_counter() - start) / arguments.seeds
            row(net, f"`{' '.join(passes)}`, macs={macs}", made, model, seconds)


def peers(net: str, model: onnx.ModelProto) -> None:
    """Pruning without repair: by magnitude, and onnxsim's by Wanda at two sparsities."""
    for macs in (0.75, 0.5):
        start = time.perf_counter()
        made = compressed(model, UNREPAIRED, macs, 0, repair="off")
        row(net, f"magnitude, no repair, macs={macs}", [made], model, time.perf_counter() - start)
    name = model.graph.input[0].name
    calibration = [{name: images("train4000", 1024)[0]}]
    for sparsity in (0.25, 0.5):
        start = time.perf_counter()
        made = onnxsim.apply_structured_wanda_pruning(
            model,
            calibration_data=calibration,
            sparsity=sparsity,
            providers=["CPUExecutionProvider"],
        )
        seconds = time.perf_counter() - start
        row(net, f"onnxsim Wanda, sparsity {sparsity}", [made], model, seconds)


def compressed(
    model: onnx.ModelProto, passes: tuple[str, ...], macs: float, seed: int, **options: str
) -> onnx.ModelProto:
    """One whole job on 1,024 unlabelled images."""
    pool, _ = images("train4000", 4000)
    chosen = np.sort(np.random.default_rng(100 + seed).permutation(len(pool))[:1024])
    name = model.graph.input[0].name
    test, labels = images("test1000", 1000)
    return oc.compress(
        model,
        data={name: pool[chosen]},
        eval_data={name: test, "y": labels},
        passes=list(passes),
        target={"macs": macs},
        max_drop=100,
        seed=seed,
        **options,
    ).model


def row(
    net: str, label: str, made: list[onnx.ModelProto], whole: onnx.ModelProto, seconds: float
) -> None:
    """One line of the table: the mean over seeds."""
    scores = [top1(model) for model in made]
    ours = np.mean([counted(m)[0] / counted(whole)[0] for m in made])
    parameters = np.mean([counted(m)[1] / counted(whole)[1] for m in made])
    outside = np.mean([outside_macs(m) / outside_macs(whole) for m in made])
    each = " ".join(f"{score:.1f}" for score in scores)
    print(
        f"| {net} | {label} | {ours:.3f} | {outside:.3f} | {parameters:.3f} | "
        f"{np.mean(scores):.2f} | {each} | {seconds:.0f} |",
        flush=True,
    )


def counted(model: onnx.ModelProto) -> tuple[int, int]:
    """MACs and parameters as onnxcompress counts them."""
    from onnxcompress.analyse.shapes import shapes_for
    from onnxcompress.graph.cost import model_cost

    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    del fresh.graph.value_info[:]
    cost = model_cost(fresh, shapes_for(fresh, {fresh.graph.input[0].name: (1, 3, 32, 32)}))
    return cost.macs, cost.params


def outside_macs(model: onnx.ModelProto) -> float:
    """MACs of Conv, Gemm and MatMul as onnx-tool counts them, biases included."""
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    del fresh.graph.value_info[:]
    graph = onnx_tool.Model(fresh, mcfg={"verbose": False}).graph
    name = fresh.graph.input[0].name
    graph.shape_infer({name: np.zeros((1, 3, 32, 32), np.float32)})
    graph.profile()
    layers = {"Conv", "Gemm", "MatMul"}
    return float(sum(node.macs[0] for node in graph.nodemap.values() if node.op_type in layers))


def top1(model: onnx.ModelProto) -> float:
    """Per cent right of the 1,000 test images."""
    test, labels = images("test1000", 1000)
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    del fresh.graph.value_info[:]
    with open_session(fresh) as session:
        answers = np.concatenate(
            [session.run({session.input_names[0]: part})[0] for part in np.split(test, 10)]
        )
    return float((answers.argmax(axis=1) == labels).mean() * 100)


def images(part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a part as the networks take them [N, 3, 32, 32], and their labels."""
    stored = np.load(IMAGES / f"cifar10_lossless_{part}.npz")
    scaled = (stored["x"][:count].astype(np.float32) / 255 - MEAN) / DEVIATION
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32), stored["y"][:count]


if __name__ == "__main__":
    main()
