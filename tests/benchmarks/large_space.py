"""A space too large to list: 100 evaluations against 1,000 random ones, and 20 networks of each.

    python tests/benchmarks/large_space.py --out DIR

Every residual block of ResNet-56 is a superblock of its own: 27 of them with four ratios each,
10^16 combinations. On expected objectives, what 100 evaluations of the search find is compared
with 1,000 random combinations; then 20 that stand for each are built, judged and timed. Printed is
the share of the space between best and worst that each dominates. Few inputs, so that it takes
minutes.

The shared folder is found through ONNXCOMPRESS_DATA (default ../shared).
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from pathlib import Path

import numpy as np
from shared_models import SHARED, SUBJECTS, split_inputs
from superblock_search import dominated

from onnxcompress.config import Config
from onnxcompress.plan.registry import make_pass
from onnxcompress.progress import Silent
from onnxcompress.runtime import Execution
from onnxcompress.search.driver import Request, Search
from onnxcompress.search.executors import Processes
from onnxcompress.search.explore import evolved
from onnxcompress.search.pareto import representatives
from onnxcompress.search.space import Vector
from onnxcompress.search.timings import BRIEF
from onnxcompress.search.workshop import Task

IMAGES, JUDGED, SAMPLES = 600, 500, 128
EVALUATED, DRAWN, BUILT = 100, 1000, 20
BOX = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    blocks = arguments.out / "blocks.yaml"
    names = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(9)]
    blocks.write_text("".join(f"{n.replace('.', '_')}: {n}/conv1\n" for n in names))
    subject = next(s for s in SUBJECTS if s.model == "resnet56_cifar10")
    calibration, judged = split_inputs(subject)
    config = Config(
        passes=(make_pass("exact"), make_pass("scbp", round_to=1, segments=str(blocks))),
        data=calibration.take(np.arange(IMAGES)),
        eval_data=judged.take(np.arange(JUDGED)),
        execution=Execution(threads=2),
        samples=SAMPLES,
    )
    started = time.perf_counter()
    request = Request(folder=arguments.out / "family", executor=Processes(2))
    path = SHARED / "models" / f"{subject.model}.onnx"
    search = Search(path, config, request, Silent())
    estimates, space = search.estimates(), search.space
    print(f"{space.size:.2g} combinations of {len(space.ratios)} superblocks; every one tried at "
          f"every ratio by itself: {time.perf_counter() - started:.0f} s")  # fmt: skip

    tracemalloc.start()
    started = time.perf_counter()
    found = evolved(space, estimates, 0, EVALUATED)
    seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{len(found)} evaluations: {seconds:.1f} s, {peak / 2**20:.1f} MiB")
    chance = np.random.default_rng(0)
    random = np.array([space.draw(chance) for _ in range(DRAWN)], dtype=np.intp)
    ours, theirs = estimates.objectives(found), estimates.objectives(random)
    compared("expected", {f"{len(found)} found": ours, f"{DRAWN} at random": theirs})

    some = {
        "found": found[representatives(ours, BUILT, 0)],
        "at random": random[:BUILT],
        "best of those at random": random[representatives(theirs, BUILT, 0)],
    }
    every: list[Vector] = [tuple(map(int, v)) for group in some.values() for v in group]
    every = list(dict.fromkeys(every))
    built = search.ledger.done([Task(vector, briefly=False) for vector in every])
    times = search.ledger.timed("latency", every, search.ledger.model, BRIEF)
    points = {
        v: (
            built[v]["figures"]["drop"]["points"],
            built[v]["figures"]["file_bytes"],
            next(iter(times[v].values()))["ratio"],
        )
        for v in every
    }
    compared(
        "built",
        {
            f"{len(group)} {label}": np.array([points[tuple(map(int, v))] for v in group])
            for label, group in some.items()
        },
    )


def compared(what: str, groups: dict[str, np.ndarray]) -> None:
    """The share of the box around all points that each group dominates."""
    together = np.concatenate(list(groups.values()))
    low, high = together.min(axis=0), together.max(axis=0)
    drawn = np.random.default_rng(1).uniform(low, high, (BOX, together.shape[1]))
    for label, points in groups.items():
        print(f"{what}: {label} dominate {dominated(points, drawn):.3f}", flush=True)


if __name__ == "__main__":
    main()
