"""`onnxcompress inspect --programs`: kernels as programs, written or found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_SHOWN = 3
_RESPONSES = 32
"""Inputs whose responses are compared; fewer, where a layer's take more than 2 GiB."""


def programs_summary(
    model: Any, facts: Any, picture: Path | None, data: Any = None
) -> list[dict[str, Any]]:
    """Layer by layer, as plain values.

    Args:
        model: the model as it was given, with its functions.
        facts: about its canonical form, where functions are inlined.
        picture: where kernels and curves are drawn; None draws nothing.
        data: inputs that filters are compared on by their responses; None compares none.

    Raises:
        UsageError: there is nothing to draw, or nothing to draw with.
    """
    from onnxcompress.analyse.facts import Unsupported
    from onnxcompress.kernels.compressibility import ERRORS, compressibility
    from onnxcompress.kernels.dendrograms import DISTANCES
    from onnxcompress.kernels.pictures import picture as drawn
    from onnxcompress.kernels.reading import written_layers
    from onnxcompress.kernels.search import vocabulary
    from onnxcompress.kernels.text import written
    from onnxcompress.report.write import commit

    found: list[dict[str, Any]] = []
    trees = filter_trees(facts, data) if data is not None else {}
    layers, curves = list(written_layers(model)), {}
    for layer in layers:
        words = [written(program) for program in layer.programs]
        found.append(
            {
                "node": layer.node,
                "shape": list(layer.shape),
                "programs": words,
                "entries": {n: entry.tolist() for n, entry in layer.entries.items()},
            }
        )
    done = {row["node"] for row in found}
    for conv in facts.convs():
        square = not isinstance(conv, Unsupported) and set(conv.kernel) in ({3}, {5})
        if not square or len(conv.kernel) != 2 or conv.node in done:
            continue
        weight = facts.view.array64(conv.weight).reshape(conv.out_channels, -1, conv.kernel[0] ** 2)
        if not weight.any():
            continue
        measured = compressibility(weight, vocabulary(conv.kernel[0], 2))
        curves[conv.node] = measured
        found.append(
            {
                "node": conv.node,
                "shape": [conv.out_channels, weight.shape[1], *conv.kernel],
                "length": {str(error): measured.at(error) for error in ERRORS},
                "shares": measured.shares,
            }
        )
    for row in found:
        if row["node"] in trees:
            tree = trees[row["node"]]
            row["filters_left"] = {str(d): tree.left(d) for d in DISTANCES}
    if picture is not None:
        octets = drawn(layers, curves, list(trees.values()))
        commit([(picture, lambda file: file.write(octets))])
    return found


def filter_trees(facts: Any, data: Any) -> dict[str, Any]:
    """By layer, the tree of its filters by their responses."""
    from onnxcompress.analyse.facts import Unsupported
    from onnxcompress.calibrate.activations import CollectedActivations
    from onnxcompress.kernels.dendrograms import filter_tree
    from onnxcompress.runtime import Execution, default_threads

    layers = [
        conv
        for conv in facts.convs()
        if not isinstance(conv, Unsupported) and len(conv.kernel) == 2 and conv.out_channels > 1
        if set(conv.kernel) in ({3}, {5})
    ]
    execution = Execution(threads=default_threads())
    collect = CollectedActivations(facts.model, facts.shapes(), data, execution, seed=0)
    # Layer by layer: responses of all of them may not fit into memory.
    return {
        conv.node: filter_tree(
            conv.node,
            facts.view.array64(conv.weight),
            collect.values([conv.output], _RESPONSES)[conv.output],
        )
        for conv in layers
    }


def show_programs(rows: list[dict[str, Any]], console: Console) -> None:
    """The same as a table that a person reads."""
    table = Table(box=box.SIMPLE_HEAD)
    compared = any("filters_left" in row for row in rows)
    headings = ["layer", "kernels", "description at error 1 / 5 / 10 %", "programs"]
    if compared:
        headings.append("filters left at 1 - SSIM of 0.3 / 0.6 / 0.9")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        if "programs" in row:
            table.add_row(
                Text(row["node"]),
                shape,
                "written",
                Text(_most(row)),
                *(_left(row) if compared else ()),
            )
            continue
        lengths = " / ".join(f"{100 * part:.0f} %" for part in row["length"].values())
        shares = list(row["shares"].items())[:_SHOWN]
        words = ", ".join(f"{100 * share:.0f} % {kind}" for kind, share in shares)
        table.add_row(
            Text(row["node"]), shape, lengths, Text(words), *(_left(row) if compared else ())
        )
    console.print(table)
    if not rows:
        console.print("no 3x3 or 5x5 kernels here")


def _left(row: dict[str, Any]) -> list[str]:
    """How many filters are left, where they were compared."""
    return [" / ".join(map(str, row.get("filters_left", {}).values()))]


def _most(row: dict[str, Any]) -> str:
    """The programs of a written layer, by what they are made of."""
    if row["entries"]:
        return f"{len(row['entries'])} entries, each use times a number"
    counts = Counter(_kinds(text) for text in row["programs"])
    total = len(row["programs"])
    most = counts.most_common(_SHOWN)
    return ", ".join(f"{100 * count / total:.0f} % {kind}" for kind, count in most)


def _kinds(text: str) -> str:
    from onnxcompress.kernels.families import library

    names = ["original-kernel", "edge-filter", *{f"{f.kind}-tetromino" for f in library(3)}]
    found = sorted(name for name in names for _ in range(text.count(name + "(")))
    return " + ".join(found) or "zero"
