"""Raising a model to an opset that has what the backward graph is made of."""

from __future__ import annotations

import onnx
import onnx.version_converter

from onnxcompress.errors import GradientError
from onnxcompress.graph.skeleton import skeleton

LOWEST = 18
"""ScatterElements adds from 16 on; reductions take their axes as an input from 18 on."""


def raised(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model at opset 18 or newer, with the same names of tensors.

    Raises:
        GradientError: onnx cannot convert an operator, or a tensor got lost on the way.
    """
    version = next(o.version for o in model.opset_import if o.domain in {"", "ai.onnx"})
    copy = onnx.ModelProto()
    if version >= LOWEST:
        copy.CopyFrom(model)
        return copy
    light = skeleton(model)
    try:
        copy.CopyFrom(onnx.version_converter.convert_version(light.model, LOWEST))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise GradientError(
            f"the model cannot be raised from opset {version} to {LOWEST}, which gradients need: "
            f"{reason}"
        ) from error
    _without_constant_nodes(copy.graph)
    inputs = [value for value in copy.graph.input if value.name not in light.weights]
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    copy.graph.initializer.extend(light.weights.values())
    made = {name for node in copy.graph.node for name in node.output}
    lost = [n for node in model.graph.node for n in node.output if n and n not in made]
    if lost:
        raise GradientError(f"raising the opset from {version} to {LOWEST} loses '{lost[0]}'")
    return copy


def _without_constant_nodes(graph: onnx.GraphProto) -> None:
    """Turn the constants that the conversion adds into initializers."""
    nodes = []
    for node in graph.node:
        value = [a.t for a in node.attribute if a.name == "value"]
        if node.op_type == "Constant" and value:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value[0])
            tensor.name = node.output[0]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
