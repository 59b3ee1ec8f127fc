"""How long planning takes for a network of 200 layers, without the measuring of latencies.

    python tests/benchmarks/planner_time.py [--layers 200] [--samples 64] [--target macs=0.6]

The network is a chain of residual blocks of two 3x3 convolutions with random weights. Printed are
the seconds of every stage up to the plan, without data (ranks by the weights alone) and with it
(probes and trials included), and those of the solver alone on as many sites and candidates, with
its gap.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import onnx

import onnxcompress as oc
from onnxcompress.config import Config
from onnxcompress.pipeline import plan_only
from onnxcompress.plan.knapsack import least_damage
from onnxcompress.plan.recipes import BALANCED, recipe
from onnxcompress.plan.targets import parse_target
from onnxcompress.progress import Silent, Timekeeper

WIDTH, SIZE, CANDIDATES = 32, 16, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--target", default="macs=0.6")
    arguments = parser.parse_args()
    model = chain(arguments.layers)
    images = np.random.default_rng(1).standard_normal((arguments.samples, 3, SIZE, SIZE))
    for label, data in (("without data", None), ("with data", {"x": images.astype(np.float32)})):
        stages, words = planned(model, data, arguments.target)
        told = ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())
        print(f"{label}: {sum(stages.values()):.1f} s ({told}); {words}")
    seconds, gap = solved(2 * arguments.layers)
    sites = 2 * arguments.layers
    print(f"solver, {sites} sites of {CANDIDATES} candidates: {seconds:.2f} s, gap {gap:.1g}")


def chain(layers: int) -> onnx.ModelProto:
    """Residual blocks of two convolutions behind a stem, and a classifier."""
    generator = np.random.default_rng(0)
    nodes, constants = [], []

    def conv(name: str, source: str, channels: int) -> str:
        scale = np.sqrt(2.0 / (9 * channels))
        weight = generator.standard_normal((WIDTH, channels, 3, 3)) * scale
        constants.append(onnx.numpy_helper.from_array(weight.astype(np.float32), f"{name}_w"))
        nodes.append(
            onnx.helper.make_node("Conv", [source, f"{name}_w"], [name], name, pads=[1, 1, 1, 1])
        )
        return name

    def relu(source: str) -> str:
        nodes.append(onnx.helper.make_node("Relu", [source], [f"{source}_r"], f"{source}_r"))
        return f"{source}_r"

    stream = relu(conv("stem", "x", 3))
    for block in range((layers - 1) // 2):
        inner = relu(conv(f"a{block}", stream, WIDTH))
        branch = conv(f"b{block}", inner, WIDTH)
        nodes.append(onnx.helper.make_node("Add", [stream, branch], [f"s{block}"], f"s{block}"))
        stream = relu(f"s{block}")
    nodes.append(onnx.helper.make_node("GlobalAveragePool", [stream], ["pooled"], "pool"))
    nodes.append(onnx.helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    head = generator.standard_normal((10, WIDTH)).astype(np.float32)
    constants.append(onnx.numpy_helper.from_array(head, "head_w"))
    nodes.append(onnx.helper.make_node("Gemm", ["flat", "head_w"], ["y"], "head", transB=1))
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "chain",
        [onnx.helper.make_tensor_value_info("x", float32, ["N", 3, SIZE, SIZE])],
        [onnx.helper.make_tensor_value_info("y", float32, ["N", 10])],
        constants,
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def planned(model: onnx.ModelProto, data: Any, target: str) -> tuple[dict[str, float], str]:
    """Seconds by stage, and how many layers the plan rewrites."""
    clock = Timekeeper(Silent())
    config = Config(
        passes=recipe(BALANCED, targeted=True),
        targets=dict([parse_target(target)]),
        data=data,
        max_drop=100.0,
    )
    try:
        plan, _ = plan_only(model, config, clock)
    except oc.BoundError as error:
        return dict(clock.seconds()), str(error)
    return dict(clock.seconds()), f"{len(plan.chosen)} rewrites"


def solved(sites: int) -> tuple[float, float]:
    """Seconds and gap of the solver on damages that grow with the square of what is saved."""
    generator = np.random.default_rng(2)
    saved = [np.sort(generator.uniform(0.0, 1.0, CANDIDATES)).tolist() for _ in range(sites)]
    damage = [[float(s * s * generator.uniform(0.5, 2.0)) for s in one] for one in saved]
    demand = 0.5 * sum(max(one) for one in saved)
    started = time.perf_counter()
    found = least_damage(damage, {"a": saved}, {"a": demand})
    assert found is not None
    return time.perf_counter() - started, found.gap


if __name__ == "__main__":
    main()
