"""Channels removed, and the reference that removal must equal: channels forced to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnxcompress.analyse.coupling.result import Coupling
from onnxcompress.graph.editing import apply_edits, multiply_behind
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.infer import with_value_info
from onnxcompress.graph.view import GraphView
from onnxcompress.plan.channels.plan_cuts import plan_cuts
from onnxcompress.plan.correspondence import Kept


def remove_channels(
    model: onnx.ModelProto, coupling: Coupling, removed: Mapping[str, Sequence[int]]
) -> onnx.ModelProto:
    """A copy of the model without these channels.

    Args:
        model: the model in canonical form that the coupling was found on; not changed.
        coupling: its coupling.
        removed: channel numbers by name of their group.

    Raises:
        PassError: there is no such group or channel, or nothing of a tensor would be left.
    """
    editor = Editor(model)
    apply_edits(plan_cuts(GraphView(model), coupling, removed), editor)
    return with_value_info(editor.finish())


def zero_channels(
    model: onnx.ModelProto, coupling: Coupling, removed: Mapping[str, Sequence[int]]
) -> onnx.ModelProto:
    """A copy of the model in which these channels are zero right behind every producer."""
    editor = Editor(model)
    zero_in(editor, coupling, coupling.classes(removed))
    return with_value_info(editor.finish())


def zero_in(editor: Editor, coupling: Coupling, classes: frozenset[int]) -> None:
    """Put a mask of zeros and ones behind every producer that would lose channels."""
    nodes = {tensor: name for name, tensor in coupling.producers.items()}
    for tensor, (axis, indices) in coupling.zeroed(classes).items():
        shape = coupling.shapes[tensor]
        mask = np.ones([extent if a == axis else 1 for a, extent in enumerate(shape)])
        mask[tuple(indices if a == axis else slice(None) for a in range(len(shape)))] = 0.0
        multiply_behind(nodes[tensor], mask, editor)


def left_of_lanes(coupling: Coupling, classes: frozenset[int]) -> Kept:
    """Axis and indices that stay, of every tensor that loses some of these classes."""
    return {
        tensor: (lane.axis, kept)
        for tensor, lane in coupling.lanes.items()
        if len(kept := lane.kept(classes)) < len(lane.classes)
    }
