"""What surrounds the nodes: interface, opsets, metadata, doc strings, names, value_info."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.load.canonical import canonicalise


def _pairs(message):
    return [(p.key, p.value) for p in message.metadata_props]


def _convnet(kit, *, x=("batch", 3, 6, "width"), y=("batch", 4, None, None), names=("c1", "c2")):
    """Conv, Relu, Conv; symbolic batch and width."""
    constants = {"w1": kit.whole((5, 3, 2, 1), seed=1), "w2": kit.whole((4, 5, 1, 2), seed=2)}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name=names[0]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["y"], name=names[1]),
    ]
    return kit.model(nodes, [kit.value("x", x)], [kit.value("y", y)], constants)


def _adorn(model):
    model.producer_name, model.producer_version = "exporter", "1.2"
    model.domain, model.model_version, model.doc_string = "org.example", 42, "model doc"
    model.metadata_props.add(key="license", value="MIT")
    model.metadata_props.add(key="labels", value="cat,dog")
    model.graph.doc_string = "graph doc"
    model.graph.metadata_props.add(key="graph key", value="graph value")
    for node in model.graph.node:
        node.doc_string = f"doc of {node.name}"
        node.metadata_props.add(key="scope", value=f"module.{node.name}")
    model.graph.input[0].doc_string = "pixels"
    model.graph.input[0].type.denotation = "IMAGE"
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    model.graph.output[0].doc_string = "scores"
    return model


def _assert_frame_kept(model, result):
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(result, name) == getattr(model, name)
    assert _pairs(result) == _pairs(model)
    assert result.graph.name == model.graph.name
    assert result.graph.doc_string == "graph doc"
    assert _pairs(result.graph) == _pairs(model.graph)
    assert list(result.graph.input) == list(model.graph.input)
    assert list(result.graph.output) == list(model.graph.output)


def test_metadata_and_doc_strings_are_kept(kit):
    model = _adorn(_convnet(kit))
    before = model.SerializeToString()
    result = canonicalise(model).model
    _assert_frame_kept(model, result)
    for old, new in zip(model.graph.node, result.graph.node, strict=True):
        assert (new.name, new.doc_string, _pairs(new)) == (old.name, old.doc_string, _pairs(old))
    assert model.SerializeToString() == before


@pytest.mark.parametrize("position", [0, 1, 2], ids=["first", "second", "renamed output"])
def test_metadata_and_doc_strings_survive_onnxslim(kit, position):
    """onnxslim removes the Reshape, so that the last Conv makes the output itself."""
    model = _convnet(kit)
    model.graph.node[2].output[0] = "c"
    shape = helper.make_node("Shape", ["c"], ["shape"], name="shape")
    reshape = helper.make_node("Reshape", ["c", "shape"], ["y"], name="reshape")
    model.graph.node.extend([shape, reshape])
    model = _adorn(model)
    canonical = canonicalise(model)
    assert canonical.slimmed
    assert kit.operators(canonical.model) == ["Conv", "Relu", "Conv"]
    _assert_frame_kept(model, canonical.model)
    old, new = model.graph.node[position], canonical.model.graph.node[position]
    assert (new.name, new.doc_string, _pairs(new)) == (old.name, old.doc_string, _pairs(old))


def test_a_folded_convolution_keeps_its_name_and_origin(kit):
    """Through onnxslim too, which fuses BatchNormalization by itself: --exclude names nodes."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="stem/conv", doc_string="the stem"),
        kit.norm("norm", "a", "b"),
        helper.make_node("Shape", ["b"], ["shape"], name="shape"),
        helper.make_node("Reshape", ["b", "shape"], ["y"], name="reshape"),
    ]
    constants = {"w": kit.whole((4, 3, 2, 2), seed=1), **kit.norm_constants("norm", 4, seed=2)}
    outputs = [kit.value("y", [None] * 4)]
    model = kit.model(nodes, [kit.value("x", (2, 3, 6, 5))], outputs, constants)
    result = canonicalise(model).model
    kit.assert_same(model, result, {"x": kit.whole((2, 3, 6, 5), seed=3)})
    (conv,) = result.graph.node
    assert (conv.name, conv.doc_string) == ("stem/conv", "the stem")


def test_symbolic_dimensions_are_kept(kit):
    model = _convnet(kit)
    result = canonicalise(model).model
    assert [d.dim_param for d in result.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "",
        "",
        "width",
    ]
    for batch, width in ((1, 4), (3, 3)):
        kit.assert_same(model, result, {"x": kit.whole((batch, 3, 6, width), seed=3)})


def test_opsets_and_custom_domains_are_kept(kit):
    model = _convnet(kit)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.opset_import.append(helper.make_opsetid("org.unused", 7))
    result = canonicalise(model).model
    assert [(o.domain, o.version) for o in result.opset_import] == [
        ("", 17),
        ("com.microsoft", 1),
        ("org.unused", 7),
    ]


@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_duplicate_opset_entries_are_merged(kit, domain):
    model = _convnet(kit)
    version = 17 if domain == "" else 1
    model.opset_import.extend([helper.make_opsetid(domain, version)] * 2)
    result = canonicalise(model).model
    entries = [(o.domain, o.version) for o in result.opset_import]
    assert sorted(entries) == sorted({("", 17), (domain, version)})
    kit.assert_same(model, result, {"x": kit.whole((1, 3, 6, 4), seed=3)})


def test_the_default_domain_by_its_long_name(kit):
    model = _convnet(kit)
    model.opset_import[0].domain = "ai.onnx"
    model.graph.node[2].output[0] = "c"
    model.graph.node.extend(
        [
            helper.make_node("Constant", [], ["k"], name="k", value_float=1.0),
            helper.make_node("Add", ["c", "k"], ["y"], name="add"),
        ]
    )
    result = canonicalise(model).model
    assert kit.operators(result) == ["Conv", "Relu", "Conv", "Add"]
    assert [(o.domain, o.version) for o in result.opset_import] == [("ai.onnx", 17)]
    kit.assert_same(model, result, {"x": kit.whole((1, 3, 6, 4), seed=3)})


def test_operator_of_a_custom_domain_passes_through(kit):
    """Such a model is not run: its operator may not be known here."""
    nodes = [
        helper.make_node("Identity", ["x"], ["i"], name="identity"),
        helper.make_node("Conv", ["i", "w"], ["a"], name="conv"),
        helper.make_node("Mystery", ["a", ""], ["b", "c"], name="m", domain="org.x", key=[1, 2]),
        helper.make_node("Add", ["b", "c"], ["y"], name="add"),
    ]
    constants = {"w": kit.whole((4, 3, 2, 2), seed=1)}
    model = kit.model(
        nodes,
        [kit.value("x", (1, 3, 5, 5))],
        [kit.value("y", [None] * 4)],
        constants,
        domains={"org.x": 3},
    )
    canonical = canonicalise(model)
    assert kit.operators(canonical.model) == ["Conv", "Mystery", "Add"]
    found = canonical.model.graph.node[1]
    assert (found.domain, list(found.input), list(found.output)) == ("org.x", ["a", ""], ["b", "c"])
    assert found.attribute == model.graph.node[2].attribute
    assert "constant folding skipped: node 'm' is of custom domain 'org.x'" in canonical.notes


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_also_inputs_become_constants(kit, ir_version):
    """IR 3 demands that every initializer is an input; later ones allow it, as a default."""
    model = _convnet(kit, x=(2, 3, 6, 4), y=(2, 4, 5, 3))
    model.ir_version = ir_version
    model.opset_import[0].version = 8 if ir_version == 3 else 17
    declared = [kit.value(t.name, t.dims) for t in model.graph.initializer]
    model.graph.input.extend(declared)
    canonical = canonicalise(model)
    assert [i.name for i in canonical.model.graph.input] == ["x"]
    assert {t.name for t in canonical.model.graph.initializer} == {"w1", "w2"}
    assert canonical.model.ir_version == max(ir_version, 4)
    assert "2 initializers were also inputs with a default: now constants" in canonical.notes
    kit.assert_same(model, canonical.model, {"x": kit.whole((2, 3, 6, 4), seed=3)})


def test_large_initializers_that_are_also_inputs_become_constants(kit):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")]
    inputs = [kit.value("w", (40, 50)), kit.value("x", (2, 40))]
    constants = {"w": kit.whole((40, 50), seed=1)}
    model = kit.model(nodes, inputs, [kit.value("y", (2, 50))], constants)
    result = canonicalise(model).model
    assert [i.name for i in result.graph.input] == ["x"]
    kit.assert_same(model, result, {"x": kit.whole((2, 40), seed=2)})


def test_stale_value_info_is_replaced(kit):
    model = _convnet(kit, x=("batch", 3, 6, 4), y=("batch", 4, 5, 3))
    model.graph.value_info.append(kit.value("a", ("batch", 5, None, None)))
    model.graph.value_info.append(kit.value("gone", (7, 7)))
    model.graph.value_info.append(kit.value("b", (None, None, None, "stale")))
    result = canonicalise(model).model
    shapes = {
        v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim]
        for v in result.graph.value_info
    }
    assert shapes == {"a": ["batch", 5, 5, 4], "b": ["batch", 5, 5, 4]}
    onnx.checker.check_model(result, full_check=True)


@pytest.mark.parametrize("names", [("", ""), ("same", "same"), ("relu", "relu"), ("", "Conv")])
@pytest.mark.parametrize("alias", [False, True], ids=["plain", "identity first"])
def test_node_names_are_made_unique(kit, names, alias):
    model = _convnet(kit, x=(1, 3, 6, 4), y=(1, 4, 5, 3), names=names)
    if alias:
        identity = helper.make_node("Identity", ["x"], ["i"], name=names[0])
        model.graph.node[0].input[0] = "i"
        nodes = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([identity, *nodes])
    before = model.SerializeToString()
    result = canonicalise(model, fold_constants=False).model
    assert model.SerializeToString() == before
    found = [node.name for node in result.graph.node]
    assert all(found)
    assert len(set(found)) == 3
    assert canonicalise(model, fold_constants=False).model == result
    # ONNX Runtime refuses a model with duplicate names, so the original loses its own.
    for node in model.graph.node:
        node.name = ""
    kit.assert_same(model, result, {"x": kit.whole((1, 3, 6, 4), seed=3)})


def test_float_types_of_initializers_are_kept(kit):
    half = kit.whole((5,), seed=1, dtype=np.float16)
    tensor = numpy_helper.from_array(half, "k")
    nodes = [helper.make_node("Add", ["x", "k"], ["y"], name="add")]
    kinds = TensorProto.FLOAT16
    model = kit.model(nodes, [kit.value("x", (2, 5), kinds)], [kit.value("y", (2, 5), kinds)])
    model.graph.initializer.append(tensor)
    result = canonicalise(model).model
    assert list(result.graph.initializer) == [tensor]
