"""Where a channel is looked at: behind its layer's normalisation and activation function."""

from __future__ import annotations

import onnx

from onnxcompress.analyse.coupling.flow import FIXED
from onnxcompress.analyse.coupling.result import Coupling
from onnxcompress.analyse.coupling.rules.elementwise import UNARY
from onnxcompress.graph.view import GraphView

_EITHER_SIDE = frozenset({"Add", "Mul"})
_FIRST_ONLY = frozenset({"BatchNormalization", "PRelu", "Sub", "Div"})


def activation_of(view: GraphView, coupling: Coupling, layer: str) -> str:
    """The tensor behind a layer's normalisation and activation function.

    It is the last one along the chain of nodes that nobody else reads and that work channel by
    channel on one tensor: Molchanov's gate stands behind the nonlinearity. x * sigmoid(x) is an
    activation function, too.
    """
    tensor = coupling.producers[layer]
    while True:
        node = _next(view, tensor)
        if node is None or not _follows(node, view, coupling, tensor):
            return tensor
        tensor = node.output[0]


def gate_of(view: GraphView, coupling: Coupling, layer: str) -> str:
    """The tensor in which a removed channel is zero, as far behind the layer as that holds.

    Behind a Sigmoid, or a shift, a channel that is zero at its layer is another constant: removal
    keeps that constant, so a factor of zero must stand in front.
    """
    tensor = coupling.producers[layer]
    while True:
        node = _next(view, tensor)
        if node is None or not _follows(node, view, coupling, tensor):
            return tensor
        lane = coupling.lanes[node.output[0]]
        if (lane.values[lane.classes != FIXED] != 0.0).any():
            return tensor
        tensor = node.output[0]


def _next(view: GraphView, tensor: str) -> onnx.NodeProto | None:
    """The only node that reads a tensor, or the end of a swish."""
    use = view.sole_use(tensor)
    return use.node if use is not None else _swish(view, tensor)


def _follows(node: onnx.NodeProto, view: GraphView, coupling: Coupling, tensor: str) -> bool:
    lane = coupling.lanes.get(node.output[0])
    same = lane is not None and lane.axis == coupling.lanes[tensor].axis
    others = [name for name in node.input if name and name != tensor]
    single = node == _swish(view, tensor) or all(view.is_constant(name) for name in others)
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
