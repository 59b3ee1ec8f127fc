"""A model without its large weights: the same graph, light enough to check, infer and slim.

The checker and shape inference serialise the whole model; on a 550 MB network that costs two more
copies of every weight. Large floating-point initializers never decide a shape, so they are
replaced by graph inputs of the same type, and the real ones are kept aside.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from onnxcompress.graph.view import FLOATING_TYPES, subgraphs

LARGE_ELEMENTS = 1024
"""Below this an initializer stays in the skeleton: cheap, and it may be a shape or a scale."""


@dataclass(frozen=True)
class Skeleton:
    """The light model, and the initializers that were taken out of it, by name."""

    model: onnx.ModelProto
    weights: dict[str, onnx.TensorProto]


def skeleton(model: onnx.ModelProto, *, keep: frozenset[str] = frozenset()) -> Skeleton:
    """Take the large weights out of `model` (which is not changed).

    Args:
        model: any model whose initializers hold their data.
        keep: names that must stay real, for example because a node folds them.

    Returns:
        The skeleton; its weights are references to the initializers of `model`, not copies.
    """
    graph = model.graph
    light = onnx.ModelProto()
    _copy_all_but(model, light, "graph")
    _copy_all_but(graph, light.graph, "initializer")
    shadowed = {name for node in graph.node for sub in subgraphs(node) for name in _declared(sub)}
    initializers = {tensor.name for tensor in graph.initializer}
    true_inputs = [value for value in graph.input if value.name not in initializers]
    del light.graph.input[:]
    light.graph.input.extend(true_inputs)
    weights: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        large = element_count(tensor) >= LARGE_ELEMENTS and tensor.data_type in FLOATING_TYPES
        if not large or tensor.name in keep or tensor.name in shadowed:
            light.graph.initializer.append(tensor)
            continue
        weights[tensor.name] = tensor
        light.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    # Initializers need not be inputs from IR version 4 on, which a mixture of both relies on.
    light.ir_version = max(light.ir_version, 4)
    return Skeleton(light, weights)


def element_count(tensor: onnx.TensorProto) -> int:
    """The number of elements that the dimensions of `tensor` promise (Python integers: exact)."""
    count = 1
    for dimension in tensor.dims:
        count *= dimension
    return count


def _copy_all_but(
    source: onnx.ModelProto | onnx.GraphProto,
    target: onnx.ModelProto | onnx.GraphProto,
    skip: str,
) -> None:
    for field, value in source.ListFields():
        if field.name == skip:
            continue
        if isinstance(value, (int, str, bytes, float)):
            setattr(target, field.name, value)
        elif hasattr(value, "add"):
            getattr(target, field.name).extend(value)
        else:
            getattr(target, field.name).CopyFrom(value)


def _declared(graph: onnx.GraphProto) -> set[str]:
    """Names that a subgraph and its own subgraphs define: they may shadow an outer initializer."""
    names = {t.name for t in graph.initializer} | {i.name for i in graph.input}
    for node in graph.node:
        names.update(node.output)
        for sub in subgraphs(node):
            names |= _declared(sub)
    return names
