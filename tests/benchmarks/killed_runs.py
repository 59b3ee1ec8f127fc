"""kill -9 at random moments of a run, then the same command: the same bytes, and little done twice.

    python tests/benchmarks/killed_runs.py --out DIR [--kills 5] [--seed 0] [--target macs=0.6]

ResNet-20 with the gate on. One run is left alone; another, with the same latency table, is killed
again and again, each time after a random share of what is left of it, and then left to finish.
Times of whole networks are measured afresh by each run, so the target is a counted one.

The shared folder is found through ONNXCOMPRESS_DATA (default ../shared).
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from shared_models import CIFAR, CIFAR_TRAIN, IMAGENET, SHARED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="macs=0.6")
    arguments = parser.parse_args()
    whole, killed = arguments.out / "whole", arguments.out / "killed"
    for folder in (whole, killed):
        folder.mkdir(parents=True)
    seconds, _ = run(whole, arguments.target, None)
    print(f"uninterrupted: {seconds:.1f} s")
    (killed / "run").mkdir()
    shutil.copy(whole / "run" / "latency.json", killed / "run")
    moments = random.Random(arguments.seed)
    spent = 0.0
    for _ in range(arguments.kills):
        # A share of what is left: layers are timed already, and every run begins farther on.
        limit = moments.uniform(0.05, 0.5) * max(seconds / 2 - spent, 5.0)
        taken, told = run(killed, arguments.target, limit)
        spent += taken
        how = "killed" if taken >= limit else "done"
        print(f"{how} after {taken:.1f} s; it began with {told} findings")
    taken, told = run(killed, arguments.target, None)
    print(f"left to finish: {taken:.1f} s; it began with {told} findings")
    print(f"{spent + taken:.1f} s in all")
    same = (whole / "out.onnx").read_bytes() == (killed / "out.onnx").read_bytes()
    print(f"same bytes: {'yes' if same else 'NO'}")
    raise SystemExit(not same)


def run(folder: Path, target: str, limit: float | None) -> tuple[float, int]:
    """Run the job, for so long at most; seconds, and the findings that it began with."""
    started = time.monotonic()
    command = [
        *(sys.executable, "-m", "onnxcompress", "compress"),
        *(SHARED / "models" / "resnet20_cifar10.onnx", folder / "out.onnx"),
        *("--data", SHARED / CIFAR_TRAIN, "--eval", SHARED / CIFAR, "--preprocess", IMAGENET),
        *("--target", target, "--max-drop", "5", "--gate", "on", "--force"),
        *("--run", folder / "run"),
    ]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = 0
        log.seek(0)
        words = log.read()
    if code:
        raise SystemExit(words[-2000:])
    known = re.search(r"(\d+) findings are there", words)
    return time.monotonic() - started, int(known.group(1)) if known else 0


if __name__ == "__main__":
    main()
