"""Import and export lose nothing: every model that the onnx package ships comes back the same."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from onnxcompress.errors import ModelError
from onnxcompress.graph.surgeon import export_graph, import_graph

SHIPPED = Path(onnx.__file__).parent / "backend" / "test" / "data"
ZOO = sorted((SHIPPED / "light").glob("*.onnx"))


def _content(value):
    """A message as nested tuples; fields that hold an empty string count as absent."""
    if hasattr(value, "ListFields"):
        fields = [
            (field.name, _content(inner)) for field, inner in value.ListFields() if inner != ""
        ]
        return type(value).__name__, tuple(sorted(fields, key=lambda pair: pair[0]))
    if isinstance(value, float):
        return value.hex()  # NaN equals itself that way
    if isinstance(value, (str, bytes, int)):
        return value
    items = [_content(item) for item in value]
    if value and isinstance(value[0], onnx.AttributeProto):
        items.sort(key=lambda item: dict(item[1])["name"])
    return tuple(items)


def _has_subgraph(node):
    kinds = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
    return any(a.type in kinds for a in node.attribute)


def _differences(model, *, subgraphs):
    """Nodes of the given kind, constants and interface that do not come back as they were."""
    graph, keep = import_graph(model)
    result = export_graph(graph, keep)
    if len(result.graph.node) != len(model.graph.node):
        return ["number of nodes"]
    found = [
        f"{old.op_type} '{old.name}'"
        for old, new in zip(model.graph.node, result.graph.node, strict=True)
        if _has_subgraph(old) is subgraphs and _content(old) != _content(new)
    ]
    constants = {t.name for t in model.graph.initializer}
    read = {name for node in model.graph.node for name in node.input}
    for kind, before, after in (
        (
            "initializers",
            [t for t in model.graph.initializer if t.name in read],
            result.graph.initializer,
        ),
        ("sparse initializers", model.graph.sparse_initializer, result.graph.sparse_initializer),
        (
            "inputs",
            [i for i in model.graph.input if i.name not in constants],
            result.graph.input,
        ),
        ("outputs", model.graph.output, result.graph.output),
        ("metadata", model.metadata_props, result.metadata_props),
    ):
        if sorted(map(_text, before)) != sorted(map(_text, after)):
            found.append(kind)
    if {(o.domain, o.version) for o in model.opset_import} != {
        (o.domain, o.version) for o in result.opset_import
    }:
        found.append("opsets")
    return found


def _text(message):
    return message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)
def test_zoo(path):
    model = onnx.load(path)
    before = model.SerializeToString()
    assert _differences(model, subgraphs=False) == []
    assert model.SerializeToString() == before


def test_zoo_is_there():
    assert len(ZOO) >= 9


@pytest.mark.parametrize("folder", ["pytorch-converted", "pytorch-operator", "simple"])
def test_shipped_models(folder):
    paths = sorted((SHIPPED / folder).glob("*/model.onnx"))
    assert len(paths) > 10
    wrong = {p.parent.name: _differences(onnx.load(p), subgraphs=False) for p in paths}
    assert {name: found for name, found in wrong.items() if found} == {}


@pytest.fixture(scope="module")
def operators():
    """Models for nearly every operator of the standard, serialised: each test reads them afresh."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [case for case in collect_testcases(None) if case.model]
    assert len(cases) > 1000
    return {case.name: case.model.SerializeToString() for case in cases}


def _read(operators, *, subgraphs):
    """The models in which some node has a subgraph, or the others."""
    for name, data in operators.items():
        model = onnx.load_model_from_string(data)
        if any(_has_subgraph(node) for node in model.graph.node) is subgraphs:
            yield name, model


def test_every_operator(operators):
    chosen = _read(operators, subgraphs=False)
    wrong = {name: _differences(model, subgraphs=False) for name, model in chosen}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_every_operator_with_subgraphs(operators):
    chosen = list(_read(operators, subgraphs=True))
    assert len(chosen) > 10
    wrong = {}
    for name, model in chosen:
        try:
            wrong[name] = _differences(model, subgraphs=True)
        except Exception as error:  # noqa: BLE001  (every failure is listed)
            wrong[name] = [repr(error)]
    assert {name: found for name, found in wrong.items() if found} == {}


def test_the_given_models_are_not_changed(operators):
    changed = []
    for name, model in _read(operators, subgraphs=False):
        before = model.SerializeToString()
        graph, keep = import_graph(model)
        export_graph(graph, keep)
        if model.SerializeToString() != before:
            changed.append(name)
    assert changed == []


def _small(kit):
    nodes = [
        helper.make_node("MatMul", ["x", "big"], ["a"], name="dense", doc_string="the layer"),
        helper.make_node("Add", ["a", "small"], ["y"], name="add"),
    ]
    constants = {"big": kit.whole((40, 50), seed=1), "small": kit.whole((50,), seed=2)}
    return kit.model(nodes, [kit.value("x", (2, 40))], [kit.value("y", (2, 50))], constants)


def test_weights_come_back_from_aside(kit):
    """The skeleton's placeholder becomes a constant that refers to the tensor kept aside."""
    model = _small(kit)
    light = onnx.ModelProto()
    light.CopyFrom(model)
    big = light.graph.initializer.pop(0)
    light.graph.input.append(kit.value("big", (40, 50)))
    graph, keep = import_graph(light, weights={"big": big})
    assert [t.name for t in graph.inputs] == ["x"]
    result = export_graph(graph, keep)
    assert [i.name for i in result.graph.input] == ["x"]
    assert list(result.graph.initializer) == list(model.graph.initializer)
    assert [node.doc_string for node in result.graph.node] == ["the layer", ""]
    kit.assert_same(model, result, {"x": kit.whole((2, 40), seed=3)})


def test_export_leaves_the_source_tensors_alone(kit):
    """A renamed constant gets its new name in the copy, not in the model it came from."""
    model = _small(kit)
    before = model.SerializeToString()
    graph, keep = import_graph(model)
    for node in graph.nodes:
        node.inputs[1].name = f"{node.inputs[1].name}_renamed"
    result = export_graph(graph, keep)
    assert model.SerializeToString() == before
    assert [t.name for t in result.graph.initializer] == ["big_renamed", "small_renamed"]
    for old, new in zip(model.graph.initializer, result.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(old), numpy_helper.to_array(new))
    kit.assert_same(model, result, {"x": kit.whole((2, 40), seed=3)})


def test_exporting_twice_gives_the_same_bytes(kit):
    graph, keep = import_graph(_small(kit))
    one = export_graph(graph, keep).SerializeToString(deterministic=True)
    assert export_graph(graph, keep).SerializeToString(deterministic=True) == one


def test_graph_that_graphsurgeon_cannot_read(kit):
    """graphsurgeon decodes every string attribute, and some hold a binary blob."""
    nodes = [helper.make_node("Engine", ["x"], ["y"], name="e", domain="d", blob=b"\xff\xfe")]
    model = kit.model(nodes, [kit.value("x", (2,))], [kit.value("y", (2,))], domains={"d": 1})
    with pytest.raises(ModelError, match="cannot be imported") as caught:
        import_graph(model)
    assert "\n" not in str(caught.value)
