"""How a search would go with up to 512 workers, from what one search was measured to take.

    python tests/benchmarks/ray_simulation.py MEASURED.json [--figure docs/figures/scaling.png]

`ray_scaling.py` writes the measurements. One driver hands tasks out and writes models down; workers
are busy with one network each; nodes get what is shared from those that have it.
"""

from __future__ import annotations

import argparse
import heapq
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from figures import pyplot

WORKERS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
CANDIDATES = (64, 256, 4096)
NETWORK = 1.25e9
"""Bytes per second between nodes: 10 Gbit/s."""

PER_NODE = 16
"""Workers of one node, which share what was sent to it."""

TIMED = 2.7
"""Seconds that timing one network takes (eight rounds of a third of a second)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    measured = Measured(**json.loads(arguments.measured.read_text()))
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
