"""Cutting a layer out of a network, with what ONNX Runtime fuses into it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.errors import ModelError
from onnxcompress.graph.extract import extract_layer
from onnxcompress.graph.infer import shapes_at, with_value_info
from onnxcompress.graph.view import GraphView

SIZES = {"x": (2, 3, 6, 5), "r": (2, 4, 5, 4)}


def _network(kit, *tail, outputs=("y",), branch=None):
    """conv, then `tail` as (operator, inputs, output)."""
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["a"], name="conv", pads=[0, 1, 0, 0])]
    nodes += [
        helper.make_node(op, inputs, [output], name=f"{op} {output}") for op, inputs, output in tail
    ]
    if branch:
        nodes.append(branch)
    constants = {
        "w": kit.whole((4, 3, 2, 3), seed=1),
        "b": kit.whole((4,), seed=2),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
        "k": kit.whole((1, 4, 1, 1), seed=3),
    }
    inputs = [kit.value("x", ("n", 3, 6, 5)), kit.value("r", ("n", 4, 5, 4))]
    values = [kit.value(name, ("n", 4, 5, 4)) for name in outputs]
    return with_value_info(kit.model(nodes, inputs, values, constants))


def _extract(model, node="conv"):
    before = model.SerializeToString()
    layer = extract_layer(GraphView(model), node, shapes_at(model, SIZES))
    assert model.SerializeToString() == before
    onnx.checker.check_model(layer, full_check=True)
    return layer


CHAINS = {
    "alone": ([("MaxPool3", ["a"], "y")], ["Conv"]),
    "activation": ([("Relu", ["a"], "y")], ["Conv", "Relu"]),
    "clip with its bounds": ([("Clip", ["a", "zero", "six"], "y")], ["Conv", "Clip"]),
    "residual": ([("Add", ["a", "r"], "y")], ["Conv", "Add"]),
    "residual on the left": ([("Add", ["r", "a"], "y")], ["Conv", "Add"]),
    "constant added": ([("Add", ["a", "k"], "y")], ["Conv", "Add"]),
    "residual, activation": (
        [("Add", ["a", "r"], "s"), ("Relu", ["s"], "y")],
        ["Conv", "Add", "Relu"],
    ),
    "only one activation": ([("Relu", ["a"], "s"), ("Tanh", ["s"], "y")], ["Conv", "Relu"]),
    "activation, then Add": ([("Relu", ["a"], "s"), ("Add", ["s", "r"], "y")], ["Conv", "Relu"]),
    "only one Add": (
        [("Add", ["a", "r"], "s"), ("Add", ["s", "r"], "y")],
        ["Conv", "Add"],
    ),
    "added to itself": ([("Add", ["a", "a"], "y")], ["Conv"]),
    "another operator": ([("Mul", ["a", "k"], "s"), ("Relu", ["s"], "y")], ["Conv"]),
    "two readers": ([("Relu", ["a"], "s"), ("Add", ["a", "s"], "y")], ["Conv"]),
}


@pytest.mark.parametrize(("tail", "operators"), CHAINS.values(), ids=CHAINS)
def test_what_comes_along(kit, tail, operators):
    tail = [("Neg" if op == "MaxPool3" else op, inputs, output) for op, inputs, output in tail]
    model = _network(kit, *tail)
    layer = _extract(model)
    assert kit.operators(layer) == operators
    # The cut-out computes what the network computes there.
    last = layer.graph.output[0].name
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    if last != "y":
        tapped.graph.output.append(onnx.ValueInfoProto(name=last))
    feeds = {name: kit.whole(size, seed=4) for name, size in SIZES.items()}
    expected = kit.run(tapped, feeds)[-1]
    wanted = {value.name for value in layer.graph.input}
    (found,) = kit.run(layer, {k: v for k, v in feeds.items() if k in wanted})
    np.testing.assert_array_equal(found, expected)


def test_sizes_are_fixed(kit):
    layer = _extract(_network(kit, ("Add", ["a", "r"], "s"), ("Relu", ["s"], "y")))
    for value in (*layer.graph.input, *layer.graph.output):
        assert all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)
    assert {
        v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in layer.graph.input
    } == SIZES
    assert [t.name for t in layer.graph.initializer] == ["w", "b"]
    assert [(o.domain, o.version) for o in layer.opset_import] == [("", 17)]


def test_operator_of_another_domain_stops_the_chain(kit):
    model = _network(kit, ("Relu", ["a"], "y"))
    model.graph.node[1].domain = "elsewhere"
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    assert kit.operators(_extract(model)) == ["Conv"]


def test_visible_from_outside_stops_the_chain(kit):
    model = _network(kit, ("Relu", ["a"], "y"), outputs=("y", "a"))
    assert kit.operators(_extract(model)) == ["Conv"]


def test_captured_by_a_subgraph_stops_the_chain(kit):
    shape = (2, 4, 5, 4)
    graphs = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Neg", [source], [name], name=f"in {name}")],
            name,
            [],
            [kit.value(name, shape)],
        )
        for name, source in (("then", "a"), ("else", "r"))
    }
    branch = helper.make_node("If", ["which"], ["z"], name="if", **graphs)
    model = _network(kit, ("Relu", ["a"], "y"), outputs=("y", "z"), branch=branch)
    model.graph.input.append(kit.value("which", (), TensorProto.BOOL))
    assert kit.operators(_extract(model)) == ["Conv"]


def test_dense_layer(kit):
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], name="fc", transB=1),
        helper.make_node("Sigmoid", ["a"], ["y"], name="sigmoid"),
    ]
    constants = {"w": kit.whole((5, 3), seed=1), "b": kit.whole((5,), seed=2)}
    outputs = [kit.value("y", ("n", 5))]
    model = with_value_info(kit.model(nodes, [kit.value("x", ("n", 3))], outputs, constants))
    layer = extract_layer(GraphView(model), "fc", shapes_at(model, {"x": (2, 3)}))
    assert kit.operators(layer) == ["Gemm", "Sigmoid"]


def test_computed_weight_becomes_an_input(kit):
    nodes = [
        helper.make_node("Neg", ["p"], ["w"], name="neg"),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="dense"),
    ]
    inputs = [kit.value("x", (2, 3)), kit.value("p", (3, 5))]
    model = with_value_info(kit.model(nodes, inputs, [kit.value("y", (2, 5))]))
    layer = extract_layer(GraphView(model), "dense", shapes_at(model, {}))
    assert [i.name for i in layer.graph.input] == ["x", "w"]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_element_types_are_kept(kit, kind):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")]
    constants = {"w": np.ones((3, 5), dtype)}
    inputs, outputs = [kit.value("x", (2, 3), kind)], [kit.value("y", (2, 5), kind)]
    model = kit.model(nodes, inputs, outputs, constants)
    layer = extract_layer(GraphView(model), "dense", shapes_at(model, {}))
    kinds = {v.type.tensor_type.elem_type for v in (*layer.graph.input, *layer.graph.output)}
    assert kinds == {kind}


def test_unknown_size_or_type(kit):
    model = _network(kit, ("Relu", ["a"], "y"))
    with pytest.raises(ModelError, match="size of tensor 'x' is not known"):
        extract_layer(GraphView(model), "conv", {"y": (2, 4, 5, 4)})
    model = _network(kit, ("Neg", ["a"], "y"))
    del model.graph.value_info[:]
    with pytest.raises(ModelError, match="type of tensor 'a' is not known"):
        extract_layer(GraphView(model), "conv", shapes_at(model, SIZES))
