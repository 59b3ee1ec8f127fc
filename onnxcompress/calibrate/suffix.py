"""The part of a network that depends on some tensors, as a model that takes them as inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxcompress.errors import ModelError
from onnxcompress.gradients.emitter import Emitter
from onnxcompress.gradients.known import Known
from onnxcompress.graph.view import GraphView, captured_by, captured_names


@dataclass(frozen=True)
class Suffix:
    """What runs again when channels of some taps are set to zero.

    Attributes:
        model: the nodes that depend on one of the taps.
        frontier: its inputs that the whole network computes, some of the taps among them.
        masks: by tap that it computes itself, the input [1, ..., C, ..., 1] that multiplies it.
        dtypes: by such a tap, its type.
        outputs: which of the tensors asked for it gives.
    """

    model: onnx.ModelProto
    frontier: tuple[str, ...]
    masks: Mapping[str, str]
    dtypes: Mapping[str, np.dtype[np.generic]]
    outputs: tuple[str, ...]


def cut_suffix(known: Known, taps: Mapping[str, int], wanted: Sequence[str]) -> Suffix:
    """Cut off what depends on some tensors.

    Args:
        known: the network, with shapes and types at the representative sizes.
        taps: the tensors, with their channel axis.
        wanted: tensors that the loss is computed from.

    Returns:
        The suffix; without outputs where the loss does not depend on any tap.

    Raises:
        ModelError: a subgraph reads a tap, where it cannot be replaced.
    """
    view = known.view
    graph = onnx.GraphProto(name="suffix")
    graph.node.extend(_needed(list(_behind(view, taps)), wanted))
    inside = {name for node in graph.node for name in node.output if name}
    read = dict.fromkeys([*(n for node in graph.node for n in node.input if n), *taps])
    read |= dict.fromkeys(captured_names(graph))
    outside = [name for name in read if name not in inside]
    frontier = [name for name in outside if name in view.producers]
    # What the model declares holds at any size; the shapes that are known only at one.
    declared = {v.name: v for v in (*view.model.graph.value_info, *view.model.graph.output)}
    for name in frontier:
        bare = onnx.helper.make_tensor_value_info(name, known.types[name], None)
        graph.input.append(declared.get(name, bare))
    graph.input.extend(v for v in view.model.graph.input if v.name in outside)
    graph.initializer.extend(view.initializers[n] for n in outside if n in view.initializers)
    outputs = [name for name in wanted if name in inside or name in taps]
    masks = {tap: _mask(graph, tap, axis, known) for tap, axis in taps.items() if tap in inside}
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    model = onnx.helper.make_model(
        graph,
        opset_imports=view.model.opset_import,
        ir_version=max(view.model.ir_version, 4),
    )
    dtypes = {tap: known.dtype(tap) for tap in masks}
    return Suffix(model, tuple(frontier), masks, dtypes, tuple(outputs))


def _needed(nodes: Sequence[onnx.NodeProto], wanted: Collection[str]) -> list[onnx.NodeProto]:
    """Those of some nodes, in order of execution, that a wanted tensor is computed from."""
    needed, kept = set(wanted), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input, captured_by(node))
    return kept[::-1]


def _behind(view: GraphView, taps: Collection[str]) -> Iterator[onnx.NodeProto]:
    """The nodes that depend on a tap, in order of execution."""
    moved = set(taps)
    for node in view.model.graph.node:
        if moved.intersection(node.input) or moved.intersection(captured_by(node)):
            moved.update(name for name in node.output if name)
            yield node


def _mask(graph: onnx.GraphProto, tap: str, axis: int, known: Known) -> str:
    """Multiply a tensor that is computed here by a new input, for everybody who reads it."""
    if tap in captured_names(graph):
        raise ModelError(
            f"tensor '{tap}' is read by a subgraph: its channels cannot be set to zero"
        )
    shape = known.shapes[tap]
    emit = Emitter(graph)
    lined = [extent if a == axis else 1 for a, extent in enumerate(shape)]
    mask, before = emit.input("mask", known.types[tap], lined), emit.name()
    at = next(i for i, node in enumerate(graph.node) if tap in node.output)
    maker = graph.node[at]
    maker.output[list(maker.output).index(tap)] = before
    product = onnx.helper.make_node("Mul", [before, mask], [tap], emit.name("Mul"))
    graph.node.insert(at + 1, product)
    return mask
