"""What removing channels touches and saves, counted without building the smaller graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx

from onnxcompress.analyse.facts import Facts
from onnxcompress.graph.cost import Cost, tensor_cost
from onnxcompress.graph.edits import (
    Absorb,
    Cut,
    Edit,
    Indices,
    Permute,
    Replace,
    narrowed,
    touched,
)
from onnxcompress.graph.view import GraphView
from onnxcompress.graph.weights import chain_of, weight_root


@dataclass(frozen=True)
class Toll:
    """Nodes that change or vanish, and their cost before and after."""

    touches: tuple[str, ...]
    before: Cost
    after: Cost
    narrows: tuple[str, ...] = ()


def toll(facts: Facts, edits: Sequence[Edit]) -> Toll:
    """Count what a list of edits touches and saves.

    MACs of a layer are its weight's size times the positions it is applied at, so they shrink in
    proportion to the weight. A constant that several nodes read is counted once for every
    different copy that is needed afterwards.
    """
    view = facts.view
    nodes = _with_vanishing(view, edits)
    macs_before = sum(facts.macs(name) for name in nodes)
    cuts = {(e.node, e.index): e.kept for e in edits if isinstance(e, Cut)}
    replaced = frozenset((e.node, e.index) for e in edits if isinstance(e, Replace))
    absorbing = frozenset((e.node, 2) for e in edits if isinstance(e, Absorb))
    macs_after = sum(_macs(facts, name, cuts) for name in nodes)
    operands = [t for name in nodes for t in view.nodes[name].input if t]
    read = {t for t in operands if view.is_constant(t)}
    for tensor in operands:
        if not view.is_constant(tensor) and weight_root(view, tensor) is not None:
            read |= {t for link in chain_of(view, tensor) for t in link.input if t}
    read &= set(view.initializers)
    before = sum((tensor_cost(view.initializers[t]) for t in sorted(read)), Cost(macs_before))
    after = sum(
        (_copies(view, t, cuts, replaced, absorbing) for t in sorted(read)), Cost(macs_after)
    )
    return Toll(nodes, before, after + _new_biases(facts, edits), narrowed(edits))


def _with_vanishing(view: GraphView, edits: Sequence[Edit]) -> tuple[str, ...]:
    """The nodes that edits name, and those that nobody reads any more afterwards."""
    names = dict.fromkeys(touched(list(edits)))
    unread: list[str] = []
    for edit in edits:
        if isinstance(edit, Permute):
            unread += [t for name in edit.nodes for t in view.nodes[name].input[1:]]
        elif isinstance(edit, (Cut, Replace)) and edit.index < len(view.nodes[edit.node].input):
            unread.append(view.nodes[edit.node].input[edit.index])
    gone: set[tuple[str, str]] = set()
    for edit in edits:
        if isinstance(edit, (Cut, Replace)) and edit.index < len(view.nodes[edit.node].input):
            gone.add((edit.node, view.nodes[edit.node].input[edit.index]))
        elif isinstance(edit, Permute):
            gone |= {(name, t) for name in edit.nodes for t in view.nodes[name].input[1:]}
    while unread:
        tensor = unread.pop()
        node = view.producers.get(tensor)
        if node is None or node.name in names or tensor in view.captured:
            continue
        readers = {(use.node.name, name) for name in node.output for use in view.uses(name)}
        if set(node.output) & set(view.outputs) or not readers <= gone:
            continue
        names.setdefault(node.name)
        gone |= {(node.name, name) for name in node.input}
        unread += list(node.input)
    return tuple(names)


def _macs(facts: Facts, name: str, cuts: Mapping[tuple[str, int], Mapping[int, Indices]]) -> int:
    macs = facts.macs(name)
    kept = cuts.get((name, 1))
    if not macs or kept is None:
        return macs
    view = facts.view
    shape = view.initializers[weight_root(view, view.nodes[name].input[1]) or ""].dims
    smaller = [len(kept[a]) if a in kept else extent for a, extent in enumerate(shape)]
    return int(macs * prod(smaller) // prod(shape))


def _copies(
    view: GraphView,
    tensor: str,
    cuts: Mapping[tuple[str, int], Mapping[int, Indices]],
    replaced: frozenset[tuple[str, int]],
    absorbing: frozenset[tuple[str, int]],
) -> Cost:
    """Cost of what stands in for an initializer afterwards: one copy per way of cutting it."""
    whole = tensor_cost(view.initializers[tensor])
    if not whole.params:
        return Cost()
    shape = view.initializers[tensor].dims
    variants: dict[tuple[object, ...], Cost] = {}
    for node, index, axis in _readers(view, tensor):
        if (node, index) in replaced:
            continue
        kept = cuts.get((node, index), {})
        if axis is not None:
            kept = {0: kept[axis]} if axis in kept and prod(shape) > 1 else {}
        key: tuple[object, ...] = tuple((a, kept[a].tobytes()) for a in sorted(kept))
        if (node, index) in absorbing:
            # What is absorbed differs from reader to reader.
            key = (*key, node)
        size = prod(len(kept[a]) if a in kept else n for a, n in enumerate(shape))
        octets = -(-whole.weight_bytes * size // whole.params)
        variants.setdefault(key, Cost(params=size, weight_bytes=octets))
    return sum(variants.values(), Cost())


def _readers(view: GraphView, tensor: str) -> Iterator[tuple[str, int, int | None]]:
    """Who reads a constant, through nodes that only hand weights on.

    Returns:
        (node, input, axis): the axis of the weight that the constant lies along when it is a
        scale or zero point, else None.
    """
    open_ends: list[tuple[str, int | None]] = [(tensor, None)]
    while open_ends:
        name, axis = open_ends.pop()
        for use in view.uses(name):
            if weight_root(view, use.node.output[0]) is None:
                yield use.node.name, use.index, axis
                continue
            along = next((int(a.i) for a in use.node.attribute if a.name == "axis"), 1)
            open_ends.append((use.node.output[0], along if use.index else axis))


def _octets(facts: Facts, node: onnx.NodeProto) -> int:
    """Bytes of a number of the type that a layer computes in."""
    graph = facts.model.graph

    def find() -> dict[str, int]:
        values = (*graph.value_info, *graph.output)
        return {value.name: int(value.type.tensor_type.elem_type) for value in values}

    kind = facts.recall("declared types", find).get(node.output[0], onnx.TensorProto.FLOAT)
    return int(onnx.helper.tensor_dtype_to_np_dtype(kind or onnx.TensorProto.FLOAT).itemsize)


def _new_biases(facts: Facts, edits: Sequence[Edit]) -> Cost:
    """Biases of layers that had none, or only a number that broadcast."""
    view, total = facts.view, Cost()
    for edit in edits:
        if not isinstance(edit, Absorb):
            continue
        node = view.nodes[edit.node]
        size = len(edit.addition)
        bias = node.input[2] if node.op_type != "MatMul" and len(node.input) > 2 else ""
        octets = _octets(facts, node)
        if not bias:
            total += Cost(params=size, weight_bytes=size * octets)
            continue
        shape = view.initializers[weight_root(view, bias) or ""].dims
        if not shape or shape[-1] == 1:
            total += Cost(params=size - 1, weight_bytes=(size - 1) * octets)
    return total
