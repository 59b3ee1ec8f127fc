"""Layers cut out of a network twice, at full and at reduced width, to be timed side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from onnxcompress.analyse.coupling.grouping import LAYERS
from onnxcompress.analyse.coupling.result import Coupling
from onnxcompress.analyse.facts import Facts
from onnxcompress.graph.edits import Cut, SetAttributes
from onnxcompress.graph.extract import extract_layer
from onnxcompress.graph.view import GraphView
from onnxcompress.graph.weights import constant_values, weight_root
from onnxcompress.plan.channels.plan_cuts import plan_cuts


def excerpts(
    facts: Facts, removed: Mapping[str, Sequence[int]]
) -> list[tuple[onnx.ModelProto, onnx.ModelProto]]:
    """Every layer that changes when channels go, with its fused neighbours, before and after.

    Args:
        facts: about the original model.
        removed: channel numbers by name of their group.
    """
    view, coupling, shapes = facts.view, facts.coupling(), facts.shapes()
    edits, gone = plan_cuts(view, coupling, removed), coupling.classes(removed)
    cuts = {(e.node, e.index): e for e in edits if isinstance(e, Cut)}
    groups = {
        e.node: e.values["group"]
        for e in edits
        if isinstance(e, SetAttributes) and "group" in e.values
    }
    layers = dict.fromkeys(node for node, _ in cuts if view.nodes[node].op_type in LAYERS)
    pairs = []
    for layer in layers:
        whole = _with_constants(extract_layer(view, layer, shapes), view)
        pairs.append((whole, _cut(whole, cuts, groups, coupling, gone)))
    return pairs


def _with_constants(layer: onnx.ModelProto, view: GraphView) -> onnx.ModelProto:
    """Weights that nodes make of constants (DequantizeLinear, Cast) as the constants they are."""
    inputs = list(layer.graph.input)
    del layer.graph.input[:]
    for value in inputs:
        if weight_root(view, value.name) is None:
            layer.graph.input.append(value)
            continue
        kind = value.type.tensor_type.elem_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        values = constant_values(view, value.name).astype(dtype)
        layer.graph.initializer.append(onnx.numpy_helper.from_array(values, value.name))
    return layer


def _cut(
    whole: onnx.ModelProto,
    cuts: Mapping[tuple[str, int], Cut],
    groups: Mapping[str, object],
    coupling: Coupling,
    removed: frozenset[int],
) -> onnx.ModelProto:
    small = onnx.ModelProto()
    small.CopyFrom(whole)
    constants = {tensor.name: tensor for tensor in small.graph.initializer}
    done: set[str] = set()
    for node in small.graph.node:
        for index, name in enumerate(node.input):
            cut = cuts.get((node.name, index))
            if cut is not None and name in constants and name not in done:
                done.add(name)
                values = onnx.numpy_helper.to_array(constants[name])
                for axis, indices in cut.kept.items():
                    values = values.take(indices, axis)
                constants[name].CopyFrom(onnx.numpy_helper.from_array(np.array(values), name))
        for attribute in node.attribute:
            if attribute.name == "group" and node.name in groups:
                attribute.i = int(str(groups[node.name]))
    for value in (*small.graph.input, *small.graph.output):
        lane = coupling.lanes.get(value.name)
        if lane is not None:
            extent = len(lane.kept(removed))
            value.type.tensor_type.shape.dim[lane.axis].dim_value = extent
    return small
