"""From classes of channels to groups of layers, and to what has to stay of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from onnxcompress.analyse.coupling.flow import FIXED
from onnxcompress.analyse.coupling.result import Group, Lane
from onnxcompress.graph.view import GraphView

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that make channels, and that end those which flow in."""


def find_groups(
    view: GraphView, producers: Mapping[str, str], lanes: Mapping[str, Lane]
) -> tuple[Group, ...]:
    """Connect the classes that one producer makes."""
    unique = {name: np.unique(lane.classes).tolist() for name, lane in lanes.items()}
    leader: dict[int, int] = {}

    def find(channel: int) -> int:
        while leader.setdefault(channel, channel) != channel:
            channel = leader[channel]
        return channel

    for tensor in producers.values():
        if tensor in lanes:
            free = [c for c in unique[tensor] if c != FIXED]
            for channel in free:
                low, high = sorted((find(free[0]), find(channel)))
                leader[high] = low
    makers: dict[int, list[str]] = defaultdict(list)
    channels: dict[int, dict[int, None]] = defaultdict(dict)
    for node, tensor in producers.items():
        if tensor in lanes:
            for channel in lanes[tensor].classes.tolist():
                if channel != FIXED:
                    channels[find(channel)].setdefault(channel)
            makers[find(next(c for c in lanes[tensor].classes.tolist() if c != FIXED))].append(node)
    tensors: dict[int, list[str]] = defaultdict(list)
    for name, classes in unique.items():
        for root in {find(c) for c in classes if c != FIXED}:
            tensors[root].append(name)
    return tuple(
        _group(view, names, tuple(channels[root]), tensors[root], unique)
        for root, names in makers.items()
    )


def joint_covers(
    groups: Sequence[Group], lanes: Mapping[str, Lane]
) -> tuple[tuple[tuple[str, int], ...], ...]:
    """Sets of channels of several groups of which one has to stay: a part of a concatenation."""
    place = {c: (g.name, at) for g in groups for at, c in enumerate(g.channels)}
    own = [frozenset(g.channels[at] for at in cover) for g in groups for cover in g.covers]
    found: dict[frozenset[int], None] = {}
    for lane in lanes.values():
        classes = frozenset(np.unique(lane.classes).tolist())
        several = FIXED not in classes and len({place[c][0] for c in classes if c in place}) > 1
        if several and classes <= set(place) and not any(cover <= classes for cover in own):
            found.setdefault(classes)
    return tuple(tuple(place[c] for c in sorted(classes)) for classes in found)


def _group(
    view: GraphView,
    producers: list[str],
    channels: tuple[int, ...],
    tensors: list[str],
    unique: Mapping[str, list[int]],
) -> Group:
    place = {channel: at for at, channel in enumerate(channels)}
    covers: dict[tuple[int, ...], None] = {}
    for name in tensors:
        classes = unique[name]
        if len(classes) <= len(place) and all(c in place for c in classes):
            covers.setdefault(tuple(sorted(place[c] for c in classes)))
    smallest = [c for c in covers if not any(set(o) < set(c) for o in covers)]
    consumers = [
        use.node.name
        for name in tensors
        for use in view.uses(name)
        if use.node.op_type in LAYERS and use.index == 0
    ]
    return Group(
        name=producers[0],
        producers=tuple(producers),
        consumers=tuple(dict.fromkeys(consumers)),
        channels=channels,
        tensors=tuple(tensors),
        covers=tuple(smallest),
    )
