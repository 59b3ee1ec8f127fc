"""What has to change in a graph when channels go: edits as data, one list for all of them.

All indices count in the original graph, and every edit is worked out from it, so the order in
which groups were chosen leaves no trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Cut:
    """Keep some indices of a constant operand, along one axis or several.

    Attributes:
        node: the node that reads the operand.
        index: which input it is.
        kept: indices that stay, by axis.
    """

    node: str
    index: int
    kept: Mapping[int, Indices]


@dataclass(frozen=True)
class Replace:
    """Give a node another constant operand (sizes, indices, amounts).

    Attributes:
        node: the node.
        index: which input it is.
        values: the new constant.
    """

    node: str
    index: int
    values: NDArray[np.generic]


@dataclass(frozen=True)
class Patch:
    """Overrule some elements of a vector of sizes that is computed at run time.

    Attributes:
        node: the node that reads the vector.
        index: which input it is.
        sizes: the new values by position.
    """

    node: str
    index: int
    sizes: Mapping[int, int]
    length: int


@dataclass(frozen=True)
class SetAttributes:
    """Set attributes of a node; None removes one."""

    node: str
    values: Mapping[str, object | None]


@dataclass(frozen=True)
class Absorb:
    """Add what removed constant channels contributed to the bias of a layer.

    Attributes:
        node: the layer.
        addition: one number per output channel that stays, in float64.
    """

    node: str
    addition: NDArray[np.float64]


@dataclass(frozen=True)
class Permute:
    """Put one Gather where a channel shuffle stood.

    Attributes:
        nodes: the nodes of the shuffle, in order.
        axis: the channel axis.
        order: index of every channel that stays among those that stay.
    """

    nodes: tuple[str, ...]
    axis: int
    order: Indices

    @property
    def node(self) -> str:
        """The first node of the shuffle."""
        return self.nodes[0]


WEIGHT = 1
"""The operand of a layer that is its weight."""

Edit = Cut | Replace | Patch | SetAttributes | Absorb | Permute


def narrowed(edits: Sequence[Edit]) -> tuple[str, ...]:
    """Names of layers that lose channels and are otherwise what they were, in order."""
    cut = {e.node: None for e in edits if isinstance(e, Cut) and e.index == WEIGHT}
    changed = {e.node for e in edits if not isinstance(e, (Cut, Absorb))}
    return tuple(name for name in cut if name not in changed)


def touched(edits: list[Edit]) -> tuple[str, ...]:
    """Names of the nodes that change, in order, each once."""
    names: dict[str, None] = {}
    for edit in edits:
        for name in edit.nodes if isinstance(edit, Permute) else (edit.node,):
            names.setdefault(name)
    return tuple(names)
