"""What is left to decide when all ids have met: which axis carries the channels.

A grouped convolution can lose whole groups, or the same positions of every group; a tensor whose
ids change along several axes (the inside of a channel shuffle) can be cut along one of them.
Whatever leaves more classes of channels is chosen, in the order of the graph.
"""

from __future__ import annotations

import numpy as np

from onnxcompress.analyse.coupling.channels import Channels
from onnxcompress.analyse.coupling.flow import FIXED, Flow, Ids
from onnxcompress.analyse.coupling.rules.layers import absorb
from onnxcompress.analyse.coupling.tracer import GroupedLayer, Tracer

Unions = list[tuple[Ids, Ids]]


def decide(tracer: Tracer) -> None:
    """Take every open decision."""
    for node, flow in tracer.spread:
        _choose_axis(tracer, node, flow)
    for layer in tracer.grouped:
        _choose_grouping(tracer, layer)


def _choose_axis(tracer: Tracer, node: str, flow: Flow) -> None:
    roots = tracer.channels.roots(flow.ids)
    offers = []
    for axis in flow.varying:
        first = np.broadcast_to(_line(roots, axis), roots.shape)
        offers.append([(first, roots)])
    reason = f"'{node}' joins it with values that cannot be cut"
    _unite_best(tracer.channels, offers, reason)


def _line(roots: Ids, axis: int) -> Ids:
    """The first id at every index along `axis`, in the rank of `roots`."""
    taken = roots
    for other in range(roots.ndim):
        if other != axis:
            taken = taken.take([0], other)
    return taken


def _choose_grouping(tracer: Tracer, layer: GroupedLayer) -> None:
    groups = len(layer.inputs)
    channels = tracer.channels
    inputs, outputs = channels.roots(layer.inputs), channels.roots(layer.outputs)
    whole: Unions = [
        (np.broadcast_to(inputs[:, :1], inputs.shape), inputs),
        (np.broadcast_to(inputs[:, :1], outputs.shape), outputs),
    ]
    positions: Unions = [
        (np.broadcast_to(inputs[:1], inputs.shape), inputs),
        (np.broadcast_to(outputs[:1], outputs.shape), outputs),
    ]
    reason = f"Conv '{layer.node}' groups it with channels that cannot be cut"
    node = tracer.view.nodes[layer.node]
    if inputs.shape[1] == 1 or (groups > 1 and _count(whole) >= _count(positions)):
        for one, other in whole:
            channels.unite(one, other, reason)
        return
    for one, other in positions:
        channels.unite(one, other, reason)
    # Outputs stay where inputs go: what is left of a removed input has to be taken by a bias.
    absorb(node, tracer, np.ravel(layer.inputs), np.ravel(layer.values), border=layer.border)


def _unite_best(channels: Channels, offers: list[Unions], reason: str) -> None:
    best = max(offers, key=_count)
    for one, other in best:
        channels.unite(one, other, reason)


def _count(unions: Unions) -> int:
    """How many classes without fixed elements there are after these unions, tried on the side."""
    parents: dict[int, int] = {}

    def find(channel: int) -> int:
        root = channel
        while parents.setdefault(root, root) != root:
            root = parents[root]
        while parents[channel] != root:
            parents[channel], channel = root, parents[channel]
        return root

    for one, other in unions:
        pairs = np.unique(np.stack([np.ravel(one), np.ravel(other)], axis=1), axis=0)
        for a, b in pairs.tolist():
            low, high = sorted((find(a), find(b)))
            parents[high] = low
    return len({find(channel) for channel in parents} - {find(FIXED)})
