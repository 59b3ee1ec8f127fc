"""The layers that read a group of channels, as least-squares problems in those channels.

A consumer with weight W reads x, of which the columns of channel c (its kernel positions, or its
H * W features behind a Flatten) form one block. All consumers of a group number the blocks alike,
so that a channel is chosen for all of them together: residual streams are solved jointly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.linear import LinearLayer, linear_layer
from onnxcompress.analyse.moments import Moments
from onnxcompress.errors import ModelError
from onnxcompress.numerics.quadratic import FREE, Quadratic
from onnxcompress.plan.known_moments import MOST_FEATURES

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Consumer:
    """A layer that reads channels of a group.

    Attributes:
        layer: the layer.
        blocks: channel number of every column, per group of the layer, [groups, d]; FREE for
            columns of other channels.
        centre: whether its bias makes up for means.
    """

    layer: LinearLayer
    blocks: Indices
    centre: bool

    def problems(self, moments: Moments, rows: NDArray[np.bool_] | None = None) -> list[Quadratic]:
        """One problem per group of the layer.

        Args:
            moments: of the layer.
            rows: which answers [groups * h] count; all by default.
        """
        held = moments.centred() if self.centre else moments
        mask = np.ones(held.energy.shape, dtype=bool)
        if rows is not None:
            mask = rows.reshape(held.energy.shape)
        return [
            Quadratic(
                held.gram[at],
                held.cross[at][mask[at]],
                max(0.0, float(held.energy[at][mask[at]].sum())),
                self.blocks[at],
            )
            for at in range(len(held.gram))
        ]


def consumers(facts: Facts, coupling: Coupling, group: Group) -> tuple[Consumer, ...]:
    """The layers whose answers depend on a group's channels.

    Depthwise layers hand channels on; what reads those counts in their place.

    Raises:
        ModelError: one of them is no layer that moments could be taken of.
    """
    place = {channel: at for at, channel in enumerate(group.channels)}
    found = []
    for name in group.consumers:
        node = facts.view.nodes[name]
        lane, after = coupling.lanes[node.input[0]], coupling.lanes.get(node.output[0])
        if after is not None and set(lane.classes.tolist()) & set(after.classes.tolist()):
            continue
        layer = linear_layer(node, facts.view)
        if layer.features > MOST_FEATURES:
            raise ModelError(f"'{name}' reads more than {MOST_FEATURES} numbers")
        rank = len(coupling.shapes[layer.input])
        if lane.axis != (1 if layer.convolves else rank - 1):
            raise ModelError(f"the channels do not lie where '{name}' reads its inputs")
        numbers = np.array([place.get(c, FREE) for c in lane.classes.tolist()])
        columns = np.repeat(numbers, layer.taps) if layer.convolves else numbers
        blocks = columns.reshape(layer.groups, layer.features)
        found.append(Consumer(layer, blocks, layer.can_recentre(facts.view)))
    if not found:
        raise ModelError("no layer answers to these channels")
    return tuple(found)


def readers(facts: Facts, coupling: Coupling) -> tuple[str, ...]:
    """Every layer that reads channels of some group and that moments can be taken of, each once."""
    found: dict[str, None] = {}
    for name in (name for group in coupling.groups for name in group.consumers):
        with contextlib.suppress(ModelError):
            if linear_layer(facts.view.nodes[name], facts.view).features <= MOST_FEATURES:
                found.setdefault(name)
    return tuple(found)


def problems_of(
    found: Sequence[Consumer],
    moments: Mapping[str, Moments],
    rows: Mapping[str, NDArray[np.bool_]] | None = None,
) -> list[Quadratic]:
    """The problems of all consumers of one group."""
    return [
        problem
        for consumer in found
        for problem in consumer.problems(
            moments[consumer.layer.node], (rows or {}).get(consumer.layer.node)
        )
    ]
