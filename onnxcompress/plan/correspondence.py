"""Which tensors of a rewritten graph stand for which of the original's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcompress.graph.view import GraphView

Kept = Mapping[str, tuple[int, NDArray[np.intp]]]
"""Of tensors that lost channels, the axis and the original's indices that stay."""


@dataclass(frozen=True)
class Correspondence:
    """How the tensors of a result compare with the original's; all others are as they were.

    Attributes:
        kept: of tensors that lost channels, the axis and the original's indices that stay.
        stands_for: tensors of the result that took the place of another tensor of the original,
            because what lay between is gone: a residual stream in front of a branch that was
            removed stands for the stream behind it.
    """

    kept: Kept
    stands_for: Mapping[str, str]

    def place(self, tensor: str) -> str:
        """The tensor of the original that a tensor of the result stands for."""
        return self.stands_for.get(tensor, tensor)


def correspondence(before: GraphView, after: GraphView, kept: Kept) -> Correspondence:
    """Compare what the nodes of both graphs read.

    A tensor stands for another if every node that reads it read that other one before, which is
    gone.
    """
    stands_for: dict[str, str] = {}
    for tensor in (*after.inputs, *after.producers):
        if tensor in after.outputs or tensor in after.captured:
            continue
        read = {
            before.nodes[use.node.name].input[use.index]
            for use in after.uses(tensor)
            if use.node.name in before.nodes and use.index < len(before.nodes[use.node.name].input)
        }
        if len(read) == 1 and not read & {tensor, *after.producers}:
            (other,) = read
            if other in before.producers:
                stands_for[tensor] = other
    return Correspondence(kept, stands_for)
