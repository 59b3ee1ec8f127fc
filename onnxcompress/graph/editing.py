"""Carrying out edits through the Editor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxcompress.errors import PassError
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.edits import (
    WEIGHT,
    Absorb,
    Cut,
    Edit,
    Indices,
    Patch,
    Permute,
    Replace,
    SetAttributes,
)

_Cuts = dict[int, Indices]


def apply_edits(edits: Sequence[Edit], editor: Editor) -> None:
    """Carry out the edits; constants that were shared and are cut alike stay shared.

    Raises:
        PassError: the graph is not the one that the edits were worked out for.
    """
    shared: dict[tuple[object, ...], gs.Constant] = {}
    for edit in edits:
        match edit:
            case Cut():
                _cut(edit, editor, shared)
            case Replace():
                node = editor.node(edit.node)
                editor.set_input(node, edit.index, editor.constant(f"{edit.node}_cut", edit.values))
            case Patch():
                _patch(edit, editor)
            case SetAttributes():
                editor.set_attributes(editor.node(edit.node), edit.values)
            case Absorb():
                _absorb(edit, editor)
            case Permute():
                _permute(edit, editor)


def _cut(edit: Cut, editor: Editor, shared: dict[tuple[object, ...], gs.Constant]) -> None:
    node = editor.node(edit.node)
    whole = node.inputs[edit.index]
    kept = dict(edit.kept)
    editor.set_input(node, edit.index, _cut_tensor(whole, kept, node, editor, shared))
    if edit.index == WEIGHT:
        editor.kept[edit.node] = kept


def _cut_tensor(
    whole: gs.Tensor,
    kept: _Cuts,
    reader: gs.Node,
    editor: Editor,
    shared: dict[tuple[object, ...], gs.Constant],
) -> gs.Tensor:
    """A cut copy of a constant, or of the chain of nodes that makes it from one."""
    if isinstance(whole, gs.Constant):
        key = (whole.name, *((axis, kept[axis].tobytes()) for axis in sorted(kept)))
        if key not in shared:
            values = np.asarray(whole.values)
            for axis, indices in kept.items():
                values = values.take(indices, axis)
            shared[key] = editor.constant(f"{whole.name}_cut", values)
        return shared[key]
    if len(whole.inputs) != 1:
        raise PassError(f"tensor '{whole.name}' is not the constant it was")
    maker = whole.inputs[0]
    operands = [_cut_tensor(maker.inputs[0], kept, reader, editor, shared)]
    axis = int(maker.attrs.get("axis", 1)) % np.asarray(_root(maker.inputs[0]).values).ndim
    for operand in maker.inputs[1:]:
        per_axis = np.asarray(operand.values).size > 1 and axis in kept
        one = {0: kept[axis]} if per_axis else {}
        operands.append(_cut_tensor(operand, one, reader, editor, shared) if one else operand)
    result = editor.variable(f"{whole.name}_cut", whole)
    copy = gs.Node(maker.op, f"{maker.name}_cut", dict(maker.attrs), operands, [result])
    editor.insert_before(reader, copy)
    return result


def _root(tensor: gs.Tensor) -> gs.Constant:
    while not isinstance(tensor, gs.Constant):
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _patch(edit: Patch, editor: Editor) -> None:
    """Overrule elements of a run-time vector with one Where."""
    node = editor.node(edit.node)
    computed = node.inputs[edit.index]
    mask = np.zeros(edit.length, dtype=bool)
    sizes = np.zeros(edit.length, dtype=np.int64)
    for position, size in edit.sizes.items():
        mask[position], sizes[position] = True, size
    result = editor.variable(f"{edit.node}_sizes", computed)
    where = gs.Node(
        "Where",
        f"{edit.node}_sizes",
        inputs=[
            editor.constant(f"{edit.node}_mask", mask),
            editor.constant(f"{edit.node}_sizes", sizes),
            computed,
        ],
        outputs=[result],
    )
    editor.insert_before(node, where)
    editor.set_input(node, edit.index, result)


def _absorb(edit: Absorb, editor: Editor) -> None:
    node = editor.node(edit.node)
    dtype = _computing_type(node)
    if node.op == "MatMul":
        # It has no bias: an Add takes its place.
        bias = editor.constant(f"{node.name}_bias", edit.addition.astype(dtype))
        editor.insert_behind(node, gs.Node("Add", f"{node.name}_bias", inputs=[bias]))
        return
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if bias is not None and not isinstance(bias, gs.Constant):
        raise PassError(f"the bias of '{edit.node}' is not a constant")
    if bias is None:
        values: NDArray[np.float64] = edit.addition
        if node.op == "Gemm":
            editor.set_attributes(node, {"beta": 1.0})
    else:
        beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
        old = np.asarray(bias.values)
        values, dtype = beta * old.astype(np.float64) + edit.addition, old.dtype
        if beta != 1.0:
            editor.set_attributes(node, {"beta": 1.0})
    hint = f"{edit.node}_bias"
    editor.set_input(node, 2, editor.constant(hint, values.astype(dtype)))


def _computing_type(node: gs.Node) -> np.dtype[np.generic]:
    """The type that a layer computes in, which need not be the one its weight is stored in."""
    known = [t.dtype for t in (*node.outputs, node.inputs[0]) if t.dtype is not None]
    dtype: np.dtype[np.generic] = np.dtype(known[0]) if known else _stored_type(node)
    return dtype


def _stored_type(node: gs.Node) -> np.dtype[np.generic]:
    return np.asarray(_root(node.inputs[1]).values).dtype


def multiply_behind(node: str, mask: NDArray[np.float64], editor: Editor) -> None:
    """Multiply the first output of a node by a constant that broadcasts to it."""
    layer = editor.node(node)
    constant = editor.constant(f"{node}_mask", mask.astype(_computing_type(layer)))
    editor.insert_behind(layer, gs.Node("Mul", f"{node}_mask", inputs=[constant]))


def _permute(edit: Permute, editor: Editor) -> None:
    *inside, last = [editor.node(name) for name in edit.nodes]
    source = inside[0].inputs[0]
    gather = gs.Node(
        "Gather",
        f"{edit.node}_shuffle",
        {"axis": edit.axis},
        inputs=[source, editor.constant(f"{edit.node}_order", edit.order.astype(np.int64))],
    )
    editor.replace(last, [gather])
