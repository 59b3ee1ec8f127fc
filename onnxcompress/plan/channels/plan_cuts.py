"""From what is removed to the edits of all nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx

from onnxcompress.analyse.coupling.result import Coupling
from onnxcompress.analyse.coupling.rules.elementwise import BROADCASTING
from onnxcompress.graph.edits import Edit
from onnxcompress.graph.view import GraphView
from onnxcompress.plan.channels import layers, movement, operands
from onnxcompress.plan.channels.situation import Situation

Rule = Callable[[onnx.NodeProto, Situation], Iterator[Edit]]

_RULES: dict[str, Rule] = {
    **dict.fromkeys(BROADCASTING, operands.elementwise),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), layers.normalisation),
    **dict.fromkeys(("Gemm", "MatMul"), layers.dense),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), operands.quantisation),
    **dict.fromkeys(("Reshape", "Expand", "Resize"), movement.sized),
    "Concat": operands.concat,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Gather": movement.gather,
    "GroupNormalization": layers.group_normalisation,
    "Pad": movement.pad,
    "Slice": movement.slice_,
    "Split": movement.split,
}


def plan_cuts(
    view: GraphView,
    coupling: Coupling,
    removed: Mapping[str, Sequence[int]],
    *,
    counting: bool = False,
) -> list[Edit]:
    """Every edit that removing these channels needs.

    Args:
        view: the graph that the coupling was found on.
        coupling: its coupling.
        removed: channel numbers by name of their group.
        counting: the edits are only counted; what biases absorb need not be worked out.

    Raises:
        PassError: there is no such group or channel, or nothing of a tensor would be left.
    """
    at = Situation.of(view, coupling, removed, counting=counting)
    inside = {name for shuffle in coupling.shuffles.values() for name in shuffle.nodes}
    edits: list[Edit] = []
    for node in at.concerned():
        if node.name in coupling.shuffles:
            edits.extend(movement.shuffle(node, at))
        elif node.name not in inside and node.domain in {"", "ai.onnx"}:
            rule = _RULES.get(node.op_type)
            if rule is not None:
                edits.extend(rule(node, at))
    return edits
