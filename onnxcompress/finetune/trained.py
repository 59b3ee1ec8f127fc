"""Which constants of a graph are weights, to be trained, and which are anything else."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from onnxcompress.graph.view import FLOATING_TYPES

WEIGHTS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RMSNormalization": (1,),
}
"""Operands that hold weights, by operator. A MatMul's may stand on either side."""

BEHIND_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""What an Add of a constant right behind is a bias of."""

_THROUGH: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("Add", "Concat", "Div", "Einsum", "MatMul", "Mul", "Sub", "Sum")),
    **dict.fromkeys(
        (
            *("Cast", "Expand", "Gather", "Identity", "Neg", "Pad", "Reshape", "Slice", "Squeeze"),
            *("Tile", "Transpose", "Unsqueeze"),
        ),
        (0,),
    ),
    "ScatterND": (0, 2),
    "Where": (1, 2),
}
"""Operators that put weights together out of others, with the operands that are values (None: all).
A layer whose kernels are written as programs is trained in what the programs are filled with."""


def trained_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """The floating-point constants that training changes, in the order in which they are read.

    These are weights, biases, scales and slopes of layers and normalisations, however they are
    put together from constants. Other constants (bounds, sizes, means and deviations that inputs
    are normalised by) stay.

    Args:
        model: without local functions.
    """
    constants = {t.name for t in model.graph.initializer if t.data_type in FLOATING_TYPES}
    producers: dict[str, onnx.NodeProto] = {}
    fixed = {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and any(
            a.name == "value" and a.t.data_type in FLOATING_TYPES for a in node.attribute
        ):
            constants.add(node.output[0])
        producers.update(dict.fromkeys(node.output, node))
        if all(not name or name in fixed for name in node.input):
            fixed.update(node.output)
    found: dict[str, None] = {}
    for node in model.graph.node:
        for name in _weights_of(node, producers, fixed):
            found.update(dict.fromkeys(_cone(name, constants, producers)))
    return tuple(found)


def _weights_of(
    node: onnx.NodeProto, producers: dict[str, onnx.NodeProto], fixed: set[str]
) -> Iterator[str]:
    """The operands of a node that are weights and depend on constants alone."""
    if node.op_type == "Add":
        for name, other in zip(node.input, reversed(node.input), strict=True):
            behind = producers.get(other)
            if name in fixed and behind is not None and behind.op_type in BEHIND_LAYERS:
                yield name
    elif set(node.input) - fixed:
        for index in WEIGHTS.get(node.op_type, ()):
            if index < len(node.input) and node.input[index] in fixed:
                yield node.input[index]


def _cone(name: str, constants: set[str], producers: dict[str, onnx.NodeProto]) -> Iterator[str]:
    """The constants that a weight is put together from."""
    if name in constants:
        yield name
        return
    node = producers.get(name)
    if node is None or node.op_type not in _THROUGH:
        return
    indices = _THROUGH[node.op_type]
    for index in range(len(node.input)) if indices is None else indices:
        if index < len(node.input):
            yield from _cone(node.input[index], constants, producers)
