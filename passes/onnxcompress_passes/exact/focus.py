"""Strided slices side by side, then a convolution: one convolution over the pixels themselves.

The Focus stem of the YOLO family puts every s-th pixel of each phase in channels of its own. Tap
(u, v) of the layer behind, on phase (i, j), is tap (s u + i, s v + j) of a kernel s times as large
with s times the stride and padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from onnxcompress.errors import ModelError
from onnxcompress.graph.cost import Shapes
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.spec import conv_spec
from onnxcompress.graph.view import GraphView, attributes
from onnxcompress_passes.exact.finding import Finding, Kind, is_kind
from onnxcompress_passes.exact.slices import Grid, grids


def _find(view: GraphView, shapes: Shapes) -> Iterator[Finding]:
    for node in view.model.graph.node:
        if not is_kind(node, "Concat") or attributes(node).get("axis") != 1:
            continue
        use = view.sole_use(node.output[0])
        if use is None or use.index or not is_kind(use.node, "Conv"):
            continue
        try:
            conv = conv_spec(use.node, view)
        except ModelError:
            continue
        plain = conv.group == 1 and conv.auto_pad == "NOTSET" and set(conv.dilations) == {1}
        parts = [_phase(name, view, shapes) for name in node.input]
        if not plain or len(parts) < 2 or any(part is None for part in parts):
            continue
        known = [part for part in parts if part is not None]
        sources = {source for source, _, _ in known}
        steps = {tuple(grid.step for grid in phase) for _, phase, _ in known}
        whole = shapes.get(known[0][0])
        if len(sources) > 1 or len(steps) > 1 or whole is None:
            continue
        divides = all(n % s == 0 for n, s in zip(whole[2:], next(iter(steps)), strict=True))
        if divides and set(next(iter(steps))) != {1}:
            slices = [name for _, _, names in known for name in names]
            order = [n.name for n in view.model.graph.node if n.name in set(slices)]
            yield Finding(node.name, (*order, node.name, use.node.name))


def _phase(
    tensor: str, view: GraphView, shapes: Shapes
) -> tuple[str, tuple[Grid, ...], tuple[str, ...]] | None:
    """What a tensor is a phase of: the source, a grid for every spatial axis, and the slices."""
    kept: dict[int, Grid] = {}
    names: list[str] = []
    rank = 4
    while True:
        node = view.producers.get(tensor)
        if node is None or not is_kind(node, "Slice"):
            break
        found = grids(node, view, shapes)
        if found is None or min(found) < 2:
            return None
        kept |= {axis: grid.then(kept.get(axis, Grid())) for axis, grid in found.items()}
        names.insert(0, node.name)
        rank = len(shapes[tensor]) if tensor in shapes else rank
        tensor = node.input[0]
    if not names or not all(grid.start < grid.step for grid in kept.values()):
        return None
    return tensor, tuple(kept.get(axis, Grid()) for axis in range(2, rank)), tuple(names)


def _apply(edit: Editor, names: Sequence[str], view: GraphView) -> None:
    shapes: Shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in view.model.graph.value_info
    }
    concat, conv = view.nodes[names[-2]], view.nodes[names[-1]]
    spec, node = conv_spec(conv, view), edit.node(conv.name)
    old = view.array(spec.weight)
    phases = _phases(concat, view, shapes)
    step = [grid.step for grid in phases[0]]
    channels = spec.in_channels // len(phases)
    weight = np.zeros(
        (len(old), channels, *(k * s for k, s in zip(spec.kernel, step, strict=True))), old.dtype
    )
    for at, phase in enumerate(phases):
        taps = tuple(slice(grid.start, None, grid.step) for grid in phase)
        weight[(slice(None), slice(None), *taps)] += old[:, at * channels : (at + 1) * channels]
    edit.set_attributes(
        node,
        {
            "kernel_shape": list(weight.shape[2:]),
            "strides": [a * b for a, b in zip(spec.strides, step, strict=True)],
            "pads": [a * b for a, b in zip(spec.pads, step * 2, strict=True)],
        },
    )
    edit.set_input(node, 0, edit.node(names[0]).inputs[0])
    edit.set_input(node, 1, edit.constant(f"{conv.name}_exact_weight", weight))


def _phases(concat: onnx.NodeProto, view: GraphView, shapes: Shapes) -> list[tuple[Grid, ...]]:
    found = [_phase(name, view, shapes) for name in concat.input]
    phases = [part[1] for part in found if part is not None]
    if len(phases) < len(found):
        raise ValueError(f"node '{concat.name}' does not put slices side by side")
    return phases


FOCUS = Kind(_find, _apply, "one layer over the pixels")
