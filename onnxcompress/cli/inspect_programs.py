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


def programs_summary(model: Any, facts: Any, picture: Path | None) -> list[dict[str, Any]]:
    """Layer by layer, as plain values.

    Args:
        model: the model as it was given, with its functions.
        facts: about its canonical form, where functions are inlined.
        picture: where kernels and curves are drawn; None draws nothing.

    Raises:
        UsageError: there is nothing to draw, or nothing to draw with.
    """
    from onnxcompress.analyse.facts import Unsupported
    from onnxcompress.kernels.compressibility import ERRORS, compressibility
    from onnxcompress.kernels.pictures import picture as drawn
    from onnxcompress.kernels.reading import written_layers
    from onnxcompress.kernels.search import vocabulary
    from onnxcompress.kernels.text import written
    from onnxcompress.report.write import commit

    found: list[dict[str, Any]] = []
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
    if picture is not None:
        octets = drawn(layers, curves)
        commit([(picture, lambda file: file.write(octets))])
    return found


def show_programs(rows: list[dict[str, Any]], console: Console) -> None:
    """The same as a table that a person reads."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("layer", "kernels", "description at error 1 / 5 / 10 %", "programs"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        if "programs" in row:
            table.add_row(Text(row["node"]), shape, "written", Text(_most(row)))
            continue
        lengths = " / ".join(f"{100 * part:.0f} %" for part in row["length"].values())
        shares = list(row["shares"].items())[:_SHOWN]
        words = ", ".join(f"{100 * share:.0f} % {kind}" for kind, share in shares)
        table.add_row(Text(row["node"]), shape, lengths, Text(words))
    console.print(table)
    if not rows:
        console.print("no 3x3 or 5x5 kernels here")


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
