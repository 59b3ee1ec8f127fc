"""Why a layer is left alone: the refusals that every low-rank pass shares."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import ModelError
from onnxcompress.graph.editor import PROVENANCE_KEY
from onnxcompress.graph.spec import ConvSpec, DenseSpec
from onnxcompress.graph.view import FLOATING_TYPES

_WHOLE = frozenset({"exact"})
"""Passes whose layers are no factors of others, but layers like any that were exported."""

QUANTISED = frozenset({"QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "QGemm"})


def reason_to_leave(facts: Facts, layer: ConvSpec | DenseSpec) -> str:
    """Why no low-rank pass touches this layer, or an empty string."""
    node, weight = layer.node, layer.weight
    if node in facts.excluded:
        return "excluded by the user"
    proto = facts.view.nodes[node]
    for entry in proto.metadata_props:
        if entry.key == PROVENANCE_KEY and entry.value not in _WHOLE:
            return f"made by pass {entry.value} already: compress the original instead"
    tensor = facts.view.initializers[weight]
    if tensor.data_type not in FLOATING_TYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        return f"the weight is {kind}, not floating point"
    values = facts.view.array64(weight)
    if not np.isfinite(values).all():
        return "the weight contains NaN or infinite values"
    if not values.any():
        return "the weight is all zero"
    try:
        facts.shape(layer.input), facts.shape(layer.output)
    except ModelError as error:
        return str(error)
    return ""


def quantised_layers(facts: Facts, kinds: frozenset[str]) -> Iterator[tuple[str, str]]:
    """(node, reason) for layers of `kinds` that are quantised already."""
    for node in facts.model.graph.node:
        if node.op_type in kinds:
            yield node.name, f"quantised already ({node.op_type}): compress the float model instead"
