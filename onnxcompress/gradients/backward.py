"""Reverse-mode differentiation of an ONNX graph: from the outputs' gradients to any tensor's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import onnx

from onnxcompress.errors import GradientError
from onnxcompress.gradients.adjoints.table import ADJOINTS, PIECEWISE_CONSTANT
from onnxcompress.gradients.emitter import Emitter
from onnxcompress.gradients.known import Known
from onnxcompress.gradients.step import Step
from onnxcompress.graph.view import FLOATING_TYPES, captured_by

_SEVERAL = frozenset({"Split"})
"""Operators whose further outputs have gradients, too."""


def backward(
    known: Known, emit: Emitter, seeds: Mapping[str, str], wanted: Collection[str]
) -> dict[str, str]:
    """Emit the backward graph.

    Args:
        known: the forward graph at fixed sizes.
        emit: where the nodes are added, behind the forward graph.
        seeds: gradient of the loss in the tensors that it is computed from.
        wanted: tensors whose gradient is wanted.

    Returns:
        The name of the gradient in every wanted tensor; those that the loss does not depend on
        are missing.

    Raises:
        GradientError: operators between a wanted tensor and the loss have no adjoint; names them.
    """
    nodes = known.view.model.graph.node
    # New nodes are appended to the same graph: the forward part is fixed here.
    forward = list(nodes)
    dependent = _dependent(forward, wanted)
    # What follows from sizes alone does not move when channels do.
    needed = (dependent | set(wanted)) - set(known.computed)
    parts: dict[str, list[str]] = defaultdict(list)
    for tensor, gradient in seeds.items():
        parts[tensor].append(gradient)
    missing: list[str] = []
    for node in reversed(forward):
        cotangents = tuple(_together(parts, name, emit) for name in node.output)
        inputs = frozenset(
            i for i, n in enumerate(node.input) if n in needed and _is_floating(known, n)
        )
        if not any(cotangents):
            continue
        captured = captured_by(node) & needed
        if captured:
            missing.append(f"{node.op_type} '{node.name}' (it reads channels in a subgraph)")
        elif inputs and (node.op_type not in PIECEWISE_CONSTANT or node.domain):
            _step(Step(node, known, emit, cotangents, inputs), parts, missing)
    if missing:
        raise GradientError(_words(missing))
    found = {tensor: _together(parts, tensor, emit) for tensor in wanted}
    return {tensor: name for tensor, name in found.items() if name is not None}


def _step(step: Step, parts: dict[str, list[str]], missing: list[str]) -> None:
    node = step.node
    adjoint = ADJOINTS.get(node.op_type) if node.domain in {"", "ai.onnx"} else None
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    try:
        if adjoint is None:
            raise GradientError("")
        if any(step.cotangents[1:]) and node.op_type not in _SEVERAL:
            raise GradientError("its further outputs are used")
        found = adjoint(step)
    except GradientError as error:
        missing.append(f"{kind} '{node.name}'" + (f" ({error})" if str(error) else ""))
        # What lies in front is still looked at, so that all such operators are named at once.
        found = {index: node.input[index] for index in step.wanted}
    for index, gradient in found.items():
        parts[node.input[index]].append(gradient)


def _together(parts: dict[str, list[str]], tensor: str, emit: Emitter) -> str | None:
    """The sum of a tensor's gradients, one from every reader."""
    found = parts.get(tensor, [])
    if len(found) > 1:
        parts[tensor] = [emit.op("Sum", *found)]
    return parts[tensor][0] if found else None


def _dependent(nodes: Collection[onnx.NodeProto], wanted: Collection[str]) -> set[str]:
    """Everything that is computed from the wanted tensors."""
    found: set[str] = set()
    sources = set(wanted)
    for node in nodes:
        read = {*node.input, *captured_by(node)}
        if not read.isdisjoint(sources) or not read.isdisjoint(found):
            found.update(name for name in node.output if name)
    return found


def _is_floating(known: Known, tensor: str) -> bool:
    return known.types.get(tensor) in FLOATING_TYPES


def _words(missing: Sequence[str]) -> str:
    shown = missing[::-1]
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return "no gradient is known of " + ", ".join(shown[:4]) + more
