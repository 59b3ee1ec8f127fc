"""Slice and Pad between two stages of a residual network, as one strided 1x1 convolution.

Exporters write the parameter-free shortcut of He et al. 2016 (arXiv 1512.03385, option A) as every
second pixel and zeros for the new channels: three passes over the data that ONNX Runtime neither
fuses nor spreads over threads. Without new channels it is a MaxPool of single pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcompress.graph.cost import Shapes
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.view import GraphView
from onnxcompress_passes.exact.finding import Finding, Kind, floating, is_kind
from onnxcompress_passes.exact.slices import Grid, chain, continues, grids, margins

_KINDS = ("Slice", "Pad")


def _find(view: GraphView, shapes: Shapes) -> Iterator[Finding]:
    for node in view.model.graph.node:
        if not is_kind(node, *_KINDS) or continues(node, view, _KINDS):
            continue
        nodes = chain(node, view, _KINDS)
        names = tuple(n.name for n in nodes)
        whole, result = shapes.get(node.input[0]), shapes.get(nodes[-1].output[0])
        if whole is None or result is None or not 3 <= len(whole) <= 5:
            continue
        read = _read(view, names, shapes)
        if read is None or floating(view, node.input[0]) is None:
            continue
        kept, added = read
        if all(grid.step == 1 for grid in kept.values()):
            continue
        if sum(added) == 0 and any(grid.start for grid in kept.values()):
            continue
        # A convolution without padding makes as many numbers, or it is no stand-in.
        places = [kept.get(axis, Grid()) for axis in range(2, len(whole))]
        made = [(n - g.start - 1) // g.step + 1 for n, g in zip(whole[2:], places, strict=True)]
        if made == list(result[2:]) and all(g.start < g.step for g in places):
            yield Finding(names[-1], names)


def _read(
    view: GraphView, names: Sequence[str], shapes: Shapes
) -> tuple[Mapping[int, Grid], tuple[int, int]] | None:
    """What a chain keeps of each axis, and how many channels it adds in front and behind."""
    kept: dict[int, Grid] = {}
    before = after = 0
    for node in (view.nodes[name] for name in names):
        if node.op_type == "Slice":
            found = grids(node, view, shapes)
            if found is None or min(found) < 2:
                return None
            kept |= {axis: kept.get(axis, Grid()).then(grid) for axis, grid in found.items()}
            continue
        around = margins(node, view)
        if around is None:
            return None
        others = [n for at, n in enumerate((*around.begins, *around.ends))]
        rank = len(around.begins)
        if any(n for at, n in enumerate(others) if at % rank != 1):
            return None
        before, after = before + around.begins[1], after + around.ends[1]
    return kept, (before, after)


def _apply(edit: Editor, names: Sequence[str], view: GraphView) -> None:
    read = _read(view, names, {})
    source = edit.node(names[0]).inputs[0]
    last = edit.node(names[-1])
    if read is None:
        raise ValueError(f"nodes {list(names)} are no shortcut")
    kept, (before, after) = read
    channels, rank = source.shape[1], len(source.shape)
    places = [kept.get(axis, Grid()) for axis in range(2, rank)]
    strides = [grid.step for grid in places]
    if before + after == 0:
        ones = [1] * len(places)
        attrs = {"kernel_shape": ones, "strides": strides}
        new = gs.Node("MaxPool", f"{last.name}_exact", attrs, inputs=[source])
    else:
        kernel = [grid.start + 1 for grid in places]
        weight = np.zeros((before + channels + after, channels, *kernel), source.dtype)
        # The last tap of the kernel is the one pixel that is kept.
        taps = weight.reshape(len(weight), channels, -1)
        taps[before + np.arange(channels), np.arange(channels), -1] = 1
        constant = edit.constant(f"{last.name}_exact_weight", weight)
        attrs = {"kernel_shape": kernel, "strides": strides}
        new = gs.Node("Conv", f"{last.name}_exact", attrs, inputs=[source, constant])
    edit.replace(last, [new])


SHORTCUT = Kind(_find, _apply, "one strided layer")
