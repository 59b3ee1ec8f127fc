"""Adding nodes behind a graph: fresh names, constants of the right type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from onnxcompress.runtime import Array

_PREFIX = "gradient"


class Emitter:
    """Appends nodes to a graph of its own; names are handed out, never given twice."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._taken = {name for node in graph.node for name in node.output}
        self._taken |= {node.name for node in graph.node}
        self._taken |= {value.name for value in graph.input}
        self._taken |= {tensor.name for tensor in graph.initializer}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._number = 0

    def name(self, hint: str = _PREFIX) -> str:
        """A name that nothing in the graph has."""
        while True:
            self._number += 1
            name = f"{hint}_{self._number}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def constant(self, values: Array) -> str:
        """An initializer with these values; equal small ones are shared."""
        array = np.ascontiguousarray(values).reshape(np.shape(values))
        key = (array.dtype.str, array.shape, array.tobytes() if array.size <= 64 else b"")
        if array.size <= 64 and key in self._constants:
            return self._constants[key]
        name = self.name("constant")
        self._graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        if array.size <= 64:
            self._constants[key] = name
        return name

    def sizes(self, values: Sequence[int]) -> str:
        """A vector of int64, as shapes, axes, starts and pads are given."""
        return self.constant(np.asarray(list(values), dtype=np.int64))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output and return the output's name."""
        output = self.name()
        self._graph.node.append(
            onnx.helper.make_node(kind, list(inputs), [output], self.name(kind), **attributes)
        )
        return output

    def second_output(self, node: onnx.NodeProto) -> str:
        """The name of a node's second output, which it is given if it has none."""
        if len(node.output) < 2:
            node.output.append("")
        if not node.output[1]:
            node.output[1] = self.name()
        return str(node.output[1])

    def input(self, hint: str, kind: int, shape: Sequence[int]) -> str:
        """A new input of the graph."""
        name = self.name(hint)
        self._graph.input.append(onnx.helper.make_tensor_value_info(name, kind, list(shape)))
        return name
