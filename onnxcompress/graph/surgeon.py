"""onnx-graphsurgeon, wrapped once: nothing it drops is lost on the way through.

graphsurgeon forgets metadata and doc strings of nodes, graphs and model, node overloads, dimension
denotations and every attribute or type it cannot represent. So a node that stood in the model is
written back from its own proto, with the names of its tensors as they are now and the attributes
that somebody changed; interface and model fields are copied from the original.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxcompress.errors import ModelError
from onnxcompress.graph.view import captured_names

FIRST_IR = 8
"""Since this version a model may have functions of its own."""

G_LOGGER.severity = G_LOGGER.ERROR


@dataclass
class Keepsakes:
    """What graphsurgeon would lose.

    Attributes:
        frame: the model without nodes and constants.
        protos: the proto of every node that stood in the model, by identity of the gs.Node.
        written: names of the attributes that were changed, by identity.
        metadata: what to add to a node's metadata, by identity.
        outer: constants of the main graph: one that only a subgraph reads is lost otherwise.
        alive: the nodes that the identities belong to; a freed node's would pass to a new one.
        functions: local functions that nodes call, by domain and name.
    """

    frame: onnx.ModelProto
    protos: dict[int, onnx.NodeProto] = field(default_factory=dict)
    written: dict[int, set[str]] = field(default_factory=dict)
    metadata: dict[int, dict[str, str]] = field(default_factory=dict)
    outer: dict[str, onnx.TensorProto] = field(default_factory=dict)
    alive: list[gs.Node] = field(default_factory=list)
    functions: dict[tuple[str, str], onnx.FunctionProto] = field(default_factory=dict)


def import_graph(
    model: onnx.ModelProto, *, weights: dict[str, onnx.TensorProto] | None = None
) -> tuple[gs.Graph, Keepsakes]:
    """Import a model, or a skeleton together with the weights that were taken out of it.

    Weights are referenced lazily: no array is copied until somebody reads it.

    Raises:
        ModelError: graphsurgeon cannot represent the graph.
    """
    try:
        graph = gs.import_onnx(model)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"the graph cannot be imported: {reason}") from error
    for placeholder in graph.inputs:
        if placeholder.name in (weights or {}):
            placeholder.to_constant(LazyValues((weights or {})[placeholder.name]))
    outer = {tensor.name: tensor for tensor in model.graph.initializer} | (weights or {})
    graph.inputs = [t for t in graph.inputs if t.name not in outer]
    functions = {(function.domain, function.name): function for function in model.functions}
    keep = Keepsakes(_frame(model, set(outer)), outer=outer, functions=functions)
    for node, proto in zip(graph.nodes, model.graph.node, strict=True):
        keep.protos[id(node)] = proto
        keep.alive.append(node)
    return graph, keep


def export_graph(graph: gs.Graph, keep: Keepsakes) -> onnx.ModelProto:
    """Write the graph back inside the frame of the original model.

    Every weight is copied exactly once, and the source model's tensors are left alone
    (graphsurgeon's own exporter renames them in place).
    """
    model = onnx.ModelProto()
    model.CopyFrom(keep.frame)
    for node in graph.nodes:
        model.graph.node.append(_node(node, keep))
    tensors = {t.name: t for t in graph.outputs if isinstance(t, gs.Constant)} | graph.tensors()
    for tensor in tensors.values():
        if isinstance(tensor, gs.Constant):
            _add_constant(model, tensor)
    made = {name for node in model.graph.node for name in node.output}
    for name in dict.fromkeys(captured_names(model.graph)):
        if name in keep.outer and name not in tensors and name not in made:
            model.graph.initializer.append(keep.outer[name])
    _add_functions(model, keep)
    return model


def _add_functions(model: onnx.ModelProto, keep: Keepsakes) -> None:
    """Those that are called, and the domains that they live in."""
    called = {(node.domain, node.op_type) for node in model.graph.node}
    domains = {entry.domain for entry in model.opset_import}
    for key, function in keep.functions.items():
        if key in called:
            model.functions.append(function)
            model.ir_version = max(model.ir_version, FIRST_IR)
            if function.domain not in domains:
                domains.add(function.domain)
                model.opset_import.append(onnx.helper.make_opsetid(function.domain, 1))


def _frame(model: onnx.ModelProto, constants: set[str]) -> onnx.ModelProto:
    frame = onnx.ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name not in {"graph", "functions"} and isinstance(value, (int, str)):
            setattr(frame, descriptor.name, value)
    frame.metadata_props.extend(model.metadata_props)
    frame.opset_import.extend(_unique_opsets(model))
    frame.graph.name = model.graph.name
    frame.graph.doc_string = model.graph.doc_string
    frame.graph.metadata_props.extend(model.graph.metadata_props)
    frame.graph.input.extend(i for i in model.graph.input if i.name not in constants)
    frame.graph.output.extend(model.graph.output)
    frame.graph.quantization_annotation.extend(model.graph.quantization_annotation)
    return frame


def _node(node: gs.Node, keep: Keepsakes) -> onnx.NodeProto:
    proto = onnx.NodeProto()
    original = keep.protos.get(id(node))
    changed = set(node.attrs)
    if original is not None:
        proto.CopyFrom(original)
        changed = keep.written.get(id(node), set())
    proto.name, proto.op_type = node.name or "", node.op
    if node.domain:
        proto.domain = node.domain
    _name_tensors(proto, node)
    kept = [a for a in proto.attribute if a.name not in changed]
    del proto.attribute[:]
    proto.attribute.extend(kept)
    for key, value in node.attrs.items():
        if key in changed:
            proto.attribute.append(_attribute(key, value))
    for key, value in keep.metadata.get(id(node), {}).items():
        proto.metadata_props.add(key=key, value=value)
    return proto


def _name_tensors(proto: onnx.NodeProto, node: gs.Node) -> None:
    """Write the present names of a node's tensors, those that its subgraphs capture included."""
    proto.input[:] = [tensor.name for tensor in node.inputs]
    proto.output[:] = [tensor.name for tensor in node.outputs]
    for attribute in proto.attribute:
        inner = node.attrs.get(attribute.name)
        if not isinstance(inner, gs.Graph):
            continue
        for inner_proto, inner_node in zip(attribute.g.node, inner.nodes, strict=True):
            _name_tensors(inner_proto, inner_node)
        for value, tensor in zip(attribute.g.output, inner.outputs, strict=True):
            value.name = tensor.name


def _attribute(key: str, value: Any) -> onnx.AttributeProto:
    """An attribute that somebody set; graphsurgeon writes the kinds that only it knows."""
    if isinstance(value, (gs.Tensor, gs.Graph, type)):
        exported: list[onnx.AttributeProto] = OnnxExporter.export_attributes({key: value})
        return exported[0]
    return onnx.helper.make_attribute(key, value)


def _add_constant(model: onnx.ModelProto, tensor: gs.Constant) -> None:
    values = tensor._values
    if isinstance(values, SparseValues):
        model.graph.sparse_initializer.append(values.tensor)
    elif isinstance(values, LazyValues):
        entry = model.graph.initializer.add()
        entry.CopyFrom(values.tensor)
        entry.name = tensor.name
    else:
        model.graph.initializer.append(OnnxExporter.export_tensor_proto(tensor))


def _unique_opsets(model: onnx.ModelProto) -> list[onnx.OperatorSetIdProto]:
    """Opset imports without exact duplicates (some exporters list a domain twice)."""
    unique: dict[tuple[str, int], onnx.OperatorSetIdProto] = {}
    for entry in model.opset_import:
        unique.setdefault((entry.domain, entry.version), entry)
    return list(unique.values())
