"""Nothing that is written is slower: every shared network with every recipe, timed afresh.

    python tests/benchmarks/never_slower.py --out DIR [--only NAME] [--recipe fast] [--samples 128]
        [--threads 2]

Every network is compressed by every recipe without a target, within the default accuracy bound;
whatever is written is timed against the original by `onnxcompress bench` in a process of its own.
Few inputs do here: what is in question is time. Rows are kept in DIR/rows.jsonl, and cases that
are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from latency_targets import fresh_ratio, rows
from shared_models import SHARED, SUBJECTS, Subject, split_inputs

import onnxcompress as oc
from onnxcompress.plan.recipes import named

LIMIT = 1.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", action="append", help="a part of a network's name")
    parser.add_argument("--recipe", action="append", choices=list(named()))
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "rows.jsonl"
    for subject, recipe in product(SUBJECTS, arguments.recipe or named()):
        if arguments.only and not any(part in subject.model for part in arguments.only):
            continue
        case = {"network": subject.model, "recipe": recipe}
        if any(case.items() <= row.items() for row in rows(path)):
            continue
        few = replace(subject, samples=min(subject.samples, 2 * arguments.samples))
        row = case | one_case(few, recipe, arguments.samples, arguments.threads, arguments.out)
        print(json.dumps(row), flush=True)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print(table(rows(path)))


def one_case(
    subject: Subject, recipe: str, samples: int, threads: int, out: Path
) -> dict[str, Any]:
    """What came of one case: the fresh process's ratio, or why nothing was written."""
    calibration, judged = split_inputs(subject) if subject.data else (None, None)
    if calibration is not None:
        calibration = calibration.take(range(min(samples, len(calibration))))
    source = SHARED / "models" / f"{subject.model}.onnx"
    started = time.monotonic()
    try:
        result = oc.compress(
            source,
            data=calibration,
            eval_data=judged,
            recipe_name=recipe,
            threads=threads,
        )
    except oc.OnnxCompressError as error:
        seconds = time.monotonic() - started
        return {"seconds": seconds, "reason": str(error).splitlines()[0]}
    row: dict[str, Any] = {"seconds": time.monotonic() - started}
    written = out / f"{subject.model}-{recipe}.onnx"
    written.write_bytes(result.model.SerializeToString())
    row["verdict"] = result.report["latency_ratio"]["value"]
    shapes = []
    if calibration is not None:
        # Networks of any size are timed at that of their inputs.
        (feeds, _), *_ = calibration.take([0]).batches(1)
        shapes = [f"{name}:{','.join(map(str, v.shape))}" for name, v in feeds.items()]
    row["fresh"], row["ci95"] = fresh_ratio(source, written, threads, shapes)
    return row


def table(found: list[dict[str, Any]]) -> str:
    lines = ["| network | recipe | verdict | fresh process | seconds |", "|---|---|---|---|---|"]
    for row in found:
        shown = row.get("reason", "")[:110].replace("|", "/")
        verdict = "-"
        if "fresh" in row:
            low, high = row["ci95"]
            verdict, shown = f"{row['verdict']:.3f}", f"{row['fresh']:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(
            f"| {row['network']} | {row['recipe']} | {verdict} | {shown} | {row['seconds']:.0f} |"
        )
    slower = [row for row in found if row.get("fresh", 0.0) > LIMIT]
    written = sum("fresh" in row for row in found)
    lines += ["", f"{written} written, {len(slower)} of them above {LIMIT}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
