"""Channels that a network computes for nothing: always zero, read by nobody, or there twice.

A channel goes exactly where forcing it to zero changes nothing: its producers make zeros whatever
they read (weights of zero and a bias that the activation cuts off), or every layer that reads it
has weights of zero there. A channel that equals another goes once its readers' weights are added
to those of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.linear import LinearLayer, linear_layer
from onnxcompress.errors import ModelError
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.view import GraphView, attributes
from onnxcompress.plan.channels.consumers import Consumer, consumers
from onnxcompress_passes.exact.finding import is_kind

Array = NDArray[np.float64]

_ALIKE = frozenset(
    {
        *("Conv", "Gemm", "MatMul", "Relu", "LeakyRelu", "Elu", "Sigmoid", "HardSigmoid", "Tanh"),
        *("HardSwish", "Clip", "Softplus", "MaxPool", "AveragePool", "GlobalAveragePool"),
        *("GlobalMaxPool", "Flatten", "Reshape", "Transpose", "Concat", "Identity", "Dropout"),
    }
)
"""Operators that treat equal channels equally, whatever their constants are."""

_TWO = frozenset({"Add", "Sub", "Mul", "Div"})
"""Operators that do so where neither operand is a constant."""


@dataclass(frozen=True)
class Idle:
    """Channels of a group that may go.

    Attributes:
        gone: their numbers.
        into: for each, the channel that equals it, or -1 where it is zero or not read.
    """

    gone: tuple[int, ...]
    into: tuple[int, ...]


def idle_channels(facts: Facts, coupling: Coupling, group: Group) -> Idle:
    """What of a group the network computes for nothing.

    Raises:
        ModelError: the group has readers or producers of which this cannot be told.
    """
    view = facts.view
    readers = consumers(facts, coupling, group)
    makers = [linear_layer(view.nodes[name], view) for name in group.producers]
    unread = np.ones(group.width, dtype=bool)
    for reader in readers:
        weight = np.abs(_matrices(reader.layer, view)).sum(axis=1)
        for channel in np.unique(reader.blocks[(weight > 0) & (reader.blocks >= 0)]):
            unread[channel] = False
    free = unread | _silent(makers, coupling, group, view)
    found = {int(channel): -1 for channel in np.flatnonzero(free)}
    if alike(group, view):
        first: dict[bytes, int] = {}
        rows = _rows(makers, coupling, group, view)
        for channel in range(group.width):
            if channel not in found and rows[channel]:
                twin = first.setdefault(rows[channel], channel)
                if twin != channel:
                    found[channel] = twin
    kept = [{c for c in cover if c not in found} for cover in group.covers]
    for cover, left in zip(group.covers, kept, strict=True):
        # One channel of every tensor has to stay, needed or not.
        if cover and not left and all(c in found for c in cover):
            found.pop(cover[0])
    order = sorted(found)
    return Idle(tuple(order), tuple(found[channel] for channel in order))


def merged(edit: Editor, coupling: Coupling, facts: Facts, idle: Mapping[str, Idle]) -> None:
    """Add the weights that read a channel's twin to those that read the channel that stays."""
    view = facts.view
    weights: dict[str, tuple[LinearLayer, Array]] = {}
    for name, channels in idle.items():
        pairs = [(g, i) for g, i in zip(channels.gone, channels.into, strict=True) if i >= 0]
        for reader in consumers(facts, coupling, coupling.group(name)) if pairs else ():
            own = weights.setdefault(
                reader.layer.node, (reader.layer, _matrices(reader.layer, view))
            )[1]
            _add_up(reader, own, pairs)
    for name, (layer, matrices) in weights.items():
        node = edit.node(name)
        old = np.asarray(node.inputs[1].values)
        edit.set_input(node, 1, edit.constant(f"{name}_exact_weight", layer.stored(matrices, old)))


def _add_up(reader: Consumer, matrices: Array, pairs: Sequence[tuple[int, int]]) -> None:
    for blocks, matrix in zip(reader.blocks, matrices, strict=True):
        for gone, into in pairs:
            columns = np.flatnonzero(blocks == gone)
            matrix[:, blocks == into] += matrix[:, columns]
            matrix[:, columns] = 0.0


def _matrices(layer: LinearLayer, view: GraphView) -> Array:
    return layer.matrices(view.array(layer.spec.weight))


def _silent(
    makers: Sequence[LinearLayer], coupling: Coupling, group: Group, view: GraphView
) -> NDArray[np.bool_]:
    """Which channels are zero behind all their producers, whatever the network reads."""
    place = {channel: at for at, channel in enumerate(group.channels)}
    silent = np.ones(group.width, dtype=bool)
    seen = np.zeros(group.width, dtype=bool)
    for layer in makers:
        numbers = channel_numbers(layer.output, coupling, place)
        before = channel_numbers(layer.input, coupling, place)
        bias = layer.bias(view)
        rows = np.abs(_matrices(layer, view)).sum(axis=2).ravel()
        if bias is None or len(numbers) != len(rows):
            return np.zeros(group.width, dtype=bool)
        cut = _cut_off(layer.output, view)
        for at, number in enumerate(numbers.tolist()):
            if number < 0:
                continue
            # Depthwise: a channel of zeros in gives zeros but for the bias.
            handed = layer.groups > 1 and len(before) == len(numbers) and before[at] == number
            still = rows[at] == 0 or (handed and seen[number] and silent[number])
            quiet = bias[at] == 0 or bias[at] <= cut
            silent[number] &= bool(still and quiet)
            seen[number] = True
    return silent & seen


def channel_numbers(tensor: str, coupling: Coupling, place: Mapping[int, int]) -> NDArray[np.intp]:
    """Channel number of every index of a tensor's channel axis; -1 for those of other groups."""
    lane = coupling.lanes.get(tensor)
    classes = [] if lane is None else lane.classes.tolist()
    return np.array([place.get(c, -1) for c in classes], dtype=np.intp)


def _cut_off(tensor: str, view: GraphView) -> float:
    """What the activation behind a tensor turns into zero, and everything below it."""
    use = view.sole_use(tensor)
    if use is None:
        return -np.inf
    node = use.node
    if is_kind(node, "Relu"):
        return 0.0
    if is_kind(node, "HardSwish"):
        return -3.0
    if is_kind(node, "Clip"):
        least = attributes(node).get("min")
        if least is None and len(node.input) > 1 and view.is_constant(node.input[1]):
            least = float(view.array(node.input[1]).ravel()[0])
        return 0.0 if least == 0.0 else -np.inf
    return -np.inf


def alike(group: Group, view: GraphView) -> bool:
    """Whether nothing between producers and readers tells equal channels apart."""
    for tensor in group.tensors:
        for use in view.uses(tensor):
            node: onnx.NodeProto = use.node
            plain = is_kind(node, *_ALIKE)
            if is_kind(node, *_TWO):
                plain = not any(view.is_constant(name) for name in node.input)
            if not plain:
                return False
    return True


def _rows(
    makers: Sequence[LinearLayer], coupling: Coupling, group: Group, view: GraphView
) -> list[bytes]:
    """Everything that makes a channel, as bytes; empty where some of it is not known."""
    place = {channel: at for at, channel in enumerate(group.channels)}
    found = [b""] * group.width
    for layer in makers:
        numbers = channel_numbers(layer.output, coupling, place)
        before = channel_numbers(layer.input, coupling, place)
        bias = layer.bias(view)
        rows = _matrices(layer, view).reshape(-1, layer.features)
        grouped = layer.groups > 1 and not np.array_equal(before, numbers)
        counts = np.bincount(numbers[numbers >= 0], minlength=group.width)
        if bias is None or len(numbers) != len(rows) or grouped or (counts != 1).any():
            return [b""] * group.width
        for at, number in enumerate(numbers.tolist()):
            if number >= 0:
                found[number] += rows[at].tobytes() + bias[at].tobytes()
    return found


def known_idle(facts: Facts, coupling: Coupling, group: Group) -> Idle:
    """The same, looked up once; nothing where it cannot be told."""

    def find() -> Idle:
        try:
            return idle_channels(facts, coupling, group)
        except ModelError:
            return Idle((), ())

    return facts.recall(("idle channels", group.name), find)
