"""Cutting one layer, with the neighbours ONNX Runtime fuses into it, out of a network.

The cut-out is a model of its own: it is timed, and rewritten by the very pass that would rewrite
the network, so that what is measured is what would be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from onnxcompress.errors import ModelError
from onnxcompress.graph.view import GraphView, attributes

FUSED_ACTIVATIONS = frozenset(
    {"Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish"}
)


def extract_layer(
    view: GraphView, node: str, shapes: Mapping[str, tuple[int, ...]]
) -> onnx.ModelProto:
    """The layer `node` with its fused neighbours, at fixed sizes.

    A residual Add and one activation after the layer come along when nobody else reads what lies
    between; every tensor that enters becomes an input of the size in `shapes`.

    Raises:
        ModelError: a size is not known.
    """
    layer = view.nodes[node]
    return extract_nodes(view, [layer, *_fused(view, layer)], shapes)


def extract_nodes(
    view: GraphView, chain: Sequence[onnx.NodeProto], shapes: Mapping[str, tuple[int, ...]]
) -> onnx.ModelProto:
    """Some nodes as a model of their own, at fixed sizes; the last one makes its output.

    Raises:
        ModelError: a size is not known.
    """
    made = {name for part in chain for name in part.output if name}
    initializers, inputs = [], []
    for name in dict.fromkeys(n for part in chain for n in part.input if n and n not in made):
        if view.is_constant(name):
            initializers.append(view.initializers[name])
        else:
            inputs.append(_value(view, name, shapes))
    graph = onnx.helper.make_graph(
        chain,
        f"layer {chain[0].name}",
        inputs,
        [_value(view, chain[-1].output[0], shapes)],
        initializers,
    )
    model = onnx.helper.make_model(graph, opset_imports=view.model.opset_import)
    model.ir_version = max(view.model.ir_version, 4)
    return model


def structure_key(model: onnx.ModelProto) -> list[object]:
    """What latency depends on: operators, attributes, sizes, types, wiring; no names, no values."""
    numbers: dict[str, int] = {"": -1}
    inputs: list[object] = []
    for value in model.graph.input:
        numbers.setdefault(value.name, len(numbers))
        tensor = value.type.tensor_type
        inputs.append([tensor.elem_type, [d.dim_value for d in tensor.shape.dim]])
    constants: list[object] = []
    for tensor in sorted(model.graph.initializer, key=lambda t: _first_use(model, t.name)):
        numbers.setdefault(tensor.name, len(numbers))
        constants.append([tensor.data_type, list(tensor.dims)])
    nodes: list[object] = []
    for node in model.graph.node:
        for name in node.output:
            numbers.setdefault(name, len(numbers))
        values = {k: v for k, v in sorted(attributes(node).items()) if _plain(v)}
        wiring = [[numbers[n] for n in node.input], [numbers[n] for n in node.output]]
        nodes.append([node.domain, node.op_type, _listed(values), wiring])
    return [inputs, constants, nodes]


def _fused(view: GraphView, layer: onnx.NodeProto) -> list[onnx.NodeProto]:
    chain: list[onnx.NodeProto] = []
    tensor = layer.output[0]
    for kind in ("add", "activation"):
        use = view.sole_use(tensor)
        if use is None or use.node.domain not in {"", "ai.onnx"}:
            break
        node = use.node
        matches = node.op_type == "Add" if kind == "add" else node.op_type in FUSED_ACTIVATIONS
        if matches and len(set(node.input)) == len(node.input):
            chain.append(node)
            tensor = node.output[0]
    return chain


def _value(
    view: GraphView, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> onnx.ValueInfoProto:
    if name not in shapes:
        raise ModelError(f"the size of tensor '{name}' is not known")
    return onnx.helper.make_tensor_value_info(name, _element_type(view, name), shapes[name])


def _element_type(view: GraphView, name: str) -> int:
    graph = view.model.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.name == name:
            return int(value.type.tensor_type.elem_type)
    raise ModelError(f"the type of tensor '{name}' is not known")


def _first_use(model: onnx.ModelProto, name: str) -> tuple[int, int]:
    for at, node in enumerate(model.graph.node):
        for index, read in enumerate(node.input):
            if read == name:
                return at, index
    return len(model.graph.node), 0


def _plain(value: object) -> bool:
    return isinstance(value, (int, float, str)) or hasattr(value, "__iter__")


def _listed(values: dict[str, object]) -> dict[str, object]:
    return {
        k: list(v) if hasattr(v, "__iter__") and not isinstance(v, str) else v
        for k, v in values.items()
    }
