"""Nodes ready to be carried out in PyTorch, and what they are carried out on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch

from onnxcompress.finetune.operators.call import Operator, UnsupportedError
from onnxcompress.finetune.operators.table import OPERATORS
from onnxcompress.graph.view import subgraphs

STANDARD = {"", "ai.onnx"}
TAKES_SIZES = {
    *("CumSum", "Expand", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "TopK"),
    *("Unsqueeze", "Upsample"),
    *(name for name in OPERATORS if name.startswith("Reduce")),
}
"""Operators whose further operands are read by the host."""


@dataclass(frozen=True)
class Step:
    """One node, ready to be carried out.

    Attributes:
        node: the operator.
        operator: what it computes.
        attributes: those that are given.
        done: tensors that nobody reads after it.
    """

    node: onnx.NodeProto
    operator: Operator
    attributes: Mapping[str, Any]
    done: tuple[str, ...]


def channels_last(value: torch.Tensor) -> torch.Tensor:
    """The same values with channels last in memory: training is faster by a tenth and more."""
    if value.dim() != 4 or not value.is_floating_point():
        return value
    return value.contiguous(memory_format=torch.channels_last)


def operator_of(node: onnx.NodeProto) -> Operator:
    """What a node computes.

    Raises:
        UnsupportedError: its operator is not known; names both.
    """
    if node.domain not in STANDARD:
        raise UnsupportedError(
            f"node '{node.name}': operator {node.domain}::{node.op_type} is not known in training"
        )
    if any(True for _ in subgraphs(node)) or node.op_type not in OPERATORS:
        raise UnsupportedError(
            f"node '{node.name}': operator {node.op_type} is not known in training"
        )
    return OPERATORS[node.op_type]


def joined(nodes: Sequence[onnx.NodeProto], outputs: Collection[str]) -> list[onnx.NodeProto]:
    """Nodes in order, with x * sigmoid(x) as a Swish: faster, and a tensor less for the way back.

    Args:
        nodes: in order.
        outputs: tensors that are wanted, which stay.
    """
    readers = Counter(name for node in nodes for name in node.input)
    gates = {
        node.output[0]: node.input[0]
        for node in nodes
        if node.op_type == "Sigmoid"
        and node.domain in STANDARD
        and readers[node.output[0]] == 1
        and node.output[0] not in outputs
    }
    found: dict[str, onnx.NodeProto] = {}
    for node in nodes:
        if node.op_type == "Mul" and node.domain in STANDARD:
            for gate, x in (node.input, reversed(node.input)):
                if gates.get(gate) == x:
                    found[gate] = onnx.helper.make_node("Swish", [x], node.output, node.name)
    swishes = {node.output[0]: node for node in found.values()}
    return [swishes.get(node.output[0], node) for node in nodes if node.output[0] not in found]


def together(
    node: onnx.NodeProto, operands: tuple[torch.Tensor | None, ...], device: torch.device
) -> tuple[torch.Tensor | None, ...]:
    """Operands on one device: sizes and indices are kept with the host."""
    if device.type == "cpu" or node.op_type in TAKES_SIZES:
        return operands
    if all(value is None or value.device.type == "cpu" for value in operands):
        return operands
    return tuple(None if value is None else value.to(device) for value in operands)
