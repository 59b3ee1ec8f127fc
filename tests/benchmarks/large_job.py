"""A whole job on a network of the size of ResNet-50: seconds by stage, and memory.

    python tests/benchmarks/large_job.py [--images 256] [--pass lnr --pass tucker2 ...]
    python tests/benchmarks/large_job.py --layers [--images 32]

ResNet-50 (He et al. 2016, table 1, stride in the 3x3) with random weights and the running
statistics of photographs: seconds and memory are looked at, not accuracy. Calibrated on photographs
of `imagenet_samples` at 224 x 224, to half the multiplications. With --layers the layers and what
could replace them are timed, for the first time and again, and nothing more is done. Needs torch,
pillow and the shared folder (ONNXCOMPRESS_DATA, default ../shared).
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from repair_networks import photograph
from torch import nn

import onnxcompress as oc
from onnxcompress.progress import Silent

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, and what the block read."""

    def __init__(self, read: int, width: int, stride: int) -> None:
        super().__init__()
        made = 4 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(read, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            *(nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, made, 1, bias=False), nn.BatchNorm2d(made)),
        )
        self.skip: nn.Module = nn.Identity()
        if read != made:
            self.skip = nn.Sequential(
                nn.Conv2d(read, made, 1, stride, bias=False), nn.BatchNorm2d(made)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        *(nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    ]
    read = 64
    for width, count, stride in STAGES:
        for at in range(count):
            layers.append(Bottleneck(read, width, stride if at == 0 else 1))
            read = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(read, 1000))


def images(count: int) -> np.ndarray:
    """Photographs [N, 3, 224, 224]."""
    rows = np.random.default_rng(0).permutation(1000)[:count]
    stack = np.stack([photograph(n, "rgb", (224, 224)) for n in rows])
    scaled = (stack - np.float32(MEAN)[:, None, None]) / np.float32(DEVIATION)[:, None, None]
    return np.ascontiguousarray(scaled, dtype=np.float32)


class TimedError(Exception):
    """Layers are timed, and the job need not go on."""


class UntilTimed(Silent):
    """Ends a job once layers are timed."""

    def __init__(self) -> None:
        self.began = 0.0
        self.seconds = 0.0

    def stage(self, name: str) -> None:
        if self.began:
            self.seconds = time.perf_counter() - self.began
            raise TimedError
        if name == "measure layers":
            self.began = time.perf_counter()


def layers_timed(path: Path, shown: np.ndarray) -> float:
    """Seconds that a job for a latency takes to time layers."""
    progress = UntilTimed()
    try:
        oc.compress(
            path,
            data={"x": shown},
            target={"latency": 0.7},
            shapes={"x": (1, 3, 224, 224)},
            threads=2,
            progress=progress,
        )
    except TimedError:
        return progress.seconds
    raise SystemExit("no layer was timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--pass", dest="passes", action="append")
    parser.add_argument("--layers", action="store_true", help="time layers only, cold and warm")
    arguments = parser.parse_args()
    shown = images(arguments.images)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.onnx"
        made = network().train()
        with torch.no_grad():
            for part in np.array_split(shown[:64], 8):
                made(torch.from_numpy(part))
        torch.onnx.export(
            made.eval(),
            (torch.from_numpy(shown[:1]),),
            path,
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
            opset_version=17,
        )
        del made
        if arguments.layers:
            os.environ["XDG_CACHE_HOME"] = folder
            for name in ("cold", "warm"):
                print(f"layers timed, {name}: {layers_timed(path, shown):.1f} s", flush=True)
            return
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        result = oc.compress(
            path,
            data={"x": shown},
            passes=arguments.passes or ["lnr", "tucker2", "svd"],
            target={"macs": arguments.macs},
            max_drop=100.0,
            min_snr=-100.0,
            shapes={"x": (1, 3, 224, 224)},
        )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"macs {result.report['remaining']['macs']:.3f}, {seconds:.0f} s")
    print(", ".join(f"{name} {spent:.0f} s" for name, spent in result.report["seconds"].items()))
    print(f"peak memory {peak / 2**20:.1f} GiB, {before / 2**20:.1f} of them before the job")


if __name__ == "__main__":
    main()
