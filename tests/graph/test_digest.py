"""Equal networks have equal digests; any change gives another."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.graph.digest import model_digest


@pytest.fixture
def model(kit):
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="conv", strides=[2, 1]),
        helper.make_node("Relu", ["a"], ["y"], name="relu"),
    ]
    constants = {"w": kit.whole((4, 3, 2, 2), seed=1), "b": kit.whole((4,), seed=2)}
    outputs = [kit.value("y", (2, 4, 3, 4))]
    return kit.model(nodes, [kit.value("x", (2, 3, 6, 5))], outputs, constants)


def _copy(model):
    copy = onnx.ModelProto()
    copy.ParseFromString(model.SerializeToString())
    return copy


def _typed(tensor):
    """The same tensor with its values in a typed field."""
    values = numpy_helper.to_array(tensor)
    return helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values.reshape(-1))


def test_a_copy_has_the_same_digest(model):
    before = model.SerializeToString()
    assert model_digest(_copy(model)) == model_digest(model)
    assert model.SerializeToString() == before


TYPES = [
    "FLOAT",
    "FLOAT16",
    "BFLOAT16",
    "DOUBLE",
    "INT8",
    "UINT8",
    "INT64",
    "BOOL",
    "INT4",
    "UINT4",
]


@pytest.mark.parametrize("kind", TYPES)
def test_encoding_of_weights_does_not_count(model, kind):
    """Raw bytes or a typed field: the same values are the same weights."""
    code = getattr(TensorProto, kind)
    typed = helper.make_tensor("w", code, [2, 3], [1, 0, 1, 1, 0, 1])
    raw = numpy_helper.from_array(numpy_helper.to_array(typed), "w")
    assert raw.HasField("raw_data")
    digests = set()
    for tensor in (typed, raw):
        copy = _copy(model)
        copy.graph.initializer[0].CopyFrom(tensor)
        digests.add(model_digest(copy))
    assert len(digests) == 1


def test_encoding_of_every_weight_of_a_model(model):
    other = _copy(model)
    for tensor in other.graph.initializer:
        tensor.CopyFrom(_typed(tensor))
    assert other != model
    assert model_digest(other) == model_digest(model)


def _weight(change):
    def apply(model):
        tensor = model.graph.initializer[0]
        values = numpy_helper.to_array(tensor).copy()
        tensor.CopyFrom(numpy_helper.from_array(change(values), tensor.name))

    return apply


def _one_value(values):
    values.flat[17] += 1
    return values


CHANGES = {
    "one value": _weight(_one_value),
    "negative zero": _weight(lambda v: np.where(v == 0, -0.0, v).astype(np.float32)),
    "layout": _weight(lambda v: v.reshape(3, 4, 2, 2)),
    "type": _weight(lambda v: v.view(np.int32)),
    "weight name": lambda m: setattr(m.graph.initializer[0], "name", "other"),
    "weights swapped": lambda m: (
        m.graph.node[0].input.__setitem__(1, "b"),
        m.graph.node[0].input.__setitem__(2, "w"),
    ),
    "attribute": lambda m: m.graph.node[0].attribute[0].ints.__setitem__(0, 1),
    "attribute gone": lambda m: m.graph.node[0].attribute.pop(),
    "operator": lambda m: setattr(m.graph.node[1], "op_type", "Neg"),
    "domain": lambda m: setattr(m.graph.node[1], "domain", "elsewhere"),
    "wiring": lambda m: m.graph.node[1].input.__setitem__(0, "x"),
    "node name": lambda m: setattr(m.graph.node[1], "name", "other"),
    "node gone": lambda m: m.graph.node.pop(),
    "input shape": lambda m: setattr(
        m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 3
    ),
    "symbol": lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "n"),
    "output type": lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 10),
    "opset": lambda m: setattr(m.opset_import[0], "version", 18),
    "another opset": lambda m: m.opset_import.append(helper.make_opsetid("elsewhere", 1)),
    "initializer gone": lambda m: m.graph.initializer.pop(),
    "function": lambda m: m.functions.add(name="f", domain="d"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_gives_another_digest(model, change):
    other = _copy(model)
    change(other)
    assert model_digest(other) != model_digest(model)


def _sparse(value):
    tensor = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([2, value], np.float32), "s"),
        numpy_helper.from_array(np.array([1, 4]), "indices"),
        [2, 3],
    )
    model = helper.make_model(helper.make_graph([], "g", [], [], sparse_initializer=[tensor]))
    return model_digest(model)


def test_sparse_weights_count():
    assert _sparse(3) == _sparse(3)
    assert _sparse(3) != _sparse(4)


def _strings(last):
    tensor = helper.make_tensor("s", TensorProto.STRING, [3], [b"a" * 20, b"b" * 20, last])
    graph = helper.make_graph([], "g", [], [], [tensor])
    return helper.make_model(graph)


def test_strings_count_by_their_content():
    """An array of Python strings holds addresses: those must not get into the digest."""
    digests = {model_digest(_strings(b"c" * 20)) for _ in range(5)}
    assert len(digests) == 1
    assert model_digest(_strings(b"d" * 20)) not in digests


def test_an_overridable_input_is_no_output():
    """Moving a name from the inputs to the outputs changes the network."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "k", "y")]
    node = helper.make_node("Add", ["x", "k"], ["y"])
    weights = [numpy_helper.from_array(np.ones(2, np.float32), "k")]
    one = helper.make_graph([node], "g", values[:2], values[2:], weights)
    other = helper.make_graph([node], "g", values[:1], values[1:], weights)
    assert model_digest(helper.make_model(one)) != model_digest(helper.make_model(other))
