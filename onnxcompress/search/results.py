"""The table of derived models: rows, the measured front, a knee; CSV, JSON and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcompress.errors import UsageError
from onnxcompress.search.estimates import Floats
from onnxcompress.search.pareto import front, knee

VERSION = 1


@dataclass(frozen=True)
class Row:
    """One derived model, built and measured.

    Attributes:
        ratios: per superblock.
        name: of its file.
        figures: what was judged and counted.
        error: relative squared error of the outputs on the inputs of the verdict.
        latency: by kind of machine: ratio to the original, interval, milliseconds.
        expected: error, bytes and milliseconds, as they were estimated before it was built.
        seconds: that building took.
    """

    ratios: tuple[float, ...]
    name: str
    figures: Mapping[str, Any]
    error: float
    latency: Mapping[str, Mapping[str, Any]]
    expected: tuple[float, float, float]
    seconds: float

    @property
    def loss(self) -> float:
        """Points of the metric that are lost; the error where there are no points to lose."""
        drop = self.figures["drop"]
        return self.error if drop is None else float(drop["points"])

    @property
    def ratio(self) -> float:
        """Latency over the original's, on the first kind of machine."""
        return float(next(iter(self.latency.values()))["ratio"])

    @property
    def objectives(self) -> tuple[float, float, float]:
        """Loss, bytes, latency: what is to be small."""
        return self.loss, float(self.figures["file_bytes"]), self.ratio


@dataclass(frozen=True)
class Family:
    """What a search yields.

    Attributes:
        rows: the derived models, smallest last.
        superblocks: names, layers and ratios.
        allowed: how many combinations there are, and how many of them were looked at.
        original: what the original costs: parameters, MACs, bytes.
        environment: where this was measured, and by which versions.
    """

    rows: tuple[Row, ...]
    superblocks: tuple[Mapping[str, Any], ...]
    allowed: Mapping[str, int]
    original: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def points(self) -> Floats:
        """Objectives, [rows, 3]."""
        return np.array([row.objectives for row in self.rows], dtype=np.float64)

    @property
    def front(self) -> list[int]:
        """Rows that no other one beats in everything."""
        return front(self.points)

    @property
    def recommended(self) -> int:
        """The row at the knee of the front."""
        best = self.front
        return best[knee(self.points[best])]

    def to_dict(self) -> dict[str, Any]:
        """The whole as plain values."""
        best, chosen = self.front, self.recommended
        return {
            "version": VERSION,
            "original": dict(self.original),
            "superblocks": [dict(one) for one in self.superblocks],
            "space": dict(self.allowed),
            "models": [
                {
                    "file": row.name,
                    "plan": plan_name(row.name),
                    "ratios": list(row.ratios),
                    "loss": row.loss,
                    "error": row.error,
                    **row.figures,
                    "size": row.figures["file_bytes"] / self.original["file_bytes"],
                    "latency": {kind: dict(one) for kind, one in row.latency.items()},
                    "expected": dict(zip(("error", "file_bytes", "ms"), row.expected, strict=True)),
                    "on_front": number in best,
                    "seconds": row.seconds,
                }
                for number, row in enumerate(self.rows)
            ],
            "recommended": self.rows[chosen].name,
            "environment": dict(self.environment),
        }

    def to_csv(self) -> str:
        """One line per model."""
        best, chosen = self.front, self.recommended
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        counted = ("params", "macs", "file_bytes")
        names = [f"c_{one['name']}" for one in self.superblocks]
        # A row that was timed when the cluster had other machines has other kinds.
        kinds = list(dict.fromkeys(kind for row in self.rows for kind in row.latency))
        latencies = [f"latency on {kind}" for kind in kinds] if len(kinds) > 1 else ["latency"]
        writer.writerow(
            [
                *("file", *names, "metric", "value", "loss", "error", *counted),
                *(*(f"{name}_ratio" for name in counted), *latencies, "on_front", "recommended"),
            ]
        )
        for number, row in enumerate(self.rows):
            figures, whole = row.figures, self.original
            writer.writerow(
                [
                    *(row.name, *row.ratios, figures["metric"]["name"], figures["metric"]["value"]),
                    *(row.loss, row.error, *(figures[key] for key in counted)),
                    *(figures[key] / whole[key] for key in counted),
                    *(row.latency.get(kind, {}).get("ratio", "") for kind in kinds),
                    *(int(number in best), int(number == chosen)),
                ]
            )
        return text.getvalue()


def plan_name(name: str) -> str:
    """What the plan of a model file is called."""
    return name.removesuffix(".onnx") + ".plan.json"


def plotted(family: Family) -> bytes:
    """Loss against size and latency as a PNG; what no other beats is joined by a line.

    Raises:
        UsageError: Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("the plot takes Matplotlib: pip install 'onnxcompress[plots]'") from error
    rows, chosen = family.rows, family.recommended
    sizes = [row.figures["file_bytes"] / family.original["file_bytes"] for row in rows]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    dropped = rows[0].figures["drop"] is not None
    panels = (
        ("file, of the original", sizes),
        ("latency, of the original", [r.ratio for r in rows]),
    )
    for axis, (label, values) in zip(axes, panels, strict=True):
        loss = np.array([row.loss for row in rows])
        axis.scatter(values, loss, s=22, color="tab:gray", label="derived models")
        own = front(np.stack([loss, values], axis=1))
        own.sort(key=lambda at, v=values: v[at])  # type: ignore[misc]
        axis.plot([values[at] for at in own], loss[own], "o-", ms=5, lw=1, label="not beaten here")
        axis.plot(values[chosen], loss[chosen], "*", ms=13, color="tab:red", label="recommended")
        axis.set_xlabel(label)
        axis.grid(visible=True, lw=0.3)
        if not dropped:
            axis.set_yscale("log")
    name = rows[0].figures["metric"]["name"]
    axes[0].set_ylabel(f"points of {name} lost" if dropped else "relative squared error")
    axes[1].legend(fontsize=8)
    canvas, picture = FigureCanvasAgg(figure), io.BytesIO()
    canvas.print_png(picture)  # type: ignore[no-untyped-call]
    return picture.getvalue()
