"""onnx-graphsurgeon, wrapped once: nothing it drops is lost on the way through.

graphsurgeon forgets metadata and doc strings of nodes, graph and model, node overloads, dimension
denotations, duplicate-free opset imports and attribute kinds it cannot represent. Nodes that no
one touched are therefore written back from their original protos, and the interface and model
fields are copied from the original model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER

from onnxcompress.errors import ModelError
from onnxcompress.graph.view import subgraphs

G_LOGGER.severity = G_LOGGER.ERROR


@dataclass
class Keepsakes:
    """What graphsurgeon would lose: the original model's frame and every node's own proto."""

    frame: onnx.ModelProto
    protos: dict[int, onnx.NodeProto] = field(default_factory=dict)
    metadata: dict[int, dict[str, str]] = field(default_factory=dict)
    outer: set[str] = field(default_factory=set)
    """Initializers of the main graph: a subgraph that reads one captures it."""
    alive: list[gs.Node] = field(default_factory=list)
    """The nodes that the ids above belong to: a freed node's id would pass to a new one."""
    written: set[int] = field(default_factory=set)
    """Nodes whose attributes the editor changed: their attributes come from graphsurgeon."""


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
        raise ModelError(f"the graph cannot be imported: {error}") from error
    for name, tensor in (weights or {}).items():
        _make_constant(graph, name, tensor)
    frame = onnx.ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name not in {"graph", "functions"} and isinstance(value, (int, str)):
            setattr(frame, descriptor.name, value)
    frame.metadata_props.extend(model.metadata_props)
    frame.opset_import.extend(_unique_opsets(model))
    frame.graph.name = model.graph.name
    frame.graph.doc_string = model.graph.doc_string
    frame.graph.metadata_props.extend(model.graph.metadata_props)
    constants = {t.name for t in model.graph.initializer} | set(weights or {})
    frame.graph.input.extend(i for i in model.graph.input if i.name not in constants)
    frame.graph.output.extend(model.graph.output)
    frame.graph.quantization_annotation.extend(model.graph.quantization_annotation)
    graph.inputs = [t for t in graph.inputs if t.name not in constants]
    keep = Keepsakes(frame, outer=constants)
    for node, proto in zip(graph.nodes, model.graph.node, strict=True):
        keep.protos[id(node)] = proto
        keep.alive.append(node)
    return graph, keep


def export_graph(graph: gs.Graph, keep: Keepsakes) -> onnx.ModelProto:
    """Write the graph back inside the frame of the original model.

    Every weight is copied exactly once, and the tensors of the source model are left alone
    (graphsurgeon's own exporter renames them in place).
    """
    model = onnx.ModelProto()
    model.CopyFrom(keep.frame)
    for node in graph.nodes:
        proto = OnnxExporter.export_node(node)
        original = keep.protos.get(id(node))
        if original is not None:
            # An empty field that is set is not the same bytes as one that is not.
            if original.doc_string:
                proto.doc_string = original.doc_string
            if original.overload:
                proto.overload = original.overload
            proto.metadata_props.extend(original.metadata_props)
            # A subgraph whose captured tensors were rewired must be written as it is now.
            if id(node) not in keep.written and _wiring(proto) == _wiring(original):
                del proto.attribute[:]
                proto.attribute.extend(original.attribute)
        for key, value in keep.metadata.get(id(node), {}).items():
            proto.metadata_props.add(key=key, value=value)
        model.graph.node.append(proto)
    tensors = {t.name: t for t in graph.outputs if isinstance(t, gs.Constant)} | graph.tensors()
    for node in graph.nodes:
        tensors |= {t.name: t for t in _captured_constants(node) if t.name in keep.outer}
    for proto in model.graph.node:
        _drop_shadows(proto, set(tensors))
    for tensor in tensors.values():
        if not isinstance(tensor, gs.Constant):
            continue
        values = tensor._values
        if isinstance(values, SparseValues):
            model.graph.sparse_initializer.append(values.tensor)
        elif isinstance(values, LazyValues):
            entry = model.graph.initializer.add()
            entry.CopyFrom(values.tensor)
            entry.name = tensor.name
        else:
            model.graph.initializer.append(OnnxExporter.export_tensor_proto(tensor))
    return model


def _make_constant(graph: gs.Graph, name: str, tensor: onnx.TensorProto) -> None:
    """Turn the placeholder input `name` into a constant that refers to `tensor`."""
    for placeholder in graph.inputs:
        if placeholder.name == name:
            placeholder.to_constant(LazyValues(tensor))
            return


def _unique_opsets(model: onnx.ModelProto) -> list[onnx.OperatorSetIdProto]:
    """Opset imports without exact duplicates (some exporters list a domain twice)."""
    unique: dict[tuple[str, int], onnx.OperatorSetIdProto] = {}
    for entry in model.opset_import:
        unique.setdefault((entry.domain, entry.version), entry)
    return list(unique.values())


def _captured_constants(node: gs.Node) -> Iterator[gs.Constant]:
    """Constants that nodes inside the subgraphs of `node` read."""
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            for inner in value.nodes:
                yield from (t for t in inner.inputs if isinstance(t, gs.Constant))
                yield from _captured_constants(inner)
            yield from (t for t in value.outputs if isinstance(t, gs.Constant))


def _drop_shadows(node: onnx.NodeProto, outer: set[str]) -> None:
    """Remove the copies of captured constants that graphsurgeon writes into subgraphs."""
    for graph in subgraphs(node):
        own = [tensor for tensor in graph.initializer if tensor.name not in outer]
        if len(own) < len(graph.initializer):
            del graph.initializer[:]
            graph.initializer.extend(own)
        for inner in graph.node:
            _drop_shadows(inner, outer)


def _wiring(node: onnx.NodeProto) -> list[list[str]]:
    """Which tensors the nodes inside a node's subgraphs read and write, in order."""
    wiring = []
    for graph in subgraphs(node):
        for inner in graph.node:
            wiring.append([*inner.input, "->", *inner.output])
            wiring.extend(_wiring(inner))
        wiring.append([output.name for output in graph.output])
    return wiring
