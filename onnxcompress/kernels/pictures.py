"""Pictures of kernels and of their programs, layer by layer, and of how compressible layers are.

Matplotlib draws them; it comes with the extra `plots`.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcompress.errors import UsageError
from onnxcompress.kernels.compressibility import Compressibility
from onnxcompress.kernels.dendrograms import MOST_DRAWN, FilterTree, draw_tree
from onnxcompress.kernels.language import Entry, Program, Scale
from onnxcompress.kernels.reading import WrittenLayer
from onnxcompress.kernels.semantics import evaluate
from onnxcompress.kernels.text import written

Array = NDArray[np.float64]
SHOWN = 12
"""Kernels of a layer that are drawn: the most frequent programs, or entries, first."""


def shown(layer: WrittenLayer) -> list[tuple[Array, str]]:
    """Kernels that stand for a layer, with what they are called.

    Entries of a dictionary by how often kernels take them; else programs by how much of the layer's
    energy they make, each distinct one once.
    """
    if layer.entries:
        uses = Counter(_entry(program) for program in layer.programs)
        total = len(layer.programs)
        return [
            (layer.entries[name], f"{100 * count / total:.0f} %")
            for name, count in uses.most_common(SHOWN)
            if name in layer.entries
        ]
    kernels: dict[Program, Array] = {}
    for program in layer.programs:
        if program not in kernels:
            kernels[program] = evaluate(program, layer.size)
    order = sorted(kernels, key=lambda program: -float(np.sum(kernels[program] ** 2)))
    return [(kernels[program], _short(program)) for program in order[:SHOWN]]


def picture(
    layers: Sequence[WrittenLayer],
    curves: Mapping[str, Compressibility],
    trees: Sequence[FilterTree] = (),
) -> bytes:
    """A PNG: kernels of every layer that is written as programs, trees of filters, and curves.

    Args:
        layers: whose kernels are programs.
        curves: of other layers, by name: description length against error.
        trees: of filters, layer by layer; those of more than `MOST_DRAWN` are left out.

    Raises:
        UsageError: there is nothing to draw, or Matplotlib is not installed.
    """
    trees = [tree for tree in trees if len(tree.kernels) <= MOST_DRAWN]
    if not layers and not curves and not trees:
        raise UsageError("there are no 3x3 or 5x5 kernels to draw")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("pictures take Matplotlib: pip install 'onnxcompress[plots]'") from error
    heights = [1.3] * len(layers) + [2.4] * len(trees) + [3.6] * bool(curves)
    figure = Figure(figsize=(1.25 * SHOWN, sum(heights) + 0.3), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, layer in zip(parts, layers, strict=False):
        _row(part, layer)
    for part, tree in zip(parts[len(layers) :], trees, strict=False):
        draw_tree(part, tree)
    if curves:
        _curves(parts[-1].subplots(), curves)
    octets = io.BytesIO()
    FigureCanvasAgg(figure).print_png(octets)  # type: ignore[no-untyped-call]
    return octets.getvalue()


def _row(part: Any, layer: WrittenLayer) -> None:
    part.suptitle(f"{layer.node} ({'x'.join(map(str, layer.shape))})", fontsize=8, x=0.0, ha="left")
    cells = part.subplots(1, SHOWN, squeeze=False)[0]
    for cell in cells:
        cell.set_axis_off()
    for cell, (kernel, words) in zip(cells, shown(layer), strict=False):
        limit = float(np.abs(kernel).max()) or 1.0
        cell.imshow(kernel, cmap="RdBu", vmin=-limit, vmax=limit)
        cell.set_title(words, fontsize=6)


def _curves(axis: Any, curves: Mapping[str, Compressibility]) -> None:
    for name, curve in curves.items():
        errors = [max(error, 1e-4) for error in curve.errors]
        axis.plot(errors, curve.lengths, lw=1, label=name)
    axis.set_xscale("log")
    axis.set_xlabel("relative squared error of the weights")
    axis.set_ylabel("description length, of the original's")
    axis.grid(visible=True, lw=0.3)
    axis.legend(fontsize=6, ncols=max(1, len(curves) // 12))


def _entry(program: Program) -> str:
    """The entry that a kernel takes; empty for a kernel that is something else."""
    inner = program.of if isinstance(program, Scale) else program
    return inner.name if isinstance(inner, Entry) else ""


def _short(program: Program) -> str:
    """A program in as few letters as fit above a kernel."""
    text = written(program, digits=2)
    for long, short in (
        ("-tetromino", ""),
        ("edge-filter", "edge"),
        ("original-kernel", "original"),
    ):
        text = text.replace(long, short)
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"


_LETTERS = 22
