"""Checks on values and structure: what is wrong, where, in one line, without the memory it asks."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.errors import ModelError
from onnxcompress.load.canonical import canonicalise
from onnxcompress.load.checks import check_structure, check_values


def _assert_refused(model, naming):
    before = model.SerializeToString()
    with pytest.raises(ModelError, match=naming) as caught:
        canonicalise(model)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    assert model.SerializeToString() == before


def _layer(kit, op, values):
    """One layer that reads the initializer `bad`."""
    shape = {"Conv": (2, 3, 6, 5), "ConvTranspose": (2, 3, 6, 5)}.get(op, (2, 3))
    node = helper.make_node(op, ["x", "bad"], ["y"], name="the layer")
    free = [kit.value("y", [None] * len(shape))]
    return kit.model([node], [kit.value("x", shape)], free, {"bad": values})


LAYERS = {
    "Conv": (4, 3, 2, 2),
    "ConvTranspose": (3, 4, 2, 2),
    "Gemm": (3, 4),
    "MatMul": (3, 4),
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("op", LAYERS)
def test_weight_that_is_not_finite(kit, op, value):
    values = kit.whole(LAYERS[op], seed=1)
    values.flat[5] = value
    _assert_refused(_layer(kit, op, values), "'bad' of node 'the layer' contains NaN or infinite")


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weight_of_another_type_that_is_not_finite(kit, dtype):
    values = kit.whole((3, 4), seed=1, dtype=dtype)
    values.flat[-1] = np.nan
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("MatMul", ["x", "bad"], ["y"], name="the layer")
    inputs, outputs = [kit.value("x", (2, 3), kind)], [kit.value("y", (2, 4), kind)]
    _assert_refused(kit.model([node], inputs, outputs, {"bad": values}), "'bad'")


def test_large_weight_with_one_nan(kit):
    values = kit.whole((100, 200), seed=1)
    values[99, 199] = np.nan
    node = helper.make_node("MatMul", ["x", "bad"], ["y"], name="the layer")
    model = kit.model(
        [node], [kit.value("x", (2, 100))], [kit.value("y", (2, 200))], {"bad": values}
    )
    _assert_refused(model, "'bad' of node 'the layer'")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("fold", [True, False])
def test_weight_in_a_constant_node_that_is_not_finite(kit, value, fold):
    values = kit.whole((3, 4), seed=1)
    values[1, 2] = value
    nodes = [
        helper.make_node("Constant", [], ["bad"], value=numpy_helper.from_array(values)),
        helper.make_node("Identity", ["x"], ["i"], name="identity"),
        helper.make_node("MatMul", ["i", "bad"], ["y"], name="the layer"),
    ]
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 4))])
    with pytest.raises(ModelError, match="'bad' of node 'the layer' contains NaN or infinite"):
        canonicalise(model, fold_constants=fold)


@pytest.mark.parametrize("part", ["scale", "bias", "mean", "var"])
def test_live_normalisation_that_is_not_finite(kit, part):
    constants = kit.norm_constants("norm", 3, seed=1)
    constants[f"norm_{part}"][1] = np.inf
    nodes = [helper.make_node("Relu", ["x"], ["a"]), kit.norm("norm", "a", "y")]
    shape = (2, 3, 4, 5)
    model = kit.model(nodes, [kit.value("x", shape)], [kit.value("y", shape)], constants)
    _assert_refused(model, f"'norm_{part}' of node 'norm'")


def _mask(kit, value):
    mask = np.array([[0, value, 0], [0, 0, value]], np.float32)
    node = helper.make_node("Add", ["x", "mask"], ["y"], name="mask it")
    return kit.model([node], [kit.value("x", (2, 3))], [kit.value("y", (2, 3))], {"mask": mask})


def test_mask_of_minus_infinity_is_allowed(kit):
    model = _mask(kit, -np.inf)
    result = canonicalise(model).model
    kit.assert_same(model, result, {"x": kit.whole((2, 3), seed=1)})


def test_nan_is_refused_anywhere(kit):
    _assert_refused(_mask(kit, np.nan), "'mask' of node 'mask it'")


def test_checks_do_not_read_what_is_no_weight(kit):
    """Integers, booleans, empty tensors: nothing to be infinite."""
    constants = {"shape": np.array([3, 2]), "none": np.zeros((0, 3), np.float32)}
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["a"], name="reshape"),
        helper.make_node("Concat", ["a", "none"], ["y"], name="concat", axis=1),
    ]
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (3, None))], constants)
    check_values(model)


def _tensor(name, kind, dims, raw=None, **fields):
    tensor = TensorProto(name=name, data_type=kind)
    tensor.dims.extend(dims)
    if raw is not None:
        tensor.raw_data = raw
    for key, values in fields.items():
        getattr(tensor, key).extend(values)
    return tensor


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
BAD_TENSORS = {
    "a byte short": _tensor("bad", FLOAT, [4, 3, 2, 2], b"\0" * 191),
    "a float short": _tensor("bad", FLOAT, [4, 3, 2, 2], b"\0" * 188),
    "a float long": _tensor("bad", FLOAT, [4, 3, 2, 2], b"\0" * 196),
    "half type, full data": _tensor("bad", TensorProto.FLOAT16, [4, 3, 2, 2], b"\0" * 192),
    "no data": _tensor("bad", FLOAT, [4, 3, 2, 2]),
    "typed, one short": _tensor("bad", FLOAT, [4, 3, 2, 2], float_data=[0.0] * 47),
    "typed, wrong field": _tensor("bad", FLOAT, [4, 3, 2, 2], int64_data=[0] * 48),
    "raw and typed": _tensor("bad", FLOAT, [4, 3, 2, 2], b"\0" * 192, float_data=[0.0] * 48),
    "negative": _tensor("bad", FLOAT, [-4, 3, 2, 2], b"\0" * 192),
    "negative twice": _tensor("bad", FLOAT, [-4, -3, 2, 2], b"\0" * 192),
    "absurd": _tensor("bad", FLOAT, [2**40, 3, 2, 2], b"\0" * 4),
    "absurd without data": _tensor("bad", FLOAT, [2**40, 3, 2, 2]),
    "absurd and typed": _tensor("bad", FLOAT, [2**40, 3, 2, 2], float_data=[1.0]),
    "absurd whole numbers": _tensor("bad", INT64, [2**40], b"\0" * 8),
    "wraps around to zero": _tensor("bad", FLOAT, [2**62, 4, 1, 1], b""),
    "wraps around to four": _tensor("bad", FLOAT, [2**63 - 1, 2, 2, 1], b"\0" * 16),
    "unknown type": _tensor("bad", 99, [4, 3, 2, 2], b"\0" * 192),
    "no type": _tensor("bad", 0, [4, 3, 2, 2], b"\0" * 192),
}


@pytest.mark.parametrize("tensor", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_tensor_whose_data_does_not_fit(kit, tensor):
    node = helper.make_node("Conv", ["x", "bad"], ["y"], name="conv")
    model = kit.model([node], [kit.value("x", (2, 3, 6, 5))], [kit.value("y", [None] * 4)])
    model.graph.initializer.append(tensor)
    # The checker names the field or the type where it does not name the tensor.
    _assert_refused(model, "'bad'|name: bad|data type|data_type")


@pytest.mark.parametrize("dims", [[-4, 3, 2, 2], [-4, -3, 2, 2], [4, 3, 2, -2]])
def test_negative_dimension_is_called_that(kit, dims):
    node = helper.make_node("Conv", ["x", "bad"], ["y"], name="conv")
    model = kit.model([node], [kit.value("x", (2, 3, 6, 5))], [kit.value("y", [None] * 4)])
    model.graph.initializer.append(_tensor("bad", FLOAT, dims, b"\0" * 192))
    _assert_refused(model, "'bad' has a negative dimension")


def test_tensor_in_front_of_a_normalisation(kit):
    """Folding reads the values: a tensor that cannot be decoded is refused there too."""
    nodes = [helper.make_node("Conv", ["x", "bad"], ["a"], name="conv"), kit.norm("norm", "a", "y")]
    constants = kit.norm_constants("norm", 4, seed=1)
    outputs = [kit.value("y", [None] * 4)]
    model = kit.model(nodes, [kit.value("x", (1, 3, 6, 600))], outputs, constants)
    model.graph.initializer.append(_tensor("bad", FLOAT, [4, 3, 2, 500], float_data=[1.0]))
    _assert_refused(model, "bad")


def test_absurd_input_is_not_allocated(kit):
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    shape = (2**40, 2**20)
    model = kit.model(nodes, [kit.value("x", shape)], [kit.value("y", shape)])
    assert kit.operators(canonicalise(model).model) == ["Relu"]


def _chain(kit, *nodes, outputs=("y",)):
    made = [helper.make_node(op, ins, outs) for op, ins, outs in nodes]
    values = [kit.value(name, (2, 3)) for name in outputs]
    return kit.model(made, [kit.value("x", (2, 3))], values)


STRUCTURES = {
    "cycle": [("Add", ["x", "b"], ["a"]), ("Relu", ["a"], ["b"]), ("Neg", ["a"], ["y"])],
    "reads itself": [("Add", ["x", "a"], ["a"]), ("Neg", ["a"], ["y"])],
    "unsorted": [("Relu", ["a"], ["y"]), ("Neg", ["x"], ["a"])],
    "made twice": [("Relu", ["x"], ["y"]), ("Neg", ["x"], ["y"])],
    "overwrites an input": [("Relu", ["x"], ["x"]), ("Neg", ["x"], ["y"])],
    "reads nothing known": [("Add", ["x", "nowhere"], ["y"])],
    "output from nowhere": [("Relu", ["x"], ["z"])],
    "unknown operator": [("Nonsense", ["x"], ["y"])],
    "wrong number of inputs": [("Add", ["x"], ["y"])],
}


@pytest.mark.parametrize("nodes", STRUCTURES.values(), ids=STRUCTURES)
def test_structure(kit, nodes):
    _assert_refused(_chain(kit, *nodes), "invalid model")


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_duplicate_initializer(kit, large):
    shape = (3, 500) if large else (3, 4)
    model = _layer(kit, "MatMul", kit.whole(shape, seed=1))
    model.graph.initializer.append(model.graph.initializer[0])
    _assert_refused(model, "bad")


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_node_that_overwrites_an_initializer(kit, large):
    model = _layer(kit, "MatMul", kit.whole((3, 500) if large else (3, 4), seed=1))
    model.graph.node.insert(0, helper.make_node("Neg", ["x"], ["bad"], name="neg"))
    _assert_refused(model, "bad")


def test_duplicate_input(kit):
    model = _chain(kit, ("Relu", ["x"], ["y"]))
    model.graph.input.append(model.graph.input[0])
    _assert_refused(model, "'x'")


def test_untyped_input(kit):
    model = _chain(kit, ("Relu", ["x"], ["y"]))
    model.graph.input[0].ClearField("type")
    _assert_refused(model, "type")
    model.graph.input[0].type.tensor_type.elem_type = 0
    _assert_refused(model, "invalid model")


def test_contradictory_types_and_shapes(kit):
    model = _chain(kit, ("Relu", ["x"], ["y"]))
    model.graph.output[0].CopyFrom(kit.value("y", (2, 4)))
    _assert_refused(model, "shape")
    model.graph.output[0].CopyFrom(kit.value("y", (2, 3), INT64))
    _assert_refused(model, "type")


def test_a_sound_model_passes(kit):
    model = _chain(kit, ("Relu", ["x"], ["a"]), ("Neg", ["a"], ["y"]))
    check_structure(model)
    check_values(model)
