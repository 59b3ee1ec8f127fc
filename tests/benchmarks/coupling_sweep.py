"""The coupling engine on every exported architecture and every network of the shared folder.

    python tests/benchmarks/coupling_sweep.py --exports DIR --models --out FILE.json
        [--only REGEX] [--groups 12] [--peers peers.json] [--table FILE.md]

DIR is what architectures.py wrote, peers.json what peers.py wrote; the shared folder is found
through ONNXCOMPRESS_DATA (default ../shared). Every file is brought into canonical form and
coupled; then a random quarter of the channels is removed, of some groups one at a time and of all
groups together, and the result is compared with the original in which these channels are zero
(coupling_oracle.py). Every file has a process of its own. FILE.json is a JSON object, {case:
results}; cases that are in it are not run again, unless they were wrong or crashed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import architectures
import coupling_oracle as oracle
import coupling_tables
import numpy as np
import onnx
import shared_models

from onnxcompress.analyse.coupling.engine import couple
from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import analyse
from onnxcompress.analyse.sizes import input_specs, random_feeds, representative_sizes
from onnxcompress.load.canonical import canonicalise
from onnxcompress.plan.channels.remove import remove_channels

RATIO = 0.25  # of the channels of every group
SECONDS = 600  # granted to one file
TIMES = 3  # coupling is timed so often
ROUNDING = 1e-5  # above this relative error in float32, float64 decides
EXACT = 1e-6  # relative error in float64; weights that absorb constants are rounded to float32
SHARED = "shared"


class WrongError(Exception):
    """The engine's result is not what it promises."""


def examine(case: str, exports: Path, most: int) -> dict[str, Any]:
    """Couple one file, remove channels, and compare.

    Args:
        case: "shared__NAME" or the stem of an exported file.
        exports: where exported files are.
        most: how many groups to cut one at a time.

    Returns:
        the record of this case; "outcome" is "exact", "declined", "wrong" or "crash".
    """
    record: dict[str, Any] = {"step": "load"}
    try:
        compare(record, case, exports, most)
    except WrongError as error:
        return record | {"outcome": "wrong", "detail": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever went wrong is the result
        detail = f"{record['step']}: {architectures.first_lines(error)}"
        return record | {"outcome": "crash", "detail": detail}
    del record["step"]
    return record


def compare(record: dict[str, Any], case: str, exports: Path, most: int) -> None:
    """Fill the record of one file; see `examine`."""
    original, rows = load(case, exports)
    record["step"] = "canonicalise"
    model = canonicalise(original).model
    record["step"] = "couple"
    seen = {name: value.shape for name, value in rows[0].items()} if rows else None
    sizes = representative_sizes(model, seen=seen)
    times = []
    for _ in range(TIMES):
        facts = analyse(model, sizes)
        start = time.perf_counter()
        coupling = couple(facts.view, sizes, facts.shapes())
        times.append(time.perf_counter() - start)
    record["seconds"] = statistics.median(times)
    record |= coverage(model, coupling)
    feeds, record["batches"] = batches(model, sizes, rows)
    draws = np.random.default_rng(zlib.crc32(case.encode()))
    sets = removals(coupling, most, draws)
    if not sets:
        record["outcome"] = "declined"
        return
    record["step"] = "mask"
    reference = oracle.with_scores(oracle.masked(model, coupling))
    opened = oracle.session(reference)
    ones, _ = oracle.masks(model, coupling, {})
    plain = [oracle.run(opened, {**fed, **ones}) for fed in feeds]
    errors, changes = [], []
    for removed in sets:
        whole = removed is sets[-1]
        record["step"] = "remove all" if whole else f"remove from {next(iter(removed))}"
        masks, zeros = oracle.masks(model, coupling, removed)
        result = remove_channels(model, coupling, removed)
        check(model, result, zeros)
        pruned = oracle.session(oracle.with_scores(result))
        error = change = 0.0
        for at in range(len(feeds)) if whole else (0, -1):
            expected = oracle.run(opened, {**feeds[at], **masks})
            error = max(error, oracle.relative_error(oracle.run(pruned, feeds[at]), expected))
            change = max(change, oracle.relative_error(expected, plain[at]))
        errors.append(error)
        changes.append(change)
    # A comparison says something only where zeroing moves the outputs by more than the error.
    moved = [change > 10 * error for change, error in zip(changes, errors, strict=True)]
    record["sets"], record["moved"], record["least_change"] = len(sets), sum(moved), min(changes)
    record["error"], record["outcome"] = max(errors), "exact"
    convs = {node.name for node in model.graph.node if node.op_type == "Conv"}
    record["conv_removed"] = sum(count for layer, count in zeros.items() if layer in convs)
    if record["error"] <= ROUNDING:
        return
    record["step"] = "compare in float64"
    # All groups together, and the set that was off most: rounding must not hide a fault of either.
    wide = []
    for removed in {id(r): r for r in (sets[-1], sets[int(np.argmax(errors))])}.values():
        masks, _ = oracle.masks(model, coupling, removed)
        result = oracle.with_scores(remove_channels(model, coupling, removed))
        expected = oracle.run_double(reference, {**feeds[-1], **masks})
        wide.append(oracle.relative_error(oracle.run_double(result, feeds[-1]), expected))
    record["double_error"] = max(wide)
    if not record["double_error"] <= EXACT:
        raise WrongError(
            f"relative error {record['error']:.1e} in float32, {record['double_error']:.1e} in "
            f"float64, worst for {sorted(sets[int(np.argmax(errors))])[:3]}"
        )


def load(case: str, exports: Path) -> tuple[onnx.ModelProto, list[oracle.Feeds]]:
    """Return the model of a case and, where there are any, real inputs row by row."""
    source, name = case.split("__", 1)
    if source != SHARED:
        return onnx.load(exports / f"{case}.onnx"), []
    path = shared_models.SHARED / "models" / f"{name}.onnx"
    (subject,) = (s for s in shared_models.SUBJECTS if s.model == name)
    data = shared_models.inputs(replace(subject, samples=4), path)
    return onnx.load(path), [] if data is None else [feeds for feeds, _ in data.batches(1)]


def batches(
    model: onnx.ModelProto, sizes: Mapping[str, tuple[int, ...]], rows: Sequence[oracle.Feeds]
) -> tuple[list[oracle.Feeds], list[int]]:
    """Return several inputs, the last of another batch size than the others if that is free.

    Returns:
        the feeds, and the batch size of each.
    """
    free = all(spec.shape and spec.fixed(0) is None for spec in input_specs(model))
    if rows:
        if not free:
            return list(rows), [len(next(iter(row.values()))) for row in rows]
        pairs = [rows[:2], rows[2:4], rows[:1]]
        joined = [{k: np.concatenate([r[k] for r in some]) for k in rows[0]} for some in pairs]
        return joined, [2, 2, 1]
    fixed = next(iter(sizes.values()))[0]
    counts = [2, 2, 1] if free else [fixed] * 3
    found = []
    for seed, count in enumerate(counts):
        wanted = {name: (count, *size[1:]) if free else size for name, size in sizes.items()}
        found.append(random_feeds(model, wanted, seed=seed))
    return found, counts


def removals(
    coupling: Coupling, most: int, draws: np.random.Generator
) -> list[dict[str, list[int]]]:
    """Choose a random quarter of some groups one at a time, and last of all groups together.

    What must not go altogether (covers) keeps a random channel. Groups of which nothing may go
    are left out.
    """
    groups = list(coupling.groups)
    chosen = groups
    if len(groups) > most:
        chosen = [groups[i] for i in sorted(draws.permutation(len(groups))[:most].tolist())]
    sets = [{group.name: quarter(group, draws)} for group in chosen]
    sets.append({group.name: quarter(group, draws) for group in groups})
    for removed in sets:
        for joint in coupling.joint_covers:
            if all(number in removed.get(name, []) for name, number in joint):
                name, number = joint[int(draws.integers(len(joint)))]
                removed[name].remove(number)
    cut = [{name: numbers for name, numbers in some.items() if numbers} for some in sets]
    return [some for some in cut if some]


def quarter(group: Group, draws: np.random.Generator) -> list[int]:
    """Choose a random quarter of the channels of a group, at least one, that it can lose."""
    count = max(1, round(RATIO * group.width))
    left = set(draws.permutation(group.width)[:count].tolist())
    for cover in group.covers:
        if set(cover) <= left:
            left.discard(int(draws.choice(cover)))
    return sorted(left)


def check(model: onnx.ModelProto, result: onnx.ModelProto, zeros: Mapping[str, int]) -> None:
    """Check that a result is valid, has the same interface and lost just these channels.

    Raises:
        WrongError: the interface changed, or a Conv has another number of channels.
        onnx.checker.ValidationError: the model is not valid.
    """
    onnx.checker.check_model(result, full_check=True)
    for field in ("input", "output"):
        mine = [v.SerializeToString() for v in getattr(model.graph, field)]
        if mine != [v.SerializeToString() for v in getattr(result.graph, field)]:
            raise WrongError(f"the graph's {field}s changed")
    before, after = widths(model), widths(result)
    for layer, count in zeros.items():
        if layer in before and after.get(layer) != before[layer] - count:
            raise WrongError(f"'{layer}' has {after.get(layer)} channels, not {count} less")


def widths(model: onnx.ModelProto) -> dict[str, int]:
    """Return the number of output channels of every Conv whose weight is an initializer."""
    dims = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    return {node.name: dims[node.input[1]][0] for node in nodes if node.input[1] in dims}


def coverage(model: onnx.ModelProto, coupling: Coupling) -> dict[str, Any]:
    """Count what may be removed, and why the rest may not.

    Raises:
        WrongError: a layer is in no group and there is no reason for it.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    totals: Counter[str] = Counter()
    layers: Counter[str] = Counter()
    channels: Counter[str] = Counter()
    for node in model.graph.node:
        inputs = [name for name in node.input if name]
        if inputs and constants.issuperset(inputs):
            constants.update(node.output)
        dense = node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"}
        if not dense or not constants.intersection(node.input[:2]):
            continue
        axis = 1 if node.op_type != "MatMul" else -2 if node.input[0] in constants else -1
        count = int(coupling.shapes[node.output[0]][axis])
        lane = coupling.lanes.get(node.output[0]) if node.name in coupling.producers else None
        free = 0 if lane is None else int(np.count_nonzero(lane.classes))
        kinds = ["layer", "conv"] if node.op_type == "Conv" else ["layer"]
        for kind in kinds:
            totals[f"{kind}s"] += 1
            totals[f"{kind}_channels"] += count
            totals[f"{kind}_free"] += free
        if free == count:
            continue
        reason = "" if free else coupling.refusals.get(node.name, "")
        if not free and not reason:
            raise WrongError(f"{node.op_type} '{node.name}' is in no group without a reason")
        words = re.sub(r"(?<!\w)'[^']*'(?!\w)", "*", reason) if reason else "in a group, in part"
        layers[words] += 1
        channels[words] += count - free
    return {
        **{key: totals[key] for key in ("convs", "conv_channels", "conv_free")},
        **{key: totals[key] for key in ("layers", "layer_channels", "layer_free")},
        "other_layers": sum(n.op_type in {"QLinearConv", "ConvInteger"} for n in model.graph.node),
        "groups": len(coupling.groups),
        "classes": sum(group.width for group in coupling.groups),
        "reasons": {words: [n, channels[words]] for words, n in layers.most_common()},
    }


def cases(exports: Path | None, *, models: bool) -> Iterator[str]:
    """Yield every case there is: shared networks, then exports in the order of their making."""
    if models:
        yield from (f"{SHARED}__{subject.model}" for subject in shared_models.SUBJECTS)
    if exports is not None:
        for source, name, exporter in architectures.plan():
            case = f"{source}__{name}__{exporter}"
            if (exports / f"{case}.onnx").exists():
                yield case


def apart(case: str, exports: Path | None, most: int) -> dict[str, Any]:
    """Examine one file in a process of its own; a crash or a hang is a result as well."""
    command = [sys.executable, __file__, "--exports", str(exports), "--groups", str(most)]
    command += ["--one", case]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"outcome": "crash", "detail": f"no result in {SECONDS} s"}
    took = {"total_seconds": time.perf_counter() - start}
    lines = child.stdout.strip().splitlines()
    if child.returncode == 0 and lines:
        return dict(json.loads(lines[-1])) | took
    last = (child.stderr.strip().splitlines() or [""])[-1]
    return {"outcome": "crash", "detail": f"exit {child.returncode}: {last}"} | took


def main() -> int:
    """Run every case that is not in the file yet, or one case; write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--exports", type=Path)
    parser.add_argument("--models", action="store_true", help="the shared networks, too")
    parser.add_argument("--out", type=Path, default=Path("coupling.json"))
    parser.add_argument("--only", default="", help="regular expression over the case")
    parser.add_argument("--groups", type=int, default=12, help="groups cut one at a time, at most")
    parser.add_argument("--peers", type=Path, help="what peers.py wrote")
    parser.add_argument("--table", type=Path, help="where to write the tables in Markdown")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(examine(given.one, given.exports, given.groups)))
        return 0
    results: dict[str, dict[str, Any]] = {}
    if given.out.exists():
        results = json.loads(given.out.read_text())
    for case in cases(given.exports, models=given.models):
        done = results.get(case, {}).get("outcome") in {"exact", "declined"}
        if done or not re.search(given.only, case):
            continue
        results[case] = apart(case, given.exports, given.groups)
        given.out.write_text(json.dumps(results, indent=1))
        print(f"{case}: {json.dumps(results[case])}", flush=True)
    if given.table:
        peers = json.loads(given.peers.read_text()) if given.peers else {}
        given.table.write_text(coupling_tables.tables(results, peers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
