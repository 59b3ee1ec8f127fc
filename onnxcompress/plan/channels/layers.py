"""Edits of layers with weights, and of normalisations with parameters per channel."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.coupling.result import Lane
from onnxcompress.graph.edits import Absorb, Cut, Edit, Indices, SetAttributes
from onnxcompress.graph.view import attributes
from onnxcompress.graph.weights import constant_values
from onnxcompress.plan.channels.situation import Situation

_Mask = NDArray[np.bool_]


def conv(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """W [out, in / group, *k]."""
    before, after = at.lane(node.input[0]), at.lane(node.output[0])
    weight = at.shape(node.input[1])
    group = _integer(node, "group", 1)
    outputs = _mask(node.output[0], weight[0], at)
    inputs = _mask(node.input[0], weight[1] * group, at)
    groups, positions = _split(inputs, group)
    axes = {0: np.flatnonzero(outputs), 1: positions}
    yield from _cut(node, 1, axes, weight)
    yield from _bias(node, 2, after, at)
    if groups < group:
        yield SetAttributes(node.name, {"group": groups})
    if before is not None and len(positions) < weight[1] and _leaves(before, inputs):
        addition = np.zeros(weight[0])
        if not at.counting:
            tensor = constant_values(at.view, node.input[1])
            kernel = tensor.reshape(weight[0], weight[1], -1).sum(axis=2)
            addition = _grouped(kernel, group, before, inputs)
        yield Absorb(node.name, addition[outputs])


def conv_transpose(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """W [in, out / group, *k]; what remains of a removed channel is zero, or it was refused."""
    after = at.lane(node.output[0])
    weight = at.shape(node.input[1])
    group = _integer(node, "group", 1)
    inputs = _mask(node.input[0], weight[0], at)
    groups, _ = _split(inputs, group)
    _, positions = _split(_mask(node.output[0], weight[1] * group, at), group)
    yield from _cut(node, 1, {0: np.flatnonzero(inputs), 1: positions}, weight)
    yield from _bias(node, 2, after, at)
    if groups < group:
        yield SetAttributes(node.name, {"group": groups})


def dense(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """Gemm and MatMul: B [in, out], or [out, in] with transB."""
    before, after = at.lane(node.input[0]), at.lane(node.output[0])
    shape = at.shape(node.input[1])
    rows = 1 if _integer(node, "transB", 0) else 0
    inputs = _mask(node.input[0], shape[rows], at)
    outputs = _mask(node.output[0], shape[1 - rows], at)
    axes = {rows: np.flatnonzero(inputs), 1 - rows: np.flatnonzero(outputs)}
    yield from _cut(node, 1, axes, shape)
    if node.op_type == "Gemm":
        yield from _bias(node, 2, after, at)
    if before is not None and _leaves(before, inputs):
        addition = np.zeros(len(outputs))
        if not at.counting:
            matrix = constant_values(at.view, node.input[1])
            matrix = matrix if rows == 1 else matrix.T
            alpha = float(attributes(node).get("alpha", 1.0))  # type: ignore[arg-type]
            gone = np.flatnonzero(~inputs)
            addition = alpha * (matrix[:, gone] @ before.values[gone])
        yield Absorb(node.name, addition[outputs])


def normalisation(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """BatchNormalization, InstanceNormalization: vectors with one entry per channel."""
    lane = at.lane(node.output[0])
    if lane is not None and lane.axis == 1:
        for index in range(1, len(node.input)):
            yield Cut(node.name, index, {0: at.kept(node.output[0])})


def group_normalisation(node: onnx.NodeProto, at: Situation) -> Iterator[Edit]:
    """Whole groups go; parameters have one entry per group before opset 21, else per channel."""
    lane = at.lane(node.output[0])
    if lane is None:
        return
    groups = _integer(node, "num_groups", 1)
    kept = at.kept(node.output[0])
    size = len(lane.classes) // groups
    staying = np.unique(kept // size)
    for index in (1, 2):
        per_channel = at.shape(node.input[index])[0] == len(lane.classes)
        yield Cut(node.name, index, {0: kept if per_channel else staying})
    yield SetAttributes(node.name, {"num_groups": len(staying)})


def _mask(tensor: str, extent: int, at: Situation) -> _Mask:
    mask = np.ones(extent, dtype=bool)
    if at.lane(tensor) is not None:
        mask[:] = False
        mask[at.kept(tensor)] = True
    return mask


def _split(inputs: _Mask, group: int) -> tuple[int, Indices]:
    """How many groups stay, and which positions within each of them."""
    table = inputs.reshape(group, -1)
    staying = table.any(axis=1)
    return int(staying.sum()), np.flatnonzero(table[staying][0])


def _cut(
    node: onnx.NodeProto, index: int, axes: dict[int, Indices], shape: tuple[int, ...]
) -> Iterator[Edit]:
    kept = {axis: indices for axis, indices in axes.items() if len(indices) < shape[axis]}
    if kept:
        yield Cut(node.name, index, kept)


def _bias(node: onnx.NodeProto, index: int, lane: Lane | None, at: Situation) -> Iterator[Edit]:
    """Cut the bias along its last axis; a single number that broadcasts stays as it is."""
    if lane is None or len(node.input) <= index or not node.input[index]:
        return
    shape = at.shape(node.input[index])
    if shape and shape[-1] > 1:
        yield Cut(node.name, index, {len(shape) - 1: at.kept(node.output[0])})


def _leaves(lane: Lane, inputs: _Mask) -> bool:
    """Whether something other than zero is left of the removed channels."""
    return bool(np.nan_to_num(lane.values[~inputs]).any())


def _grouped(
    kernel: NDArray[np.float64], group: int, lane: Lane, inputs: _Mask
) -> NDArray[np.float64]:
    """What the removed channels added to every output: their value times the kernel's sum."""
    values = np.where(inputs, 0.0, lane.values).reshape(group, -1)
    rows = kernel.reshape(group, -1, kernel.shape[1])
    # A whole group that goes takes its outputs along: its values need not be known.
    staying = np.asarray(inputs.reshape(group, -1).any(axis=1))
    values = np.where(staying[:, np.newaxis], values, 0.0)
    return np.asarray(np.einsum("goi,gi->go", rows, values).ravel(), dtype=np.float64)


def _integer(node: onnx.NodeProto, name: str, default: int) -> int:
    value = attributes(node).get(name, default)
    return int(value) if isinstance(value, (int, float)) else default
