"""Where ONNX Runtime placed the nodes of a model: compute that ran away to another provider."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx

from onnxcompress.graph.cost import COUNTED_OPERATORS

_INTEGER_TYPES = frozenset(
    getattr(onnx.TensorProto, name)
    for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL")
)


def compute_nodes_elsewhere(
    assignments: Sequence[tuple[str, str, str]],
    model: onnx.ModelProto | bytes | Path,
    wanted: str,
) -> list[str]:
    """Nodes placed on another provider, shape arithmetic left out.

    Shape arithmetic (nodes that make only integers or booleans) runs on the CPU by design: its
    results are needed there. Nodes without a name of their own are excused only if every node of
    their operator is shape arithmetic.

    Args:
        assignments: (provider, node name, operator) of every node, as a session reports them.
        model: the model that the session was made of.
        wanted: the provider that was asked for.

    Returns:
        `name (operator)` of each stray compute node.
    """
    strays = [(name, op) for provider, name, op in assignments if provider != wanted]
    if not strays:
        return []
    if not isinstance(model, onnx.ModelProto):
        model = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(model)
    typed = onnx.shape_inference.infer_shapes(model).graph
    names = Counter(node.name for node in typed.node)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*typed.value_info, *typed.output, *typed.input)
    }

    def is_arithmetic(node: onnx.NodeProto) -> bool:
        integers = all(types.get(name) in _INTEGER_TYPES for name in node.output if name)
        return integers and node.op_type not in COUNTED_OPERATORS

    excused = {node.name for node in typed.node if is_arithmetic(node)}
    operators = {node.op_type for node in typed.node} - {
        node.op_type for node in typed.node if not is_arithmetic(node)
    }
    return [
        f"{name} ({op})"
        for name, op in strays
        if not (name in excused if name and names[name] == 1 else op in operators)
        and not op.startswith("Memcpy")
    ]
