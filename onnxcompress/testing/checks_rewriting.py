"""How a pass acts: where it said it would, the same every time, and not for ever."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import onnx

from onnxcompress.graph.editor import PROVENANCE_KEY, Editor
from onnxcompress.graph.memo import Memo
from onnxcompress.graph.view import GraphView, subgraphs
from onnxcompress.load.canonical import canonicalise
from onnxcompress.plan.contract import Candidate, Pass
from onnxcompress.plan.options import Options, collect
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.testing.checks_measuring import (
    combinations,
    demand,
    edited,
    octets,
    proposals,
    relative_error,
    representatives,
    rewritten,
    run,
    tolerance,
    words,
)
from onnxcompress.testing.zoo import Entry

_ROUNDS = 3


def check_deterministic(owner: Pass[Any], entry: Entry) -> None:
    """Asked twice a pass offers the same; a candidate gives the same bytes every time.

    The second time the job's memo holds the results for the other candidates of the site.
    """
    model = entry.canonical()
    options = proposals(owner, entry)
    again = collect(entry.facts(), [owner])
    demand(options == again, "asked twice, the pass offers two different things")
    for offers in options.sites:
        memo, passes = Memo(), {owner.name: owner}
        alone = [rewritten(owner, model, [c]) for c in representatives(offers)]
        for candidate, once in zip(representatives(offers), alone, strict=True):
            second = rewrite(model, [candidate], passes, strict=True, memo=memo).model
            demand(octets(once) == octets(second), f"{words(candidate)}: twice, two models")


def check_rewrite_is_local(owner: Pass[Any], entry: Entry) -> None:
    """Nodes outside `touches`, their order, and the constants they read stay; so does the input."""
    model = entry.canonical()
    before = octets(model)
    # What the editor does to a graph that nobody edits is not the pass's doing.
    untouched = Editor(model).finish()
    for offers in proposals(owner, entry).sites:
        for candidate in representatives(offers):
            result = edited(owner, model, candidate)
            demand(octets(model) == before, f"{words(candidate)}: the input model was changed")
            _demand_local(untouched, result, candidate)


def check_names_are_fresh(owner: Pass[Any], entry: Entry) -> None:
    """No name is taken that the graph has in use already.

    What the pass calls its nodes and tensors is learned from one rewrite; then the network is
    extended by nodes and constants of those very names, and rewritten again.
    """
    for offers in proposals(owner, entry).sites:
        for candidate in representatives(offers):
            model = entry.canonical()
            result = rewritten(owner, model, [candidate])
            nodes = [n.name for n in result.graph.node]
            nodes = [name for name in nodes if name not in GraphView(model).nodes]
            tensors = [name for name in _tensors(result) if name not in _tensors(model)]
            extended, shift = _with_decoys(model, nodes, tensors)
            what = f"{words(candidate)}: among the names {[*nodes, *tensors]} some clash"
            have = len(_tensors(edited(owner, extended, candidate)))
            demand(
                have == len(_tensors(extended)) + len(_tensors(result)) - len(_tensors(model)), what
            )
            feeds = entry.feeds()
            expected = [y + np.asarray(shift, y.dtype) for y in run(entry, result, feeds)]
            both = rewritten(owner, extended, [candidate])
            error = relative_error(expected, run(entry, both, feeds))
            demand(error <= tolerance(both), f"{what}: output off by {error:.2g}")


def check_reaches_a_fixpoint(owner: Pass[Any], entry: Entry) -> None:
    """Applied to its own output the pass soon leaves alone what it has made."""
    model = entry.canonical()
    original = frozenset(GraphView(model).nodes)
    options = proposals(owner, entry)
    for _ in range(_ROUNDS):
        for choice in combinations(options)[-1:]:
            # As a user would: the output is loaded like any other model.
            model = canonicalise(rewritten(owner, model, choice)).model
        options = collect(entry.facts(model), [owner])
        own = _own_sites(options, owner, model, original)
        if not own:
            return
    raise AssertionError(f"after {_ROUNDS} rounds the pass still rewrites its own nodes {own}")


def check_commutes(owner: Pass[Any], entry: Entry) -> None:
    """Two candidates that touch different nodes give the same network in either order."""
    tight = [offers[-1] for offers in proposals(owner, entry).sites]
    for one, other in pairwise(tight):
        if set(one.touches) & set(other.touches):
            continue
        model = entry.canonical()
        there, back = (rewritten(owner, model, pair) for pair in ([one, other], [other, one]))
        what = f"{words(one)} and {words(other)}"
        demand(_content(there) == _content(back), f"{what}: the order changes the graph")
        feeds = entry.feeds()
        for want, have in zip(run(entry, there, feeds), run(entry, back, feeds), strict=True):
            # The same operations on the same numbers: not a bit may differ.
            demand(np.array_equal(want, have), f"{what}: the order changes the outputs")


def _demand_local(
    before: onnx.ModelProto, after: onnx.ModelProto, candidate: Candidate[Any]
) -> None:
    what = words(candidate)
    old, new = GraphView(before), GraphView(after)
    stay = [name for name in old.nodes if name not in candidate.touches]
    for name in stay:
        demand(name in new.nodes, f"{what}: node '{name}' vanished")
        same = octets(old.nodes[name]) == octets(new.nodes[name])
        demand(same, f"{what}: node '{name}' changed")
        for read in _reads(old.nodes[name]):
            if read in old.initializers:
                kept = read in new.initializers and octets(new.initializers[read]) == octets(
                    old.initializers[read]
                )
                demand(kept, f"{what}: constant '{read}' of node '{name}' changed")
    order = [name for name in new.nodes if name in set(stay)]
    demand(order == stay, f"{what}: the order of other nodes changed")


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names of tensors that a node or its subgraphs read."""
    inner = (n for graph in subgraphs(node) for n in graph.node)
    return set(node.input).union(*(_reads(n) for n in inner))


def _tensors(model: onnx.ModelProto) -> list[str]:
    names = [t.name for t in model.graph.initializer]
    return names + [name for node in model.graph.node for name in node.output if name]


def _with_decoys(
    model: onnx.ModelProto, nodes: list[str], tensors: list[str]
) -> tuple[onnx.ModelProto, float]:
    """Behind a lone layer add scalars, one Add each, with the given names; also their sum."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    graph = extended.graph
    output = graph.output[0]
    kind = output.type.tensor_type.elem_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    previous, total = f"{output.name} before decoys", 0.0
    graph.node[-1].output[0] = previous
    spare = [f"decoy {at}" for at in range(len(tensors))]
    names = (nodes + spare)[: max(len(nodes), len(tensors))]
    constants = tensors + spare[: max(0, len(names) - len(tensors))]
    for at, (node, constant) in enumerate(zip(names, constants, strict=True)):
        # Distinct powers of two: no two of them can stand in for each other, all are exact.
        value = 2.0 ** (-at % 5)
        values = np.full((), value, dtype)
        graph.initializer.append(onnx.numpy_helper.from_array(values, constant))
        current = output.name if at == len(names) - 1 else f"{output.name} after decoy {at}"
        graph.node.append(onnx.helper.make_node("Add", [previous, constant], [current], node))
        previous, total = current, total + value
    return canonicalise(extended, fold_constants=False).model, total


def _own_sites(
    options: Options, owner: Pass[Any], model: onnx.ModelProto, original: frozenset[str]
) -> list[str]:
    """Nodes on offer that the pass made: new by name, or stamped by the editor."""
    view = GraphView(model)
    return [
        node
        for offers in options.sites
        for node in (offers[0].site.node,)
        if node not in original
        or any(
            entry.key == PROVENANCE_KEY and entry.value == owner.name
            for entry in view.nodes[node].metadata_props
        )
    ]


def _content(model: onnx.ModelProto) -> tuple[Counter[str], Counter[tuple[int, str, bytes]]]:
    """Nodes and constants without their names."""
    nodes = Counter(
        f"{node.domain}:{node.op_type}:{sorted(str(a) for a in node.attribute)}"
        for node in model.graph.node
    )
    constants = Counter(
        (t.data_type, str(list(t.dims)), onnx.numpy_helper.to_array(t).tobytes())
        for t in model.graph.initializer
    )
    return nodes, constants
