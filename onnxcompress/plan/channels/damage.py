"""What removing channels does to the layers that read them, predicted from weights and moments.

A consumer with weight W [out, in, *k] loses sum_c |W[:, c]|^2 E[(x_c - v_c)^2] of the squared
norm of its response, where v_c is the constant that a bias absorbs; relative to the same sum over
all channels. Correlations between channels and positions are left out. Without calibration inputs
every channel counts alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onnxcompress.analyse.coupling.result import Coupling, Group, Lane
from onnxcompress.analyse.facts import Facts
from onnxcompress.graph.view import attributes
from onnxcompress.graph.weights import constant_values

Array = NDArray[np.float64]


def channel_damage(facts: Facts, coupling: Coupling, group: Group) -> Array:
    """Predicted damage of removing each channel of a group, summed over its consumers; [width]."""
    place = {channel: at for at, channel in enumerate(group.channels)}
    damage = np.zeros(group.width)
    for shares, lane in _consumers(facts, coupling, group):
        for share, channel in zip(shares.tolist(), lane.classes.tolist(), strict=True):
            if channel in place:
                damage[place[channel]] += share
    return damage


def _consumers(facts: Facts, coupling: Coupling, group: Group) -> Iterator[tuple[Array, Lane]]:
    """Share of every input channel in the response of every layer that ends the group."""
    for name in group.consumers:
        node = facts.view.nodes[name]
        lane = coupling.lanes[node.input[0]]
        energy = _energy(facts, name)
        if len(energy) != len(lane.classes):
            continue
        after = coupling.lanes.get(node.output[0])
        if after is not None and set(lane.classes.tolist()) & set(after.classes.tolist()):
            # Depthwise and by whole groups: inputs and outputs go together, no response is left.
            continue
        energy = energy * _moments(facts, coupling, node.input[0], lane)
        total = float(energy.sum())
        if total > 0.0:
            yield energy / total, lane


def _energy(facts: Facts, layer: str) -> Array:
    """Squared norm of a layer's weights per input channel."""
    return facts.recall(("energy", layer), lambda: _energy_of(facts, layer))


def _energy_of(facts: Facts, layer: str) -> Array:
    node = facts.view.nodes[layer]
    squares = np.square(constant_values(facts.view, node.input[1]))
    if node.op_type in {"Gemm", "MatMul"}:
        return np.asarray(squares.sum(axis=0 if attributes(node).get("transB", 0) else 1))
    group = int(str(attributes(node).get("group", 1)))
    if node.op_type == "ConvTranspose":
        return np.asarray(squares.reshape(len(squares), -1).sum(axis=1))
    rows = squares.reshape(group, -1, squares.shape[1], int(np.prod(squares.shape[2:])))
    return np.asarray(rows.sum(axis=(1, 3)).ravel())


def _moments(facts: Facts, coupling: Coupling, tensor: str, lane: Lane) -> Array:
    """E[(x - v)^2] of every channel; ones without calibration inputs."""
    collect = facts.activations()
    if collect is None:
        return np.ones(len(lane.classes))
    names = dict.fromkeys(
        facts.view.nodes[name].input[0] for group in coupling.groups for name in group.consumers
    )
    axes = {name: coupling.lanes[name].axis for name in names}
    found = facts.recall("moments of what layers read", lambda: collect(axes))[tensor]
    left = np.nan_to_num(lane.values)
    moments: Array = np.maximum(found.square - 2.0 * left * found.mean + left**2, 0.0)
    return moments
