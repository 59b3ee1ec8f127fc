"""Zeros around an image as the padding of the convolution that reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxcompress.errors import ModelError
from onnxcompress.graph.cost import Shapes
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.spec import conv_spec
from onnxcompress.graph.view import GraphView
from onnxcompress_passes.exact.finding import Finding, Kind, is_kind
from onnxcompress_passes.exact.slices import margins


def _find(view: GraphView, _: Shapes) -> Iterator[Finding]:
    for node in view.model.graph.node:
        if not is_kind(node, "Pad"):
            continue
        use, around = view.sole_use(node.output[0]), margins(node, view)
        if use is None or use.index or around is None or not is_kind(use.node, "Conv"):
            continue
        if any((*around.begins[:2], *around.ends[:2])):
            continue
        try:
            conv = conv_spec(use.node, view)
        except ModelError:
            continue
        if conv.auto_pad == "NOTSET" and len(around.begins) == conv.spatial + 2:
            yield Finding(node.name, (node.name, use.node.name))


def _apply(edit: Editor, names: Sequence[str], view: GraphView) -> None:
    pad, conv = (edit.node(name) for name in names)
    around = margins(view.nodes[names[0]], view)
    if around is None:
        raise ValueError(f"node '{names[0]}' adds no zeros")
    spec = conv_spec(view.nodes[names[1]], view)
    added = (*around.begins[2:], *around.ends[2:])
    edit.set_attributes(conv, {"pads": [a + b for a, b in zip(spec.pads, added, strict=True)]})
    edit.set_input(conv, 0, pad.inputs[0])


PADDING = Kind(_find, _apply, "padding of the layer behind")
