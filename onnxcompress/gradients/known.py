"""What is known of every tensor at fixed sizes: shape, type, and values that only sizes decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnxcompress.analyse.shapes import observe
from onnxcompress.errors import GradientError
from onnxcompress.graph.infer import element_types, shapes_at
from onnxcompress.graph.view import GraphView, subgraphs
from onnxcompress.runtime import Array

Shape = tuple[int, ...]
_OF_SIZES = frozenset({"Shape", "Size"})


@dataclass(frozen=True)
class Known:
    """A model at fixed input sizes.

    Attributes:
        view: index of the model.
        shapes: shape of every tensor.
        types: element type of every tensor (onnx.TensorProto.DataType).
        computed: values that nodes compute from shapes and constants alone.
    """

    view: GraphView
    shapes: Mapping[str, Shape]
    types: Mapping[str, int]
    computed: Mapping[str, Array]

    def dtype(self, tensor: str) -> np.dtype[np.generic]:
        """The element type of a tensor as NumPy has it."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.types[tensor]))

    def value(self, tensor: str) -> Array:
        """The values of a tensor that does not depend on the inputs' values.

        Raises:
            GradientError: it does.
        """
        if self.view.is_constant(tensor):
            return self.view.array(tensor)
        if tensor in self.computed:
            return self.computed[tensor]
        raise GradientError(f"tensor '{tensor}' is computed at run time, not a constant")


def know(model: onnx.ModelProto, sizes: Mapping[str, Shape]) -> Known:
    """Find the shape and type of every tensor when the inputs have these sizes.

    What inference leaves open is read off a run in ONNX Runtime on random inputs.

    Raises:
        ModelError: the model does not run at these sizes.
    """
    view = GraphView(model)
    shapes, types = shapes_at(model, sizes), element_types(model)
    made = [name for node in model.graph.node for name in node.output if name]
    constant = _of_sizes(model)
    open_names = [n for n in made if n not in shapes or not types.get(n) or n in constant]
    # An output that nobody declared needs a type, which ONNX Runtime infers by itself.
    seen = observe(model, sizes, open_names) if open_names else {}
    for name, value in seen.items():
        shapes[name] = tuple(int(d) for d in value.shape)
        types[name] = int(onnx.helper.np_dtype_to_tensor_dtype(value.dtype))
    for tensor in model.graph.initializer:
        shapes[tensor.name] = tuple(tensor.dims)
    return Known(view, shapes, types, {name: seen[name] for name in made if name in constant})


def _of_sizes(model: onnx.ModelProto) -> frozenset[str]:
    """Tensors that nodes compute from nothing but shapes and constants."""
    constant = {tensor.name for tensor in model.graph.initializer}
    initial = frozenset(constant)
    for node in model.graph.node:
        inputs = [name for name in node.input if name]
        plain = node.domain in {"", "ai.onnx"} and not node.op_type.startswith("Random")
        plain = plain and not any(True for _ in subgraphs(node))
        if plain and (node.op_type in _OF_SIZES or (inputs and constant.issuperset(inputs))):
            constant.update(name for name in node.output if name)
    return frozenset(constant) - initial
