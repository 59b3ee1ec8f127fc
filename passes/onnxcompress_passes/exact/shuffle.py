"""Reshape, Transpose, Reshape as the one DepthToSpace that they spell out.

[N, C, r, r, H, W] -> [N, C, H, r, W, r] is mode CRD (pixel shuffle, Shi et al. 2016, arXiv
1609.05158); with [N, r, r, C, H, W] in front it is mode DCR.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_graphsurgeon as gs

from onnxcompress.graph.cost import Shapes
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.view import GraphView, attributes
from onnxcompress_passes.exact.finding import Finding, Kind, is_kind

_MODES: dict[tuple[int, ...], str] = {(0, 1, 4, 2, 5, 3): "CRD", (0, 3, 4, 1, 5, 2): "DCR"}
_FIRST_OPSET = 11
"""Of the attribute `mode`."""


def _find(view: GraphView, shapes: Shapes) -> Iterator[Finding]:
    if view.opset() < _FIRST_OPSET:
        return
    for node in view.model.graph.node:
        if not is_kind(node, "Transpose"):
            continue
        before, use = view.producers.get(node.input[0]), view.sole_use(node.output[0])
        if before is None or use is None or use.index or not is_kind(before, "Reshape"):
            continue
        if not is_kind(use.node, "Reshape") or view.sole_use(before.output[0]) is None:
            continue
        names = (before.name, node.name, use.node.name)
        shape, apart = shapes.get(before.input[0]), shapes.get(before.output[0])
        result = shapes.get(use.node.output[0])
        order = tuple(int(str(v)) for v in _order(attributes(node).get("perm")))
        mode = _MODES.get(order)
        if mode is None or shape is None or apart is None or result is None or len(shape) != 4:
            continue
        block = apart[2]
        n, channels, height, width = shape
        depth = channels // block**2
        inner = (depth, block, block) if mode == "CRD" else (block, block, depth)
        wide = (n, depth, height * block, width * block)
        if block > 1 and apart == (n, *inner, height, width) and result == wide:
            yield Finding(node.name, names)


def _order(values: object) -> Sequence[object]:
    return values if isinstance(values, Sequence) else ()


def _apply(edit: Editor, names: Sequence[str], view: GraphView) -> None:
    middle = view.nodes[names[1]]
    mode = _MODES[tuple(int(str(v)) for v in _order(attributes(middle)["perm"]))]
    sizes = [int(v) for v in view.array(view.nodes[names[0]].input[1])]
    source, last = edit.node(names[0]).inputs[0], edit.node(names[2])
    attrs = {"blocksize": sizes[2], "mode": mode}
    edit.replace(last, [gs.Node("DepthToSpace", f"{last.name}_exact", attrs, inputs=[source])])


SHUFFLE = Kind(_find, _apply, "DepthToSpace")
