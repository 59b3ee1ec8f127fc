"""Layers that lost channels before their weights are factored.

The whole layer is factored, as it was; rows and columns of channels that are gone are then left
out of the factors. So the same factors serve every width, and what is left approximates the same
rows and columns of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxcompress.graph.editor import Editor
from onnxcompress.graph.view import GraphView

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Left:
    """What is left of a layer of one group.

    Attributes:
        rows: output channels that stay.
        columns: input channels that stay.
    """

    rows: Indices
    columns: Indices

    def features(self, taps: int) -> Indices:
        """Columns of the matrix [h, d] that stay, `taps` in a row for every input channel."""
        return (self.columns[:, None] * taps + np.arange(taps)).ravel()


def left_of(edit: Editor, node: gs.Node) -> Left | None:
    """What is left of a layer that lost channels; None where it lost none."""
    kept = edit.kept.get(node.name)
    if kept is None:
        return None
    shape = whole_weight(edit, node).shape
    rows, columns = (kept.get(axis, np.arange(shape[axis])) for axis in (0, 1))
    inward = node.op == "MatMul" or (node.op == "Gemm" and not node.attrs.get("transB", 0))
    return Left(columns, rows) if inward else Left(rows, columns)


def whole_weight(edit: Editor, node: gs.Node) -> NDArray[np.generic]:
    """The weight of a layer as it is; of one that lost channels, as it was."""
    if node.name not in edit.kept:
        return np.asarray(node.inputs[1].values)
    view = GraphView(edit.model)
    return view.array(view.nodes[node.name].input[1])
