"""Raising a model to an opset that has what the backward graph is made of."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.version_converter

from onnxcompress.errors import GradientError
from onnxcompress.graph.skeleton import skeleton

LOWEST = 18
"""ScatterElements adds from 16 on; reductions take their axes as an input from 18 on."""

_RESIZE_MODES = 11
"""The first opset in which Resize says how it takes coordinates; before, there was one way."""


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
            f"the model cannot be raised from opset {version} to {LOWEST}: {reason}"
        ) from error
    _without_constant_nodes(copy.graph)
    if version < _RESIZE_MODES:
        _with_old_resize(copy.graph)
    inputs = [value for value in copy.graph.input if value.name not in light.weights]
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    copy.graph.initializer.extend(light.weights.values())
    made = {name for node in copy.graph.node for name in node.output}
    lost = [n for node in model.graph.node for n in node.output if n and n not in made]
    if lost:
        raise GradientError(f"raising the opset from {version} to {LOWEST} loses '{lost[0]}'")
    return copy


def _with_old_resize(graph: onnx.GraphProto) -> None:
    """Say what Upsample and the first Resize did: the conversion leaves the new defaults.

    Raises:
        GradientError: nearest neighbours, and one axis grows while another shrinks.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Resize":
            continue
        scales = constants.get(node.input[2])
        factors = onnx.numpy_helper.to_array(scales) if scales is not None else np.zeros(1)
        mode = next((a.s.decode() for a in node.attribute if a.name == "mode"), "nearest")
        # ONNX Runtime rounds down where an axis grows, and up where it shrinks.
        grows, shrinks = bool((factors > 1.0).any()), bool((factors < 1.0).any())
        if mode == "nearest" and ((grows and shrinks) or scales is None):
            raise GradientError(
                f"Resize '{node.name}' of opset 10 or older grows and shrinks, or has no constant "
                "scales: newer opsets have no such operator"
            )
        modes = {
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "ceil" if shrinks else "floor",
        }
        kept = [attribute for attribute in node.attribute if attribute.name not in modes]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.extend(onnx.helper.make_attribute(k, v) for k, v in modes.items())


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
