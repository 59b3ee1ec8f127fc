"""Families of narrower networks: what a search chooses, against uniform and random widths.

    python tests/benchmarks/superblock_search.py --out DIR [--only NAME] [--random 12]
        [--figure docs/figures/superblocks.png]

Three (or four) superblocks with four ratios each, no rounding, no training, two processes. The
search chooses a dozen of all combinations by its estimates; besides, uniform widths and a dozen
random combinations are built, judged on the same inputs and timed. Printed are all networks, how
much of the space between the best and the worst each selection dominates, and which uniform and
random ones a chosen one matches or beats.

DIR keeps what was found: the same command goes on from there. The shared folder is found through
ONNXCOMPRESS_DATA (default ../shared).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from figures import pyplot
from shared_models import SHARED, SUBJECTS, split_inputs

from onnxcompress.config import Config
from onnxcompress.plan.registry import make_pass
from onnxcompress.runtime import Execution
from onnxcompress.search.driver import Request, search
from onnxcompress.search.executors import Processes
from onnxcompress.search.pareto import front
from onnxcompress.search.results import Family, Row
from onnxcompress.search.space import labelled

NETWORKS = ("resnet56_cifar10", "resnet20_cifar10", "squeezenet1.1_fp16w_imagenet")
RATIOS = (1.0, 0.75, 0.5, 0.25)
DOZEN = 12
BOX = 200_000
"""Random points that the dominated share of the space is measured with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", help="a part of a network's name")
    parser.add_argument("--random", type=int, default=DOZEN, help="how many at random")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    drawn = {}
    for name in NETWORKS:
        if not arguments.only or any(part in name for part in arguments.only):
            drawn[name] = compared(name, arguments.out / name, arguments.random)
    if arguments.figure:
        draw(drawn, arguments.figure)


def compared(name: str, folder: Path, count_random: int) -> tuple[Family, dict[str, list[int]]]:
    """A search, then the others; rows by how they were chosen."""
    subject = next(s for s in SUBJECTS if s.model == name)
    calibration, judged = split_inputs(subject)
    config = Config(
        passes=(
            make_pass("exact"),
            make_pass("scbp", round_to=1, ratios="0.75+0.5+0.25"),
        ),
        data=calibration,
        eval_data=judged,
        execution=Execution(threads=2),
    )
    request = Request(folder=folder, count=DOZEN, executor=Processes(2))
    path = SHARED / "models" / f"{name}.onnx"
    started = time.perf_counter()
    first = search(path, config, request)
    seconds = time.perf_counter() - started
    chosen = [row.ratios for row in first.rows]
    count = len(first.superblocks)
    uniform = [(ratio,) * count for ratio in RATIOS[1:]]
    rest = [c for c in product(RATIOS, repeat=count) if c not in chosen and min(c) < 1.0]
    chance = np.random.default_rng(0)
    random = [rest[at] for at in chance.choice(len(rest), count_random, replace=False)]
    also = tuple(dict.fromkeys([*chosen, *uniform, *random]))
    family = search(path, config, replace(request, also=also))
    at = {row.ratios: number for number, row in enumerate(family.rows)}
    groups = {
        "chosen": [at[c] for c in chosen],
        "uniform": [at[c] for c in uniform],
        "random": [at[c] for c in random if c not in uniform],
    }
    told(name, family, groups, seconds)
    return family, groups


def told(name: str, family: Family, groups: dict[str, list[int]], seconds: float) -> None:
    """The table, and how selections compare."""
    print(
        f"\n{name}: {len(groups['chosen'])} of {family.allowed['combinations']} in {seconds:.0f} s"
    )
    for block in family.superblocks:
        print(f"  superblock {block['name']}: {', '.join(block['layers'][:3])}, ...")
    metric = family.rows[0].figures["before"]
    print(f"  {metric['name']} of the original: {metric['value']:.4f}\n")
    print("| ratios | chosen | points lost | parameters | MACs | file | latency |")
    print("|---|---|---|---|---|---|---|")
    for number, row in enumerate(family.rows):
        how = ", ".join(label for label, members in groups.items() if number in members)
        print(f"| {labelled(row.ratios)} | {how} | {row.loss:.1f} | {shares(row, family)} |")
    points = family.points
    low, high = points.min(axis=0), points.max(axis=0)
    drawn = np.random.default_rng(1).uniform(low, high, (BOX, 3))
    print()
    for label, members in groups.items():
        print(f"dominated by {label} ({len(members)}): {dominated(points[members], drawn):.3f}")
    best = set(front(points))
    print(f"of {len(best)} on the front of all {len(points)}, chosen: "
          f"{len(best & set(groups['chosen']))}")  # fmt: skip
    for label in ("uniform", "random"):
        for axes, words in (((0, 1), "size"), ((0, 2), "latency")):
            matched = [
                number
                for number in groups[label]
                if any(
                    np.all(points[c][list(axes)] <= points[number][list(axes)])
                    for c in groups["chosen"]
                )
            ]
            some = f"{len(matched)} of {len(groups[label])}"
            print(f"{label}, loss and {words}: matched or beaten {some}")


def shares(row: Row, family: Family) -> str:
    parts = [row.figures[k] / family.original[k] for k in ("params", "macs", "file_bytes")]
    return " | ".join(f"{value:.3f}" for value in (*parts, row.ratio))


def dominated(points: np.ndarray, drawn: np.ndarray) -> float:
    """The share of random points that one of these is no worse than."""
    best = points[front(points)]
    beaten = np.zeros(len(drawn), dtype=bool)
    for one in best:
        beaten |= np.all(one <= drawn, axis=1)
    return float(beaten.mean())


def draw(families: dict[str, tuple[Family, dict[str, list[int]]]], path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(len(families), 2, figsize=(10, 3.4 * len(families)), squeeze=False)
    marks = {
        "random": ("x", "tab:gray"),
        "uniform": ("s", "tab:orange"),
        "chosen": ("o", "tab:blue"),
    }
    for row, (name, (family, groups)) in zip(axes, families.items(), strict=True):
        points = family.points
        size = points[:, 1] / family.original["file_bytes"]
        for axis, values, label in zip(row, (size, points[:, 2]), ("file", "latency"), strict=True):
            for group, (mark, colour) in marks.items():
                at = groups[group]
                axis.scatter(values[at], points[at, 0], marker=mark, c=colour, s=28, label=group)
            axis.set_xlabel(f"{label}, of the original")
            axis.grid(visible=True, lw=0.3)
        row[0].set_ylabel(f"{name.split('_')[0]}: points lost")
    axes[0][1].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
