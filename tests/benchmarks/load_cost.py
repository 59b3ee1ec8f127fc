"""What loading, canonicalising and saving costs beside plain onnx.load and onnx.save.

    python tests/benchmarks/load_cost.py [--repeats 5]

Builds a ResNet-50-sized (about 100 MB) and a VGG-16-sized (about 550 MB) graph with random
weights, then runs both ways alternately, each in a process of its own, and prints wall time and
peak resident memory with their ratios (medians). Imports are not timed: the clock starts when both
libraries are in memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHILD = """
import json, sys, time
from pathlib import Path
import onnx
from onnxcompress.load.canonical import canonicalise
from onnxcompress.load.source import read_source
from onnxcompress.report.write import write_model

kind, source, target = sys.argv[1:]
start = time.perf_counter()
if kind == "plain":
    onnx.save(onnx.load(source), target)
else:
    given = read_source(source)
    canonical = canonicalise(given.model)
    del given
    write_model(canonical.model, Path(target))
seconds = time.perf_counter() - start
# Not ru_maxrss, which starts at the size of the process that spawned this one.
status = Path("/proc/self/status").read_text()
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(json.dumps([seconds, peak]))
"""


class Builder:
    """Grows a chain of layers with random float32 weights."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.count = 0

    def constant(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        values = self.generator.standard_normal(shape, dtype=np.float32) * np.float32(0.01)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def node(self, op: str, inputs: list[str], **attributes: object) -> str:
        self.count += 1
        output = f"t{self.count}"
        self.nodes.append(
            helper.make_node(op, inputs, [output], name=f"n{self.count}", **attributes)
        )
        return output

    def conv(self, x: str, out: int, channels: int, kernel: int, stride: int = 1) -> str:
        pads = [kernel // 2] * 4
        inputs = [x, self.constant(out, channels, kernel, kernel), self.constant(out)]
        return self.node("Conv", inputs, pads=pads, strides=[stride, stride])

    def save(self, x: str, classes: int, path: Path) -> None:
        graph = helper.make_graph(
            self.nodes,
            "benchmark",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 224, 224])],
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", classes])],
            self.weights,
        )
        opset = [helper.make_opsetid("", 17)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def resnet50(path: Path) -> None:
    b = Builder()
    x = b.node("Relu", [b.conv("image", 64, 3, 7, 2)])
    x = b.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            step = stride if block == 0 else 1
            y = b.node("Relu", [b.conv(x, width, channels, 1)])
            y = b.node("Relu", [b.conv(y, width, width, 3, step)])
            y = b.conv(y, 4 * width, width, 1)
            side = b.conv(x, 4 * width, channels, 1, step) if block == 0 else x
            x, channels = b.node("Relu", [b.node("Add", [y, side])]), 4 * width
    x = b.node("Flatten", [b.node("GlobalAveragePool", [x])])
    b.save(b.node("Gemm", [x, b.constant(2048, 1000), b.constant(1000)]), 1000, path)


def vgg16(path: Path) -> None:
    b, x, channels = Builder(), "image", 3
    for widths in ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3):
        for width in widths:
            x, channels = b.node("Relu", [b.conv(x, width, channels, 3)]), width
        x = b.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("Flatten", [x])
    for size, width in ((25088, 4096), (4096, 4096)):
        x = b.node("Relu", [b.node("Gemm", [x, b.constant(size, width), b.constant(width)])])
    b.save(b.node("Gemm", [x, b.constant(4096, 1000), b.constant(1000)]), 1000, path)


def run(kind: str, source: Path, folder: Path) -> tuple[float, int]:
    command = [sys.executable, "-c", CHILD, kind, str(source), str(folder / f"{kind}.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print("| graph | file MB | plain s | ours s | ratio | plain peak MB | ours peak MB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name, build in (("ResNet-50", resnet50), ("VGG-16", vgg16)):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            build(folder / "in.onnx")
            rows: dict[str, list[tuple[float, int]]] = {"plain": [], "ours": []}
            for _ in range(repeats):
                for kind, found in rows.items():
                    found.append(run(kind, folder / "in.onnx", folder))
            (t0, m0), (t1, m1) = (
                (median(t for t, _ in found), median(m for _, m in found))
                for found in rows.values()
            )
            size = (folder / "in.onnx").stat().st_size
            print(
                f"| {name} | {size / 1e6:.0f} | {t0:.2f} | {t1:.2f} | {t1 / t0:.2f} | "
                f"{m0 / 1e6:.0f} | {m1 / 1e6:.0f} | {m1 / m0:.2f} |"
            )


if __name__ == "__main__":
    main()
