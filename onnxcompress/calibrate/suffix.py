"""The part of a network that depends on some tensors, as a model that takes them as inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxcompress.errors import ModelError
from onnxcompress.gradients.emitter import Emitter
from onnxcompress.graph.infer import element_types
from onnxcompress.graph.view import GraphView, captured_names


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


def cut_suffix(
    view: GraphView,
    shapes: Mapping[str, tuple[int, ...]],
    taps: Mapping[str, int],
    wanted: Sequence[str],
) -> Suffix:
    """Cut off what depends on some tensors.

    Args:
        view: the network.
        shapes: shape of every tensor at the representative sizes.
        taps: the tensors, with their channel axis.
        wanted: tensors that the loss is computed from.

    Raises:
        ModelError: a subgraph reads a tap, where it cannot be replaced.
    """
    graph = onnx.GraphProto(name="suffix")
    graph.node.extend(_behind(view, taps))
    inside = {name for node in graph.node for name in node.output if name}
    read = dict.fromkeys([*(n for node in graph.node for n in node.input if n), *taps])
    read |= dict.fromkeys(captured_names(graph))
    outside = [name for name in read if name not in inside]
    frontier = [name for name in outside if name in view.producers]
    known = {v.name: v for v in (*view.model.graph.value_info, *view.model.graph.output)}
    types = element_types(view.model)
    for name in frontier:
        bare = onnx.helper.make_tensor_value_info(name, types.get(name, 0), None)
        graph.input.append(known.get(name, bare))
    graph.input.extend(v for v in view.model.graph.input if v.name in outside)
    graph.initializer.extend(view.initializers[n] for n in outside if n in view.initializers)
    outputs = [name for name in wanted if name in inside or name in taps]
    masks = {
        tap: _mask(graph, tap, axis, len(shapes[tap]), shapes[tap][axis], types[tap])
        for tap, axis in taps.items()
        if tap in inside
    }
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    model = onnx.helper.make_model(
        graph,
        opset_imports=view.model.opset_import,
        ir_version=max(view.model.ir_version, 4),
    )
    dtypes = {tap: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(types[tap])) for tap in masks}
    return Suffix(model, tuple(frontier), masks, dtypes, tuple(outputs))


def _behind(view: GraphView, taps: Collection[str]) -> Iterator[onnx.NodeProto]:
    """The nodes that depend on a tap, in order of execution."""
    moved = set(taps)
    for node in view.model.graph.node:
        holder = onnx.GraphProto()
        holder.node.append(node)
        if moved.intersection(node.input) or moved.intersection(captured_names(holder)):
            moved.update(name for name in node.output if name)
            yield node


def _mask(graph: onnx.GraphProto, tap: str, axis: int, rank: int, width: int, kind: int) -> str:
    """Multiply a tensor that is computed here by a new input, for everybody who reads it."""
    if tap in captured_names(graph):
        raise ModelError(
            f"tensor '{tap}' is read by a subgraph: its channels cannot be set to zero"
        )
    at = next(i for i, node in enumerate(graph.node) if tap in node.output)
    emit = Emitter(graph)
    mask = emit.input("mask", kind, [width if a == axis else 1 for a in range(rank)])
    masked = emit.op("Mul", tap, mask)
    product = graph.node.pop()
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == tap:
                node.input[index] = masked
    graph.node.insert(at + 1, product)
    return mask
