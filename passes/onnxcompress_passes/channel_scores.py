"""How important is a channel? One score per output channel of every layer that makes channels.

`weight` looks at the layer's filters, `activation-mean`, `activation-std` and `apoz` at what comes
out of it on calibration inputs (behind its activation function), `random` at nothing: the
baseline. Definitions: Molchanov et al. 2017 (arXiv 1611.06440), section 2.2; APoZ as the average
percentage of positive values, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.activations import ChannelStatistics
from onnxcompress.analyse.coupling.result import Coupling, Lane
from onnxcompress.analyse.coupling.rules.elementwise import UNARY
from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import UsageError
from onnxcompress.graph.view import GraphView, attributes
from onnxcompress.graph.weights import constant_values
from onnxcompress.plan.channels.remove import zero_channels

Array = NDArray[np.float64]
Removed = Mapping[str, tuple[int, ...]]

_EITHER_SIDE = frozenset({"Add", "Mul"})
_FIRST_ONLY = frozenset({"BatchNormalization", "PRelu", "Sub", "Div"})
NORMS = ("l2", "l1", "min")
"""Of a filter w: sqrt(sum w^2), sum |w|, and mean w^2 (Molchanov's "minimum weight")."""


@dataclass(frozen=True)
class Question:
    """What is asked of a criterion.

    Attributes:
        facts: the model and what is known about it.
        coupling: which channels go together.
        removed: channels that are gone already (iterative pruning), by group.
        norm: how filters are measured.
        seed: for criteria that draw numbers.
    """

    facts: Facts
    coupling: Coupling
    removed: Removed
    norm: str
    seed: int

    @property
    def layers(self) -> list[str]:
        """The layers to score, in order of execution."""
        lanes = self.coupling.lanes
        return [name for name, tensor in self.coupling.producers.items() if tensor in lanes]

    def lane(self, layer: str) -> Lane:
        """Where the channels of a layer's output lie."""
        return self.coupling.lanes[self.coupling.producers[layer]]


Criterion = Callable[[Question], dict[str, Array]]
"""Scores [channels] of every layer in `Question.layers`: the higher, the more important."""


def weight(question: Question) -> dict[str, Array]:
    """The norm of every filter, over the input channels that are left."""
    gone = question.coupling.classes(question.removed)
    return {
        layer: _norms(_filters(question.facts.view, layer, question.coupling, gone), question.norm)
        for layer in question.layers
    }


def random(question: Question) -> dict[str, Array]:
    """Uniform numbers, the same for the same seed and layer."""
    return {
        layer: np.random.default_rng([question.seed, at]).random(len(question.lane(layer).classes))
        for at, layer in enumerate(question.layers)
    }


def activation_mean(question: Question) -> dict[str, Array]:
    """The average activation: (1/|a|) sum a."""
    return {layer: found.mean for layer, found in _statistics(question).items()}


def activation_std(question: Question) -> dict[str, Array]:
    """The standard deviation of the activation."""
    return {layer: found.deviation for layer, found in _statistics(question).items()}


def apoz(question: Question) -> dict[str, Array]:
    """The average percentage of positive activations (Hu et al. 2016, arXiv 1607.03250)."""
    return {layer: found.positive for layer, found in _statistics(question).items()}


CRITERIA: Mapping[str, Criterion] = {
    "weight": weight,
    "activation-mean": activation_mean,
    "activation-std": activation_std,
    "apoz": apoz,
    "random": random,
}


def activation_of(view: GraphView, coupling: Coupling, layer: str) -> str:
    """The tensor behind a layer's normalisation and activation function.

    It is the last one along the chain of nodes that nobody else reads and that work channel by
    channel on one tensor: Molchanov's gate stands behind the nonlinearity. x * sigmoid(x) is an
    activation function, too.
    """
    tensor = coupling.producers[layer]
    while True:
        use = view.sole_use(tensor)
        node = use.node if use is not None else _swish(view, tensor)
        if node is None or not _follows(node, view, coupling, tensor):
            return tensor
        tensor = node.output[0]


def _follows(node: onnx.NodeProto, view: GraphView, coupling: Coupling, tensor: str) -> bool:
    lane = coupling.lanes.get(node.output[0])
    same = lane is not None and lane.axis == coupling.lanes[tensor].axis
    others = [name for name in node.input if name and name != tensor]
    gate = _swish(view, tensor)
    single = node == gate or all(view.is_constant(name) for name in others)
    first = node.input[0] == tensor or node.op_type in _EITHER_SIDE
    return same and single and first and node.op_type in UNARY | _EITHER_SIDE | _FIRST_ONLY


def _swish(view: GraphView, tensor: str) -> onnx.NodeProto | None:
    """The Mul of x * sigmoid(x), where nobody else reads x."""
    uses = view.uses(tensor)
    if len(uses) != 2 or tensor in view.outputs or tensor in view.captured:
        return None
    for gate, product in (uses, uses[::-1]):
        made = gate.node.output[0]
        sole = view.sole_use(made)
        known = gate.node.op_type in {"Sigmoid", "HardSigmoid"} and product.node.op_type == "Mul"
        if known and sole is not None and sole.node.name == product.node.name:
            return product.node
    return None


def _statistics(question: Question) -> dict[str, ChannelStatistics]:
    facts, coupling = question.facts, question.coupling
    collect = facts.activations()
    if collect is None:
        raise UsageError(
            "criteria that look at activations need calibration inputs: give --data, or use "
            "criterion=weight (inspect always, which takes no data)"
        )
    tensors = {layer: activation_of(facts.view, coupling, layer) for layer in question.layers}
    axes = {tensor: coupling.lanes[tensor].axis for tensor in tensors.values()}
    if question.removed:
        found = collect(axes, zero_channels(facts.model, coupling, question.removed))
    else:
        found = facts.recall(("activations", tuple(axes)), lambda: collect(axes))
    return {layer: found[tensor] for layer, tensor in tensors.items()}


def _filters(
    view: GraphView, layer: str, coupling: Coupling, gone: frozenset[int]
) -> tuple[Array, NDArray[np.bool_]]:
    """Filters [out, weights] of a layer, and which of the weights are left."""
    node = view.nodes[layer]
    values = constant_values(view, node.input[1])
    lane = coupling.lanes.get(node.input[0])
    if node.op_type in {"Gemm", "MatMul"}:
        matrix = values if attributes(node).get("transB", 0) else values.T
        stays = _staying(lane, matrix.shape[1], gone)
        return matrix, np.broadcast_to(stays, matrix.shape)
    group = int(str(attributes(node).get("group", 1)))
    if node.op_type == "ConvTranspose":
        inner = values.shape[0] // group
        parts = values.reshape(group, inner, values.shape[1], -1).transpose(0, 2, 1, 3)
        filters = parts.reshape(group * values.shape[1], inner, -1)
    else:
        inner = values.shape[1]
        filters = values.reshape(values.shape[0], inner, -1)
    stays = _staying(lane, group * inner, gone).reshape(group, inner)
    each = np.repeat(stays, len(filters) // group, axis=0)
    whole = np.broadcast_to(each[:, :, np.newaxis], filters.shape)
    return filters.reshape(len(filters), -1), whole.reshape(len(filters), -1)


def _staying(lane: Lane | None, extent: int, gone: frozenset[int]) -> NDArray[np.bool_]:
    if lane is None or len(lane.classes) != extent:
        return np.ones(extent, dtype=bool)
    return ~np.isin(lane.classes, list(gone))


def _norms(filters: tuple[Array, NDArray[np.bool_]], norm: str) -> Array:
    weights, left = filters
    kept = np.where(left, weights, 0.0)
    match norm:
        case "l1":
            return np.asarray(np.abs(kept).sum(axis=1))
        case "l2":
            return np.asarray(np.sqrt(np.square(kept).sum(axis=1)))
        case _:
            return np.asarray(np.square(kept).sum(axis=1) / np.maximum(left.sum(axis=1), 1))
