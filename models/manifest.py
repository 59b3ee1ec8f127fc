"""Enter files in manifest.json and measured figures on cards, for the scripts that train networks.

Each script enters its own files and leaves the entries of the others as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from scipy import stats

CARD_START = "<!-- measured: written by {script} -->"
CARD_END = "<!-- end of measured -->"


def enter(
    folder: Path, descriptions: Mapping[str, str], results: Mapping[str, tuple[int, int]]
) -> None:
    """Enter files in the manifest of ``folder``, in place of what it said about them before.

    Args:
        folder: holds the files and ``manifest.json``, which is made where there is none.
        descriptions: one line on each file, by name.
        results: right answers and test images of each network, by file name.
    """
    path = folder / "manifest.json"
    files = json.loads(path.read_text(encoding="utf-8"))["files"] if path.exists() else {}
    for name, description in descriptions.items():
        content = (folder / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files[name] = {"sha256": digest, "bytes": len(content), "description": description}
        if name in results:
            correct, total = results[name]
            files[name] |= {"test_correct": correct, "test_total": total}
    text = json.dumps({"files": dict(sorted(files.items()))}, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")


def write_card(
    network: Path, *, test_set: str, parameters_are: str, further: Sequence[str] = (), script: str
) -> None:
    """Replace the measured part of the card that lies beside ``network``.

    Args:
        network: the file, already entered in the manifest of its folder.
        test_set: what the right answers were counted on.
        parameters_are: the words before the number of parameters.
        further: rows of the table that follow those on the test images.
        script: the name of the script that the marker on the card names.
    """
    manifest = network.with_name("manifest.json").read_text(encoding="utf-8")
    entry = json.loads(manifest)["files"][network.name]
    correct, total = entry["test_correct"], entry["test_total"]
    interval = stats.binomtest(correct, total).proportion_ci(0.95, method="wilson")
    parameters = sum(
        int(np.prod(tensor.dims))
        for tensor in onnx.load(network).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )
    rows = [
        "| what | value |",
        "| --- | --- |",
        f"| right answers on {test_set}, ONNX Runtime CPU | {correct:,} of {total:,} |",
        f"| test accuracy | {correct / total:.2%} |",
        f"| Wilson 95 % interval | {interval.low:.2%} to {interval.high:.2%} |",
        *further,
        f"| {parameters_are} | {parameters:,} |",
        f"| file size | {entry['bytes']:,} bytes |",
        f"| sha256 | `{entry['sha256']}` |",
    ]
    start = CARD_START.format(script=script)
    card = network.with_suffix(".md")
    before, rest = card.read_text(encoding="utf-8").split(start)
    after = rest.split(CARD_END)[1]
    block = "\n".join([start, "", *rows, "", CARD_END])
    card.write_text(before + block + after, encoding="utf-8")
