"""A search on a Ray cluster: the same table, whatever dies; seconds with one and two workers.

    python tests/benchmarks/ray_scaling.py --out DIR [--network resnet20_cifar10]
        [--figure docs/figures/scaling.png]

Two nodes with one processor each, on this machine. All 64 combinations of three superblocks are
built in this process, with one and with two workers of the cluster, with a worker killed halfway
and with a node killed halfway; then the command is killed (kill -9) and started again. Models must
be equal, byte by byte, in all of them.

What was measured (seconds per task, to pack, to unpack and set up, to hand a task out and its model
back; bytes) then goes into a simulation of 2 to 512 workers, which says where a search stops
getting faster, and why.

The shared folder is found through ONNXCOMPRESS_DATA (default ../shared).
"""

from __future__ import annotations

import argparse
import heapq
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
from figures import pyplot
from ray.cluster_utils import Cluster
from shared_models import CIFAR, CIFAR_TRAIN, IMAGENET, SHARED

from onnxcompress.config import Config
from onnxcompress.plan.registry import make_pass
from onnxcompress.runtime import Execution
from onnxcompress.search.driver import Request, search
from onnxcompress.search.executors import Local
from onnxcompress.search.ray_executor import RayCluster
from onnxcompress.search.workshop import Found, Shared, Task, Workshop

RATIOS = (1.0, 0.75, 0.5, 0.25)
WORKERS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
CANDIDATES = (64, 256, 4096)
NETWORK = 1.25e9
"""Bytes per second between nodes: 10 Gbit/s."""

PER_NODE = 16
"""Workers of one node, which share what was sent to it."""

IMAGES, JUDGED, SAMPLES = 600, 300, 128
"""Few, so that the comparison of executors takes minutes."""

TIMED = 2.7
"""Seconds that timing one network takes (eight rounds of a third of a second)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--network", default="resnet20_cifar10")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--simulate", action="store_true", help="from what --out has measured")
    arguments = parser.parse_args()
    kept = arguments.out / "measured.json"
    if not arguments.simulate:
        arguments.out.mkdir(parents=True, exist_ok=True)
        measured = measure(arguments.network, arguments.out)
        kept.write_text(json.dumps(asdict(measured)))
    measured = Measured(**json.loads(kept.read_text()))
    print("\n".join(f"{name}: {value:.4g}" for name, value in asdict(measured).items()))
    simulated(measured, arguments.figure)


@dataclass(frozen=True)
class Measured:
    """Seconds and bytes of one search.

    Attributes:
        task: building one network, median and
        task_spread: the standard deviation of its logarithm.
        pack: packing what is shared.
        unpack: unpacking it and setting a workshop up, once per worker.
        hand_out: handing one task out and one model back, with nothing to do in between.
        keep: writing a model and its finding.
        shared_bytes: of what is shared.
        model_bytes: of a model, on average.
    """

    task: float
    task_spread: float
    pack: float
    unpack: float
    hand_out: float
    keep: float
    shared_bytes: float
    model_bytes: float


@dataclass
class Kept(Local):
    """Serial, and keeps what was shared, found, and how long it took."""

    elsewhere = True
    shared: list[Shared] = field(default_factory=list)
    found: dict[str, Found] = field(default_factory=dict)
    setup: float = 0.0

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


def simulated(measured: Measured, figure: Path | None) -> None:
    """Makespans of a search by workers, with the time that is not building told apart."""
    print("\n| networks | workers | s | speed-up | efficiency | most of the rest |")
    print("|---|---|---|---|---|---|")
    curves: dict[int, list[tuple[int, float]]] = {}
    for count in CANDIDATES:
        chance = np.random.default_rng(0)
        tasks = measured.task * np.exp(measured.task_spread * chance.standard_normal(count))
        alone = makespan(measured, tasks, 1)
        for workers in WORKERS:
            seconds = makespan(measured, tasks, workers)
            curves.setdefault(count, []).append((workers, alone / seconds))
            parts = {
                "sending what is shared": sent(measured, workers),
                "setting workers up": measured.unpack,
                "handing out and keeping": count * (measured.hand_out + measured.keep),
                "networks left over": float(tasks.max()),
            }
            most = max(parts, key=lambda name, p=parts: p[name])
            speed = alone / seconds
            print(
                f"| {count} | {workers} | {seconds:.0f} | {speed:.1f} | {speed / workers:.2f} | "
                f"{most} ({parts[most]:.1f} s) |"
            )
    serial = {count: count * TIMED for count in CANDIDATES}
    told = ", ".join(f"{count}: {seconds:.0f} s" for count, seconds in serial.items())
    print(f"\ntimed one after the other on one worker, if all were to be timed: {told}")
    if figure is not None:
        draw(curves, figure)


def sent(measured: Measured, workers: int) -> float:
    """Seconds until the last node has what is shared; nodes that have it pass it on."""
    nodes = -(-workers // PER_NODE)
    return measured.shared_bytes / NETWORK * (int(np.ceil(np.log2(nodes))) if nodes > 1 else 0)


def makespan(measured: Measured, tasks: np.ndarray, workers: int) -> float:
    """Seconds until the last model is kept: one driver, workers that are free at some time."""
    ready = measured.pack + sent(measured, workers) + measured.unpack
    free = [(ready, number) for number in range(workers)]
    heapq.heapify(free)
    driver, ends = measured.pack, list[float]()
    for seconds in tasks:
        at, number = heapq.heappop(free)
        # The driver hands a task out when a worker is free and it is itself.
        driver = max(driver, at if at > ready else driver) + measured.hand_out
        end = max(at, driver) + seconds + measured.model_bytes / NETWORK
        ends.append(end)
        heapq.heappush(free, (end, number))
    kept = 0.0
    for end in sorted(ends):
        kept = max(kept, end) + measured.keep
    return kept


def draw(curves: dict[int, list[tuple[int, float]]], path: Path) -> None:
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6, 4))
    axis.plot(WORKERS, WORKERS, "--", color="tab:gray", label="as many times as workers")
    for count, points in curves.items():
        workers, speeds = zip(*points, strict=True)
        axis.plot(workers, speeds, "o-", ms=4, label=f"{count} networks")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xlabel("workers")
    axis.set_ylabel("times faster than one (simulated)")
    axis.grid(visible=True, lw=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
