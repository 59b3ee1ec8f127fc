"""A read-only index over a model: nodes by name, producers, consumers and constants.

Readers use this view of the ModelProto; writers use the Editor. The view never changes the model
and decodes a constant only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.errors import ModelError

FLOATING_TYPES = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.DOUBLE,
    }
)


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """The attributes of a node as Python values (strings decoded)."""
    values: dict[str, object] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        values[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return values


@dataclass(frozen=True)
class Use:
    """One place where a tensor is read: input `index` of node `node`."""

    node: onnx.NodeProto
    index: int


class GraphView:
    """Index over the main graph of `model`; tensors captured by subgraphs count as used there."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.nodes: dict[str, onnx.NodeProto] = {node.name: node for node in graph.node}
        self.initializers: dict[str, onnx.TensorProto] = {t.name: t for t in graph.initializer}
        self.inputs = tuple(i.name for i in graph.input if i.name not in self.initializers)
        self.outputs = tuple(o.name for o in graph.output)
        self.producers: dict[str, onnx.NodeProto] = {}
        self._uses: dict[str, list[Use]] = {}
        self.captured: frozenset[str] = frozenset(captured_names(graph))
        for node in graph.node:
            for name in node.output:
                if name:
                    self.producers[name] = node
            for index, name in enumerate(node.input):
                if name:
                    self._uses.setdefault(name, []).append(Use(node, index))

    def uses(self, tensor: str) -> tuple[Use, ...]:
        """Every node input that reads `tensor` in the main graph."""
        return tuple(self._uses.get(tensor, ()))

    def sole_use(self, tensor: str) -> Use | None:
        """The one reader of `tensor`, or None if it has more, fewer, or is visible elsewhere."""
        uses = self._uses.get(tensor, [])
        if len(uses) != 1 or tensor in self.outputs or tensor in self.captured:
            return None
        return uses[0]

    def is_constant(self, tensor: str) -> bool:
        """Whether `tensor` is an initializer of the main graph."""
        return tensor in self.initializers

    def array(self, tensor: str) -> NDArray[np.generic]:
        """The values of an initializer, in its own dtype.

        Raises:
            ModelError: `tensor` is not an initializer, or its data does not fit its shape.
        """
        if tensor not in self.initializers:
            raise ModelError(f"tensor '{tensor}' is not a constant of the graph")
        try:
            return np.asarray(onnx.numpy_helper.to_array(self.initializers[tensor]))
        except (ValueError, TypeError) as error:
            raise ModelError(f"initializer '{tensor}' cannot be decoded: {error}") from error

    def array64(self, tensor: str) -> NDArray[np.float64]:
        """The values of a floating initializer in float64."""
        return np.asarray(self.array(tensor), dtype=np.float64)

    def opset(self, domain: str = "") -> int:
        """The opset version imported for `domain` (0 when it is not imported)."""
        for entry in self.model.opset_import:
            if entry.domain == domain or (domain == "" and entry.domain == "ai.onnx"):
                return int(entry.version)
        return 0


def captured_by(node: onnx.NodeProto) -> set[str]:
    """Names that the subgraphs of a node read from outside (or might)."""
    return {name for graph in subgraphs(node) for name in _read_names(graph)}


def captured_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that the subgraphs of `graph` read from it (or might: shadowed names are included)."""
    for node in graph.node:
        for subgraph in subgraphs(node):
            yield from _read_names(subgraph)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that hang on a node's attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def _read_names(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from (name for name in node.input if name)
        for subgraph in subgraphs(node):
            yield from _read_names(subgraph)
    yield from (output.name for output in graph.output)
