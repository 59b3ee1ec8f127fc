"""The skeleton: large weights out, everything else in, and back again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.graph.editor import Editor
from onnxcompress.graph.skeleton import LARGE_ELEMENTS, element_count, skeleton


@pytest.fixture
def model(kit):
    nodes = [
        helper.make_node("MatMul", ["x", "big"], ["a"], name="dense"),
        helper.make_node("Add", ["a", "small"], ["b"], name="add"),
        helper.make_node("Gather", ["b", "index"], ["y"], name="gather", axis=1),
    ]
    constants = {
        "small": kit.whole((50,), seed=2),
        "big": kit.whole((40, 50), seed=1),
        "index": np.arange(LARGE_ELEMENTS) % 50,
    }
    return kit.model(
        nodes, [kit.value("x", (2, 40))], [kit.value("y", (2, LARGE_ELEMENTS))], constants
    )


def test_large_floating_weights_become_inputs(model):
    before = model.SerializeToString()
    light = skeleton(model)
    assert set(light.weights) == {"big"}
    assert [t.name for t in light.model.graph.initializer] == ["small", "index"]
    assert [i.name for i in light.model.graph.input] == ["x", "big"]
    placeholder = light.model.graph.input[1].type.tensor_type
    assert placeholder.elem_type == TensorProto.FLOAT
    assert [d.dim_value for d in placeholder.shape.dim] == [40, 50]
    assert list(light.model.graph.node) == list(model.graph.node)
    onnx.checker.check_model(light.model, full_check=True)
    assert model.SerializeToString() == before


def test_weights_are_references(model):
    light = skeleton(model)
    light.weights["big"].doc_string = "seen through both"
    (big,) = [t for t in model.graph.initializer if t.name == "big"]
    assert big.doc_string == "seen through both"


def test_round_trip(kit, model):
    light = skeleton(model)
    result = Editor(light.model, weights=light.weights).finish()
    assert [i.name for i in result.graph.input] == ["x"]
    found = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    for tensor in model.graph.initializer:
        values = found.pop(tensor.name)
        assert values.dtype == numpy_helper.to_array(tensor).dtype
        np.testing.assert_array_equal(values, numpy_helper.to_array(tensor))
    assert not found
    kit.assert_same(model, result, {"x": kit.whole((2, 40), seed=3)})


@pytest.mark.parametrize("size", [LARGE_ELEMENTS - 1, LARGE_ELEMENTS])
@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, np.int8, np.int64, np.bool_], ids=str
)
def test_what_counts_as_large(kit, size, dtype):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Gather", ["k", "i"], ["y"], name="gather")]
    inputs, outputs = [kit.value("i", (1,), 7)], [kit.value("y", (1,), kind)]
    model = kit.model(nodes, inputs, outputs, {"k": np.zeros(size, dtype)})
    out = size >= LARGE_ELEMENTS and np.issubdtype(dtype, np.floating)
    assert set(skeleton(model).weights) == ({"k"} if out else set())


def test_names_to_keep_stay(model):
    light = skeleton(model, keep=frozenset({"big"}))
    assert not light.weights
    assert [t.name for t in light.model.graph.initializer] == ["small", "big", "index"]


def test_initializers_that_are_inputs_are_dropped_from_the_inputs(model):
    for name, shape in (("big", (40, 50)), ("small", (50,))):
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        model.graph.input.insert(0, value)
    model.ir_version = 3
    light = skeleton(model)
    assert [i.name for i in light.model.graph.input] == ["x", "big"]
    assert light.model.ir_version == 4
    assert model.ir_version == 3


def test_weight_whose_name_a_subgraph_defines_again_stays(kit, model):
    """As a graph input it would clash with the inner name."""
    inner = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["big"], name="neg")], "b", [], [kit.value("big", (2, 40))]
    )
    other = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["o"], name="abs")], "o", [], [kit.value("o", (2, 40))]
    )
    node = helper.make_node("If", ["c"], ["z"], name="if", then_branch=inner, else_branch=other)
    model.graph.node.append(node)
    assert not skeleton(model).weights


def test_everything_else_is_copied(model):
    model.producer_name, model.doc_string, model.model_version = "p", "d", 3
    model.metadata_props.add(key="a", value="b")
    model.graph.doc_string = "graph"
    model.graph.metadata_props.add(key="c", value="d")
    model.graph.value_info.add(name="a")
    model.opset_import.append(helper.make_opsetid("other", 2))
    light = skeleton(model).model
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    for message in (expected.graph, light.graph):
        del message.initializer[:]
        del message.input[:]
    assert light == expected


@pytest.mark.parametrize(
    ("dims", "count"),
    [((), 1), ((0, 5), 0), ((3, 4), 12), ((2**40, 2**40), 2**80), ((2**62, 4), 2**64)],
)
def test_element_count_is_exact(dims, count):
    tensor = TensorProto()
    tensor.dims.extend(dims)
    assert element_count(tensor) == count
