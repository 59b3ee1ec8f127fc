"""Constant nodes become initializers, Identity nodes vanish, dead things go; outputs stay."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.load.canonical import canonicalise

KINDS = {
    "tensor": {"value": numpy_helper.from_array(np.array([[1, 2, 3], [4, 5, 6]], np.float32))},
    "typed tensor": {"value": helper.make_tensor("", 1, [2, 3], [1, 2, 3, 4, 5, 6])},
    "float": {"value_float": 2.5},
    "floats": {"value_floats": [1.5, -2.0, 4.0]},
}
INTEGERS = {
    "int": ({"value_int": 1}, np.array(1)),
    "ints": ({"value_ints": [1, 0, 1]}, np.array([1, 0, 1])),
    "tensor": (
        {"value": numpy_helper.from_array(np.array([1, 0], np.int32))},
        np.array([1, 0], np.int32),
    ),
}


def _single(model):
    (tensor,) = model.graph.initializer
    return tensor.name, numpy_helper.to_array(tensor)


@pytest.mark.parametrize("attribute", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("fold", [True, False])
def test_floating_constant_is_lifted(kit, attribute, fold):
    nodes = [
        helper.make_node("Constant", [], ["k"], name="constant", **attribute),
        helper.make_node("Add", ["x", "k"], ["y"], name="add"),
    ]
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))])
    canonical = canonicalise(model, fold_constants=fold)
    assert kit.operators(canonical.model) == ["Add"]
    assert "1 Constant nodes lifted into initializers" in canonical.notes
    name, values = _single(canonical.model)
    (given,) = attribute.values()
    expected = numpy_helper.to_array(given) if hasattr(given, "dims") else np.float32(given)
    assert (name, values.dtype) == ("k", np.float32)
    np.testing.assert_array_equal(values, expected)
    assert values.shape == np.shape(expected)
    kit.assert_same(model, canonical.model, {"x": kit.whole((2, 3), seed=1)})


@pytest.mark.parametrize(("attribute", "expected"), INTEGERS.values(), ids=INTEGERS)
def test_integer_constant_is_lifted(kit, attribute, expected):
    nodes = [
        helper.make_node("Constant", [], ["k"], name="constant", **attribute),
        helper.make_node("Gather", ["x", "k"], ["y"], name="gather"),
    ]
    free = [None] * (expected.ndim + 1)
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", free)])
    result = canonicalise(model).model
    assert kit.operators(result) == ["Gather"]
    name, values = _single(result)
    assert (name, values.dtype, values.shape) == ("k", expected.dtype, expected.shape)
    np.testing.assert_array_equal(values, expected)
    kit.assert_same(model, result, {"x": kit.whole((2, 3), seed=1)})


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.bool_, np.int64])
@pytest.mark.parametrize("size", [6, 2000])
def test_lifted_values_keep_their_type(kit, dtype, size):
    values = (np.arange(size) % 3).astype(dtype)
    nodes = [
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(values)),
        helper.make_node("Gather", ["k", "i"], ["y"], name="gather"),
    ]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    outputs = [kit.value("y", (3,), kind)]
    model = kit.model(nodes, [kit.value("i", (3,), TensorProto.INT64)], outputs)
    result = canonicalise(model).model
    _, found = _single(result)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)
    kit.assert_same(model, result, {"i": np.array([1, 5, 2])})


@pytest.mark.parametrize("fold", [False, True])
def test_sparse_and_string_constants_stay_nodes(kit, fold):
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([2, 3], np.float32), "values"),
        numpy_helper.from_array(np.array([1, 4], np.int64), "indices"),
        [2, 3],
    )
    nodes = [
        helper.make_node("Constant", [], ["k"], name="sparse", sparse_value=sparse),
        helper.make_node("Constant", [], ["s"], name="string", value_string="word"),
        helper.make_node("Add", ["x", "k"], ["y"], name="add"),
        helper.make_node("Identity", ["s"], ["t"], name="text"),
    ]
    outputs = [kit.value("y", (2, 3)), kit.value("t", (), TensorProto.STRING)]
    model = kit.model(nodes, [kit.value("x", (2, 3))], outputs)
    result = canonicalise(model, fold_constants=fold).model
    assert [n.name for n in result.graph.node][:2] == ["sparse", "string"]
    assert result.graph.node[0].attribute == model.graph.node[0].attribute
    found = kit.run(result, {"x": np.zeros((2, 3), np.float32)})
    np.testing.assert_array_equal(found[0], [[0, 2, 0], [0, 3, 0]])
    assert found[1] == "word"


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("size", [3, 1500], ids=["small", "large"])
def test_constants_that_are_graph_outputs(kit, size, fold):
    """A Constant node, an initializer, an Identity of one, and one that no node reads."""
    weights = kit.whole((size,), seed=1)
    nodes = [
        helper.make_node("Constant", [], ["k"], name="constant", value_floats=[2.0, 3.0]),
        helper.make_node("Identity", ["w"], ["z"], name="identity"),
        helper.make_node("Add", ["x", "w"], ["y"], name="add"),
    ]
    outputs = [kit.value("y", (2, size)), kit.value("k", (2,))]
    outputs += [kit.value("w", (size,)), kit.value("z", (size,)), kit.value("alone", (size,))]
    constants = {"w": weights, "alone": weights + 1}
    model = kit.model(nodes, [kit.value("x", (2, size))], outputs, constants)
    result = canonicalise(model, fold_constants=fold).model
    assert [o.name for o in result.graph.output] == ["y", "k", "w", "z", "alone"]
    kit.assert_same(model, result, {"x": kit.whole((2, size), seed=2)})


@pytest.mark.parametrize("fold", [True, False])
def test_identity_chains_are_removed(kit, fold):
    """Of an input, of an initializer, of an intermediate tensor, and up to a graph output."""
    nodes = [
        helper.make_node("Identity", ["x"], ["x1"], name="i1"),
        helper.make_node("Identity", ["x1"], ["x2"], name="i2"),
        helper.make_node("Identity", ["w"], ["w1"], name="i3"),
        helper.make_node("Identity", ["w1"], ["w2"], name="i4"),
        helper.make_node("Conv", ["x2", "w2"], ["a"], name="conv"),
        helper.make_node("Identity", ["a"], ["a1"], name="i5"),
        helper.make_node("Relu", ["a1"], ["b"], name="relu"),
        helper.make_node("Identity", ["b"], ["b1"], name="i6"),
        helper.make_node("Identity", ["b1"], ["y"], name="i7"),
    ]
    model = kit.model(
        nodes,
        [kit.value("x", (2, 3, 5, 7))],
        [kit.value("y", (2, 4, 4, 6))],
        {"w": kit.whole((4, 3, 2, 2), seed=1)},
    )
    result = canonicalise(model, fold_constants=fold).model
    # The last Identity may stay, because the output's name must.
    assert kit.operators(result) in (["Conv", "Relu"], ["Conv", "Relu", "Identity"])
    assert [o.name for o in result.graph.output] == ["y"]
    conv = result.graph.node[0]
    assert conv.input[0] == "x"
    assert [t.name for t in result.graph.initializer] == [conv.input[1]]
    kit.assert_same(model, result, {"x": kit.whole((2, 3, 5, 7), seed=2)})


@pytest.mark.parametrize("fold", [True, False])
def test_identity_from_input_to_output_stays(kit, fold):
    nodes = [
        helper.make_node("Identity", ["x"], ["a"], name="i1"),
        helper.make_node("Identity", ["a"], ["y"], name="i2"),
        helper.make_node("Identity", ["a"], ["z"], name="i3"),
    ]
    outputs = [kit.value("y", (2, 3)), kit.value("z", (2, 3)), kit.value("x", (2, 3))]
    model = kit.model(nodes, [kit.value("x", (2, 3))], outputs)
    result = canonicalise(model, fold_constants=fold).model
    assert [o.name for o in result.graph.output] == ["y", "z", "x"]
    kit.assert_same(model, result, {"x": kit.whole((2, 3), seed=2)})


def test_one_tensor_read_through_two_identities(kit):
    nodes = [
        helper.make_node("Identity", ["x"], ["a"], name="i1"),
        helper.make_node("Identity", ["x"], ["b"], name="i2"),
        helper.make_node("Sub", ["a", "b"], ["d"], name="sub"),
        helper.make_node("Add", ["d", "a"], ["y"], name="add"),
    ]
    model = kit.model(nodes, [kit.value("x", (3, 3))], [kit.value("y", (3, 3))])
    result = canonicalise(model, fold_constants=False).model
    assert [list(n.input) for n in result.graph.node] == [["x", "x"], ["d", "x"]]
    kit.assert_same(model, result, {"x": kit.whole((3, 3), seed=2)})


def test_operators_of_another_domain_are_not_constants_or_aliases(kit):
    nodes = [
        helper.make_node("Constant", [], ["k"], name="k", domain="elsewhere", value_float=1.0),
        helper.make_node("Identity", ["x"], ["i"], name="i", domain="elsewhere"),
        helper.make_node("Add", ["i", "k"], ["y"], name="add"),
    ]
    model = kit.model(
        nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))], domains={"elsewhere": 1}
    )
    result = canonicalise(model).model
    assert kit.operators(result) == ["Constant", "Identity", "Add"]
    assert [n.domain for n in result.graph.node] == ["elsewhere", "elsewhere", ""]
    assert not result.graph.initializer


@pytest.mark.parametrize("fold", [True, False])
def test_what_nobody_reads_goes_but_inputs_stay(kit, fold):
    constants = {
        "w": kit.whole((3,), seed=1),
        "small": np.ones(3, np.float32),
        "large": np.ones(3000, np.float32),
        "behind": np.ones(3, np.float32),
    }
    nodes = [
        helper.make_node("Add", ["x", "behind"], ["dead"], name="dead"),
        helper.make_node("Neg", ["dead"], ["deader"], name="deader"),
        helper.make_node("Mul", ["x", "w"], ["y"], name="mul"),
    ]
    inputs = [kit.value("unused", (1, 2)), kit.value("x", (2, 3))]
    model = kit.model(nodes, inputs, [kit.value("y", (2, 3))], constants)
    result = canonicalise(model, fold_constants=fold).model
    assert kit.operators(result) == ["Mul"]
    assert [t.name for t in result.graph.initializer] == ["w"]
    assert list(result.graph.input) == list(model.graph.input)
    feeds = {"x": kit.whole((2, 3), seed=2), "unused": np.zeros((1, 2), np.float32)}
    kit.assert_same(model, result, feeds)
