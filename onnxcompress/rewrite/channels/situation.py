"""What the rules for single operators see: the graph, its coupling, and what is removed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from onnxcompress.analyse.coupling.result import Coupling, Lane
from onnxcompress.graph.view import GraphView
from onnxcompress.rewrite.channels.edits import Indices


@dataclass(frozen=True)
class Situation:
    """One removal on one graph.

    Attributes:
        view: the original graph.
        coupling: its coupling.
        removed: the classes that go.
    """

    view: GraphView
    coupling: Coupling
    removed: frozenset[int]

    def lane(self, tensor: str) -> Lane | None:
        """The lane of a tensor that loses channels; None if it loses none."""
        lane = self.coupling.lanes.get(tensor)
        if lane is None or not np.isin(lane.classes, list(self.removed)).any():
            return None
        return lane

    def kept(self, lane: Lane) -> Indices:
        """The indices of a lane that stay."""
        return lane.kept(self.removed)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of any tensor in the original graph."""
        if self.view.is_constant(tensor):
            return tuple(self.view.initializers[tensor].dims)
        return self.coupling.shapes[tensor]

    def integers(self, node: onnx.NodeProto, index: int) -> list[int] | None:
        """A constant operand as integers; None if it is left out or computed."""
        name = node.input[index] if index < len(node.input) else ""
        if not name or not self.view.is_constant(name):
            return None
        return [int(v) for v in np.ravel(self.view.array(name))]
