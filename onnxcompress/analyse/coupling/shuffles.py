"""Channel shuffles: chains of Reshape and Transpose that only permute channels.

Taken node by node, the inside of a shuffle has to stay rectangular, which ties its channels
together in blocks; unit after unit, a whole stage of ShuffleNet collapses into one class. Taken as
a whole, a shuffle is a permutation of channels, which a Gather can do for any subset of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from onnxcompress.analyse.coupling.execute import as_wide
from onnxcompress.analyse.coupling.flow import Flow, expand
from onnxcompress.analyse.coupling.tracer import Tracer

_LINKS = frozenset({"Reshape", "Transpose"})
_LONGEST = 6


@dataclass(frozen=True)
class Shuffle:
    """A chain of nodes that permutes the channels of `source` into `target`.

    Attributes:
        nodes: names of the chain's nodes in order.
        source: the tensor that enters.
        target: the tensor that leaves.
        axis: the channel axis of both.
        order: channel i of the target is channel `order[i]` of the source.
    """

    nodes: tuple[str, ...]
    source: str
    target: str
    axis: int
    order: tuple[int, ...]


def find_shuffles(tracer: Tracer) -> dict[str, Shuffle]:
    """Every shuffle, by its first node; flows inside are forgotten, so that they tie nothing."""
    found: dict[str, Shuffle] = {}
    inside: set[str] = set()
    for node in tracer.view.model.graph.node:
        if node.name in inside or node.op_type not in _LINKS:
            continue
        shuffle = _shuffle(node, tracer)
        if shuffle is not None:
            found[node.name] = shuffle
            inside.update(shuffle.nodes)
    for name in inside:
        for output in tracer.view.nodes[name].output:
            if all(output != shuffle.target for shuffle in found.values()):
                tracer.flows.pop(output, None)
    tracer.spread[:] = [(node, flow) for node, flow in tracer.spread if node not in inside]
    return found


def _shuffle(first: onnx.NodeProto, tracer: Tracer) -> Shuffle | None:
    source = tracer.flow(first.input[0])
    if source is None or len(source.varying) != 1:
        return None
    axis = source.varying[0]
    chain, node = [first], first
    while len(chain) < _LONGEST:
        target = tracer.flow(node.output[0])
        if target is None:
            return None
        if len(chain) > 1 and target.shape == source.shape and target.varying == (axis,):
            order = _order(chain, source, axis, tracer)
            if order is None:
                return None
            names = tuple(link.name for link in chain)
            return Shuffle(names, first.input[0], node.output[0], axis, order)
        use = tracer.view.sole_use(node.output[0])
        if use is None or use.index != 0 or use.node.op_type not in _LINKS:
            return None
        node = use.node
        chain.append(node)
    return None


def _order(
    chain: list[onnx.NodeProto], source: Flow, axis: int, tracer: Tracer
) -> tuple[int, ...] | None:
    """Where every channel of the result comes from; None if it is not a plain permutation."""
    extent = source.shape[axis]
    lined = [1] * len(source.shape)
    lined[axis] = extent
    numbers = np.arange(extent, dtype=np.float64).reshape(lined)
    values = expand(numbers, source.shape, range(len(source.shape)))
    # Positions in space must stay where they are: a second run carries their numbers.
    places = np.broadcast_to(
        np.arange(values.size // extent, dtype=np.float64).reshape(
            [1 if a == axis else n for a, n in enumerate(source.shape)]
        ),
        source.shape,
    )
    where = np.ascontiguousarray(places)
    for node in chain:
        others = [tracer.value(name) for name in node.input[1:]]
        values = as_wide(tracer.runner.run(node, [values, *others])[0])
        where = as_wide(tracer.runner.run(node, [where, *others])[0])
    line = np.moveaxis(values, axis, 0).reshape(extent, -1)
    if not (line == line[:, :1]).all() or not np.array_equal(where, places):
        return None
    return tuple(int(v) for v in line[:, 0])
