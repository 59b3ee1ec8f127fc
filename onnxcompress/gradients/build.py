"""A network, its loss and its backward graph as one model, at one batch size.

Gates are factors that stand behind channels: the gradient in a gate at one is the sum over
positions of z dC/dz, which is how channels are scored (Molchanov et al. 2017, 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx

from onnxcompress.errors import GradientError
from onnxcompress.gradients.answer import FLOAT, Loss, demand_batch_axis, emit_loss, find_answer
from onnxcompress.gradients.backward import backward
from onnxcompress.gradients.emitter import Emitter
from onnxcompress.gradients.known import Known, Shape, know
from onnxcompress.gradients.opset import raised
from onnxcompress.graph.view import GraphView


@dataclass(frozen=True)
class GradientModel:
    """The model to run, and what its inputs and outputs are.

    Attributes:
        model: forward and backward graph.
        loss: what the answers are held to; its target and cotangents are inputs.
        gates: by tap, the input [N, ..., C, ...] of factors; empty unless asked for.
        products: by tap, the output [N, C] with the gradient in every gate.
        gradients: by tensor, the output with its gradient.
    """

    model: onnx.ModelProto
    loss: Loss
    gates: Mapping[str, str]
    products: Mapping[str, str]
    gradients: Mapping[str, str]

    def shape(self, name: str) -> Shape:
        """The shape of an input."""
        return tuple(dim.dim_value for dim in self._inputs[name].shape.dim)

    def dtype(self, name: str) -> np.dtype[np.generic]:
        """The type of an input."""
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self._inputs[name].elem_type))

    @cached_property
    def _inputs(self) -> dict[str, onnx.TypeProto.Tensor]:
        return {value.name: value.type.tensor_type for value in self.model.graph.input}


def gradient_model(
    model: onnx.ModelProto,
    sizes: Mapping[str, Shape],
    *,
    taps: Mapping[str, int],
    tensors: Sequence[str] = (),
    gated: bool = False,
    probabilities: bool = False,
) -> GradientModel:
    """Build the backward graph of a model.

    Args:
        model: the network; not changed.
        sizes: size of every input, batch included: the batch size of what is built.
        taps: tensors whose channels are gated, with their channel axis.
        tensors: tensors whose gradient is wanted as it is.
        gated: whether gates become inputs; otherwise they are one.
        probabilities: whether a classifier's scores are probabilities though no Softmax made them.

    Returns:
        The model; taps and tensors that the loss does not depend on have no output.

    Raises:
        GradientError: an operator on the way has no adjoint; names it.
        ModelError: the model does not run at these sizes.
    """
    copy = raised(model)
    known = know(copy, sizes)
    batch = next(size[0] for size in sizes.values() if size)
    gates: dict[str, str] = {}
    behind = {tap: tap for tap in taps}
    emit = Emitter(copy.graph)
    if gated:
        for tap, axis in taps.items():
            gates[tap], behind[tap] = _insert_gate(known, emit, tap, axis, batch)
        known = _with_copies(known, {behind[tap]: tap for tap in taps})
    answer = find_answer(known)
    if answer.logits in answer.outputs:
        answer = replace(answer, probabilities=probabilities)
    loss = emit_loss(known, emit, answer, batch)
    found = backward(known, emit, loss.seeds, [*behind.values(), *tensors])
    products = {
        tap: _product(known, emit, tap, found[behind[tap]], axis, batch)
        for tap, axis in taps.items()
        if behind[tap] in found
    }
    gradients = {name: found[name] for name in tensors if name in found}
    outputs = [*products.values(), *gradients.values()]
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs))
    del copy.graph.value_info[:]
    _drop_unread(copy.graph)
    return GradientModel(copy, loss, gates, products, gradients)


def _insert_gate(known: Known, emit: Emitter, tap: str, axis: int, batch: int) -> tuple[str, str]:
    """Multiply a tensor by a new input for everybody who reads it."""
    shape = known.shapes[tap]
    _demand_batch(tap, axis, shape, batch)
    if tap in known.view.outputs or tap in known.view.captured:
        where = "an output" if tap in known.view.outputs else "read by a subgraph"
        raise GradientError(f"tensor '{tap}' is {where}: no gate can stand behind it")
    lined = [extent if a == axis else batch if a == 0 else 1 for a, extent in enumerate(shape)]
    gate = emit.input("gate", known.types[tap], lined)
    graph = known.view.model.graph
    readers = [(node, i) for node in graph.node for i, name in enumerate(node.input) if name == tap]
    gated = emit.op("Mul", tap, gate)
    product = graph.node.pop()
    at = next(i for i, node in enumerate(graph.node) if tap in node.output) + 1
    graph.node.insert(at, product)
    for node, index in readers:
        node.input[index] = gated
    return gate, gated


def _with_copies(known: Known, copies: Mapping[str, str]) -> Known:
    """What is known, with tensors that are like others."""
    return Known(
        GraphView(known.view.model),
        {**known.shapes, **{new: known.shapes[old] for new, old in copies.items()}},
        {**known.types, **{new: known.types[old] for new, old in copies.items()}},
        known.computed,
    )


def _product(known: Known, emit: Emitter, tap: str, gradient: str, axis: int, batch: int) -> str:
    """[N, C]: the sum of z dC/dz over everything but samples and channels."""
    shape = known.shapes[tap]
    _demand_batch(tap, axis, shape, batch)
    z, dz = (emit.op("Cast", name, to=FLOAT) for name in (tap, gradient))
    others = [a for a in range(len(shape)) if a != axis and (batch == 1 or a > 0)]
    product = emit.op("Mul", z, dz)
    summed = emit.op("ReduceSum", product, emit.sizes(others), keepdims=0) if others else product
    return emit.op("Reshape", summed, emit.sizes([batch, shape[axis]]))


def _demand_batch(tap: str, axis: int, shape: Shape, batch: int) -> None:
    demand_batch_axis(tap, () if axis == 0 else shape, batch)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Leave out nodes and constants that no output needs."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    # Subgraphs read by name what stands outside: where there are some, everything stays.
    if any(a.HasField("g") or a.graphs for node in kept for a in node.attribute):
        return
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(constants)
