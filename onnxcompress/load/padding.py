"""auto_pad replaced by explicit pads where the sizes are static; kept where they are dynamic.

SAME_UPPER: out = ceil(in / stride), total = max((out - 1) stride + (k - 1) dilation + 1 - in, 0),
split evenly with the odd one at the end; SAME_LOWER puts it at the beginning.
"""

from __future__ import annotations

from math import ceil

import onnx
import onnx_graphsurgeon as gs

from onnxcompress.graph.editor import Editor
from onnxcompress.graph.infer import partial_shapes

_POOLS_AND_CONV = frozenset({"Conv", "MaxPool"})


def make_pads_explicit(editor: Editor, skeleton: onnx.ModelProto) -> int:
    """Write explicit pads into Conv and MaxPool nodes; return how many changed.

    Args:
        editor: the editor that changes the graph.
        skeleton: the same graph, from which static shapes are inferred when needed.
    """
    chosen = [
        node
        for node in editor.nodes
        if node.op in _POOLS_AND_CONV and node.attrs.get("auto_pad", "NOTSET") not in {"NOTSET", ""}
    ]
    shapes = partial_shapes(skeleton) if chosen else {}
    count = 0
    for node in chosen:
        pads = _explicit(node, shapes.get(node.inputs[0].name))
        if pads is not None:
            editor.set_attributes(node, {"auto_pad": None, "pads": pads})
            count += 1
    return count


def _explicit(node: gs.Node, shape: tuple[int | None, ...] | None) -> list[int] | None:
    kernel = node.attrs.get("kernel_shape") or list(node.inputs[1].shape[2:])
    if node.attrs["auto_pad"] == "VALID":
        return [0] * (2 * len(kernel))
    strides = node.attrs.get("strides") or [1] * len(kernel)
    dilations = node.attrs.get("dilations") or [1] * len(kernel)
    if node.op == "MaxPool" and (node.attrs.get("ceil_mode", 0) or max(dilations) > 1):
        # ONNX Runtime's own padding differs from the formula here: leave it to decide.
        return None
    sizes = [size for size in (shape or ())[2:] if size is not None]
    if len(sizes) != len(kernel):
        return None
    begins, ends = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        out = ceil(size / stride)
        total = max((out - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        upper = node.attrs["auto_pad"] == "SAME_UPPER"
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return begins + ends
