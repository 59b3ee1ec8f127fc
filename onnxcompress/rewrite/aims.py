"""What a layer of a rewritten graph should answer, so that the network comes near the original.

A layer aims at the original's tensor of the same name. Where its answer only goes into a sum, it
aims at the sum, less what the other summand is now: it makes up for the errors that came along the
skip path (residual carry). Where branches behind that sum are gone, it aims at the sum behind them
(look-ahead).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.graph.view import GraphView, captured_by
from onnxcompress.plan.correspondence import Correspondence

_THROUGH = frozenset({"Relu", "Max", "Clip", "LeakyRelu"})
"""Activations: who stands behind one of them for another tensor, has its aim in front of it."""


@dataclass(frozen=True)
class Aim:
    """What an answer is held to.

    Attributes:
        tensor: the original's tensor.
        kept: its axis and indices that are left in the result; None for all.
        less: tensors of the result to subtract.
    """

    tensor: str
    kept: tuple[int, NDArray[np.intp]] | None
    less: tuple[str, ...] = ()


@dataclass(frozen=True)
class Aims:
    """Finds aims in one pair of graphs.

    Attributes:
        original: the graph as it was.
        result: the rewritten graph.
        correspondence: what the passes say about its tensors.
    """

    original: GraphView
    result: GraphView
    correspondence: Correspondence

    def of(self, tensor: str, unsettled: Collection[str]) -> Aim | None:
        """What a tensor of the result should be; None where that is not known.

        Args:
            tensor: the answer of a layer.
            unsettled: layers that are still to be repaired.
        """
        use = self.result.sole_use(tensor)
        if use is not None and use.node.domain in {"", "ai.onnx"}:
            carried = None
            if use.node.op_type == "Add":
                carried = self._carried(use.node, use.index, unsettled)
            if carried is not None:
                return carried
        return self._place(tensor)

    def _carried(self, add: onnx.NodeProto, index: int, unsettled: Collection[str]) -> Aim | None:
        """The aim of a sum, less its other summand."""
        other = add.input[1 - index]
        if self.result.is_constant(other) or other == add.input[index]:
            return None
        if self._depends(other, unsettled):
            return None
        behind = self.of(add.output[0], unsettled)
        if behind is None:
            return None
        return Aim(behind.tensor, behind.kept, (*behind.less, other))

    def _place(self, tensor: str) -> Aim | None:
        """The tensor of the original that a tensor of the result stands for."""
        place = self.correspondence.place(tensor)
        use = self.result.sole_use(tensor)
        if place == tensor and use is not None and use.node.op_type in _THROUGH:
            ahead = self.correspondence.place(use.node.output[0])
            maker = self.original.producers.get(ahead)
            if ahead != use.node.output[0] and maker is not None and maker.op_type in _THROUGH:
                place = maker.input[0]
        if place not in self.original.producers:
            return None
        return Aim(place, self.correspondence.kept.get(place))

    def _depends(self, tensor: str, nodes: Collection[str]) -> bool:
        """Whether one of these nodes has a part in a tensor of the result."""
        ends, seen = [tensor], {tensor}
        while ends:
            node = self.result.producers.get(ends.pop())
            if node is None:
                continue
            if node.name in nodes:
                return True
            new = {*node.input, *captured_by(node)} - seen
            seen |= new
            ends.extend(new)
        return False
