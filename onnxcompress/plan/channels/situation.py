"""What the rules for single operators see: the graph, its coupling, and what is removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxcompress.analyse.coupling.result import Coupling, Lane
from onnxcompress.graph.edits import Indices
from onnxcompress.graph.view import GraphView


@dataclass(frozen=True)
class Situation:
    """One removal on one graph.

    Attributes:
        view: the original graph.
        coupling: its coupling.
        removed: the classes that go.
        lanes: the lanes of the tensors that lose channels.
        staying: by tensor, the indices along its lane that stay.
        counting: whether the edits are only counted: what biases absorb is then left out (zeros).
    """

    view: GraphView
    coupling: Coupling
    removed: frozenset[int]
    lanes: Mapping[str, Lane] = field(repr=False)
    staying: Mapping[str, Indices] = field(repr=False)
    counting: bool = False

    @classmethod
    def of(
        cls,
        view: GraphView,
        coupling: Coupling,
        removed: Mapping[str, Sequence[int]],
        *,
        counting: bool = False,
    ) -> Situation:
        """The situation when these channels go, by name of their group."""
        classes = coupling.classes(removed)
        # A table by class: this is asked for every tensor of every width that is weighed.
        tensors = dict.fromkeys(t for name in removed for t in coupling.group(name).tensors)
        most = max((int(coupling.lanes[tensor].classes.max()) for tensor in tensors), default=0)
        gone = np.zeros(most + 1, dtype=bool)
        gone[list(classes)] = True
        lanes: dict[str, Lane] = {}
        staying: dict[str, Indices] = {}
        for tensor in tensors:
            lost = gone[coupling.lanes[tensor].classes]
            if lost.any():
                lanes[tensor] = coupling.lanes[tensor]
                staying[tensor] = np.flatnonzero(~lost)
        return cls(view, coupling, classes, lanes, staying, counting)

    def lane(self, tensor: str) -> Lane | None:
        """The lane of a tensor that loses channels; None if it loses none."""
        return self.lanes.get(tensor)

    def kept(self, tensor: str) -> Indices:
        """The indices along the lane of a tensor that stay; for tensors that lose channels."""
        return self.staying[tensor]

    def concerned(self) -> list[onnx.NodeProto]:
        """The nodes that read or make a tensor which loses channels, in order of execution."""
        names = {self.view.producers[tensor].name for tensor in self.lanes}
        names |= {use.node.name for tensor in self.lanes for use in self.view.uses(tensor)}
        return [node for node in self.view.model.graph.node if node.name in names]

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
