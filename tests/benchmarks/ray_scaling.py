"""A search on a Ray cluster: the same table, whatever dies; seconds with one and two workers.

    python tests/benchmarks/ray_scaling.py --out DIR [--network resnet20_cifar10]

Two nodes with one processor each, on this machine. All 64 combinations of three superblocks are
built in this process, with one and with two workers of the cluster, with a worker killed halfway
and with a node killed halfway; then the command is killed (kill -9) and started again. Models must
be equal, byte by byte, in all of them.

What was measured (seconds per task, to pack, to unpack and set up, to hand a task out and its model
back; bytes) goes to DIR/measured.json, for `ray_simulation.py`.

The shared folder is found through ONNXCOMPRESS_DATA (default ../shared).
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster
from ray_simulation import Measured
from shared_models import CIFAR, CIFAR_TRAIN, IMAGENET, SHARED

from onnxcompress.config import Config
from onnxcompress.plan.registry import make_pass
from onnxcompress.runtime import Execution
from onnxcompress.search.driver import Request, search
from onnxcompress.search.executors import Local
from onnxcompress.search.ray_executor import RayCluster
from onnxcompress.search.workshop import Found, Shared, Task, Workshop

RATIOS = (1.0, 0.75, 0.5, 0.25)
IMAGES, JUDGED, SAMPLES = 600, 300, 128
"""Few, so that the comparison of executors takes minutes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", default="resnet20_cifar10")
    arguments = parser.parse_args()
    # Findings of another run would be taken for this one's.
    arguments.out.mkdir(parents=True)
    measured = measure(arguments.network, arguments.out)
    (arguments.out / "measured.json").write_text(json.dumps(asdict(measured)))


@dataclass
class Kept(Local):
    """Serial, and keeps what was shared, found, and how long it took."""

    elsewhere = True
    shared: list[Shared] = field(default_factory=list)
    found: dict[str, Found] = field(default_factory=dict)

    def run(self, shared: Shared, tasks: Sequence[Task]) -> Iterator[Found]:
        self.shared[:] = [shared]
        workshop = Workshop(shared)
        for task in tasks:
            self.found[task.key] = workshop(task)
            yield self.found[task.key]


def measure(network: str, out: Path) -> Measured:
    vectors = list(product(range(len(RATIOS)), repeat=3))[1:]
    for name, source, count in (("data", CIFAR_TRAIN, IMAGES), ("eval", CIFAR, JUDGED)):
        with np.load(SHARED / source) as arrays:
            np.savez(out / f"{name}.npz", **{key: arrays[key][:count] for key in arrays})
    config = Config(
        passes=(make_pass("exact"), make_pass("scbp", round_to=1)),
        data=str(out / "data.npz"),
        eval_data=str(out / "eval.npz"),
        preprocess=IMAGENET,
        execution=Execution(threads=2),
        samples=SAMPLES,
    )
    every = tuple(tuple(RATIOS[at] for at in vector) for vector in vectors)
    here = Kept()
    path = SHARED / "models" / f"{network}.onnx"
    started = time.perf_counter()
    search(path, config, Request(folder=out / "serial", also=every, count=1, executor=here))
    print(f"in process, with estimates and latencies: {time.perf_counter() - started:.0f} s")
    shared = here.shared[0]
    tasks = [Task(vector, briefly=False) for vector in vectors]
    seconds = np.array([here.found[task.key].seconds for task in tasks])
    print(f"{len(tasks)} networks: {seconds.sum():.0f} s of work in this process")

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    cluster.wait_for_nodes()
    for workers in (1, 2):
        took = built(RayCluster(workers=workers), shared, tasks, here.found)
        print(f"Ray, {workers} worker(s): {took:.1f} s, same models")
    took = built(RayCluster(), shared, tasks, here.found, halfway=kill_a_worker)
    print(f"Ray, a worker killed halfway: {took:.1f} s, same models")
    took = built(
        RayCluster(),
        shared,
        tasks,
        here.found,
        halfway=lambda: cluster.remove_node(second, allow_graceful=False),
    )
    print(f"Ray, one of two nodes killed halfway: {took:.1f} s, same models")
    hand_out = handing_out(np.mean([len(here.found[task.key].model) for task in tasks]))
    ray.shutdown()
    cluster.shutdown()
    killed_driver(path, out / "killed", here.found)

    started = time.perf_counter()
    octets = pickle.dumps(shared)
    packed = time.perf_counter()
    workshop = Workshop(pickle.loads(octets))  # noqa: S301
    workshop(Task((0, 0, 1), briefly=True))
    unpacked = time.perf_counter()
    workshop(Task((0, 0, 1), briefly=True))
    again = time.perf_counter() - unpacked
    return Measured(
        task=float(np.median(seconds)),
        task_spread=float(np.std(np.log(seconds))),
        pack=packed - started,
        unpack=max(0.0, unpacked - packed - again),
        hand_out=hand_out,
        keep=keeping(out / "kept", here.found[tasks[0].key]),
        shared_bytes=float(len(octets)),
        model_bytes=float(np.mean([len(here.found[task.key].model) for task in tasks])),
    )


def built(
    cluster: RayCluster,
    shared: Shared,
    tasks: Sequence[Task],
    expected: dict[str, Found],
    halfway: Any = None,
) -> float:
    """Seconds until all models are there; they must be those that this process made."""
    started, found = time.perf_counter(), dict[str, bytes]()
    for one in cluster.run(shared, tasks):
        assert one.task.key not in found, "done twice"
        found[one.task.key] = one.model
        if halfway is not None and len(found) == len(tasks) // 2:
            halfway()
    seconds = time.perf_counter() - started
    assert found == {task.key: expected[task.key].model for task in tasks}, "not the same"
    return seconds


def kill_a_worker() -> None:
    """kill -9 of a process that a task runs in."""
    for line in subprocess.run(["ps", "ax"], capture_output=True, text=True).stdout.splitlines():
        if "ray::_do" in line:
            os.kill(int(line.split()[0]), signal.SIGKILL)
            return
    raise AssertionError("no worker was found")


def handing_out(octets: float) -> float:
    """Seconds to hand out a task that does nothing, and to get a model's bytes back."""

    def nothing() -> bytes:
        return bytes(int(octets))

    remote = ray.remote(num_cpus=1)(nothing)
    ray.get([remote.remote() for _ in range(8)])
    started = time.perf_counter()
    for reference in [remote.remote() for _ in range(200)]:
        ray.get(reference)
    return (time.perf_counter() - started) / 200


def keeping(folder: Path, found: Found) -> float:
    """Seconds to write a model and its finding, as a search does."""
    from onnxcompress.report.write import commit
    from onnxcompress.search.store import Store

    store = Store(folder, "timing", force=True)
    started = time.perf_counter()
    for number in range(20):
        commit([(folder / f"{number}.onnx", lambda file: file.write(found.model))])
        store.put(str(number), {"error": found.error, "figures": dict(found.figures)})
    return (time.perf_counter() - started) / 20


def killed_driver(path: Path, folder: Path, expected: dict[str, Found]) -> None:
    """The command on a cluster, killed with -9 when a third is there, and started again."""
    every = [f"{a:g},{b:g},{c:g}" for a, b, c in product(RATIOS, repeat=3)][1:]
    command = [
        *(sys.executable, "-m", "onnxcompress", "search", str(path), str(folder)),
        *("--data", str(folder.parent / "data.npz"), "--eval", str(folder.parent / "eval.npz")),
        *("--round-to", "1", "--samples", str(SAMPLES)),
        *("--preprocess", IMAGENET, "--threads", "2", "--candidates", "1", "--executor", "ray"),
        *(part for text in every[:24] for part in ("--also", text)),
    ]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list(folder.glob("c*.onnx"))) < 8 and first.poll() is None:
        time.sleep(0.1)
    first.kill()
    first.wait()
    before = {p.name: p.stat().st_mtime_ns for p in folder.glob("c*.onnx")}
    started = time.perf_counter()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    after = {p.name: p.stat().st_mtime_ns for p in folder.glob("c*.onnx")}
    again = [name for name in before if after[name] != before[name]]
    models = {p.name: p.read_bytes() for p in folder.glob("c*.onnx")}
    ours = {found.model for found in expected.values()}
    print(
        f"the command killed with {len(before)} networks there: {len(again)} of them built again, "
        f"{len(after)} in the end after {time.perf_counter() - started:.0f} s more, "
        f"{sum(model in ours for model in models.values())} equal to those built in process"
    )


if __name__ == "__main__":
    main()
