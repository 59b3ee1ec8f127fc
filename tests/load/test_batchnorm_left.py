"""BatchNormalization that must stay, because folding it would change what is computed."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxcompress.errors import ModelError
from onnxcompress.load.canonical import canonicalise


@pytest.fixture(params=[((2, 3, 6, 5), 4), ((3, 3, 3, 3), 3)], ids=["distinct", "equal"])
def extents(request):
    return request.param


def _constants(kit, x, channels):
    return {
        "w": kit.whole((channels, x[1], 2, 2), seed=1),
        **kit.norm_constants("norm", channels, seed=2),
    }


def _check(kit, model, feeds, operators):
    before = model.SerializeToString()
    result = canonicalise(model).model
    assert kit.operators(result) == operators
    kit.assert_same(model, result, feeds)
    assert model.SerializeToString() == before


def test_convolution_with_a_second_reader(kit, extents):
    x, channels = extents
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        kit.norm("norm", "a", "b"),
        helper.make_node("Sub", ["a", "b"], ["y"], name="sub"),
    ]
    model = kit.model(
        nodes, [kit.value("x", x)], [kit.value("y", [None] * 4)], _constants(kit, x, channels)
    )
    feeds = {"x": kit.whole(x, seed=3)}
    _check(kit, model, feeds, ["Conv", "BatchNormalization", "Sub"])


def test_convolution_whose_output_is_a_graph_output(kit, extents):
    x, channels = extents
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], name="conv"), kit.norm("norm", "a", "y")]
    outputs = [kit.value("y", [None] * 4), kit.value("a", [None] * 4)]
    model = kit.model(nodes, [kit.value("x", x)], outputs, _constants(kit, x, channels))
    _check(kit, model, {"x": kit.whole(x, seed=3)}, ["Conv", "BatchNormalization"])


def test_two_normalisations_read_one_convolution(kit, extents):
    x, channels = extents
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        kit.norm("norm", "a", "b"),
        kit.norm("other", "a", "c"),
        helper.make_node("Sub", ["b", "c"], ["y"], name="sub"),
    ]
    constants = _constants(kit, x, channels) | kit.norm_constants("other", channels, seed=5)
    model = kit.model(nodes, [kit.value("x", x)], [kit.value("y", [None] * 4)], constants)
    operators = ["Conv", "BatchNormalization", "BatchNormalization", "Sub"]
    _check(kit, model, {"x": kit.whole(x, seed=3)}, operators)


def test_before_a_convolution_with_a_second_reader(kit):
    x = (2, 3, 6, 5)
    nodes = [
        kit.norm("norm", "x", "n"),
        helper.make_node("Conv", ["n", "w"], ["a"], name="conv"),
        helper.make_node("ReduceSum", ["n"], ["s"], name="sum", keepdims=0),
        helper.make_node("Add", ["a", "s"], ["y"], name="add"),
    ]
    constants = {"w": kit.whole((4, 3, 2, 2), seed=1), **kit.norm_constants("norm", 3, seed=2)}
    model = kit.model(nodes, [kit.value("x", x)], [kit.value("y", [None] * 4)], constants)
    operators = ["BatchNormalization", "Conv", "ReduceSum", "Add"]
    _check(kit, model, {"x": kit.whole(x, seed=3)}, operators)


def test_before_a_convolution_and_a_graph_output(kit):
    x = (2, 3, 6, 5)
    nodes = [
        kit.norm("norm", "x", "n"),
        helper.make_node("Conv", ["n", "w"], ["y"], name="conv"),
    ]
    constants = {"w": kit.whole((4, 3, 2, 2), seed=1), **kit.norm_constants("norm", 3, seed=2)}
    outputs = [kit.value("y", [None] * 4), kit.value("n", [None] * 4)]
    model = kit.model(nodes, [kit.value("x", x)], outputs, constants)
    _check(kit, model, {"x": kit.whole(x, seed=3)}, ["BatchNormalization", "Conv"])


def test_normalised_weight_is_not_folded_as_an_input(kit):
    """The normalisation feeds the kernel of the convolution, not its input."""
    nodes = [
        kit.norm("norm", "k", "w"),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    inputs = [kit.value("x", (2, 3, 6, 5)), kit.value("k", (4, 3, 2, 1))]
    constants = kit.norm_constants("norm", 3, seed=2)
    model = kit.model(nodes, inputs, [kit.value("y", [None] * 4)], constants)
    feeds = {"x": kit.whole((2, 3, 6, 5), seed=3), "k": kit.whole((4, 3, 2, 1), seed=4)}
    _check(kit, model, feeds, ["BatchNormalization", "Conv"])


@pytest.mark.parametrize("width", [5, 3], ids=["distinct", "equal"])
def test_normalised_c_of_a_gemm_is_not_folded_as_an_input(kit, width):
    nodes = [
        kit.norm("norm", "c", "n"),
        helper.make_node("Gemm", ["x", "w", "n"], ["y"], name="gemm"),
    ]
    inputs = [kit.value("x", (3, 3)), kit.value("c", (3, width))]
    constants = {"w": kit.whole((3, width), seed=1), **kit.norm_constants("norm", width, seed=2)}
    model = kit.model(nodes, inputs, [kit.value("y", (3, width))], constants)
    feeds = {"x": kit.whole((3, 3), seed=3), "c": kit.whole((3, width), seed=4)}
    _check(kit, model, feeds, ["BatchNormalization", "Gemm"])


def test_captured_by_a_subgraph(kit):
    x = (2, 3, 6, 5)
    shape = (2, 4, 5, 4)
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Neg", [source], [name], name=name)],
            name,
            [],
            [kit.value(name, shape)],
        )
        # The one reads what the convolution makes, the other what the normalisation makes of it.
        for name, source in (("then", "a"), ("else", "n"))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        kit.norm("norm", "a", "n"),
        helper.make_node("If", ["which"], ["y"], name="if", **branches),
    ]
    inputs = [kit.value("x", x), kit.value("which", (), 9)]
    model = kit.model(nodes, inputs, [kit.value("y", shape)], _constants(kit, x, 4))
    for which in (True, False):
        feeds = {"x": kit.whole(x, seed=3), "which": np.array(which)}
        _check(kit, model, feeds, ["Conv", "BatchNormalization", "If"])


def test_training_mode(kit):
    x = (2, 3, 6, 5)
    norm = kit.norm("norm", "a", "y", training_mode=1)
    # The standard demands the running statistics as outputs in training mode.
    norm.output.extend(["running_mean", "running_var"])
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], name="conv"), norm]
    constants = _constants(kit, x, 4)
    model = kit.model(nodes, [kit.value("x", x)], [kit.value("y", [None] * 4)], constants)
    # ONNX Runtime's inference build does not run training mode: the graph itself is compared.
    result = canonicalise(model).model
    assert kit.operators(result) == ["Conv", "BatchNormalization"]
    assert list(result.graph.node[1].input) == list(norm.input)
    assert list(result.graph.node[1].output) == list(norm.output)
    assert helper.get_node_attr_value(result.graph.node[1], "training_mode") == 1


def test_training_mode_of_opset_9(kit):
    """Before opset 14 the number of outputs said whether it was training."""
    x = (2, 3, 6, 5)
    norm = kit.norm("norm", "a", "y")
    norm.output.extend(["mean", "var", "saved_mean", "saved_var"])
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], name="conv"), norm]
    constants = _constants(kit, x, 4)
    model = kit.model(nodes, [kit.value("x", x)], [kit.value("y", [None] * 4)], constants, opset=9)
    result = canonicalise(model).model
    assert kit.operators(result) == ["Conv", "BatchNormalization"]
    assert list(result.graph.node[1].output) == list(norm.output)


@pytest.mark.parametrize("part", ["scale", "bias", "mean", "var"])
def test_computed_parameters(kit, extents, part):
    x, channels = extents
    constants = _constants(kit, x, channels)
    del constants[f"norm_{part}"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Abs", ["p"], [f"norm_{part}"], name="abs"),
        kit.norm("norm", "a", "y"),
    ]
    inputs = [kit.value("x", x), kit.value("p", (channels,))]
    model = kit.model(nodes, inputs, [kit.value("y", [None] * 4)], constants)
    # 3.75 + 0.25 is a square, so that the variance is exact as well.
    feeds = {"x": kit.whole(x, seed=3), "p": np.full(channels, 3.75, np.float32)}
    _check(kit, model, feeds, ["Conv", "Abs", "BatchNormalization"])


def test_computed_weight(kit):
    x = (2, 3, 6, 5)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        kit.norm("norm", "a", "y"),
    ]
    constants = kit.norm_constants("norm", 4, seed=2)
    inputs = [kit.value("x", x), kit.value("w", (4, 3, 2, 2))]
    model = kit.model(nodes, inputs, [kit.value("y", [None] * 4)], constants)
    feeds = {"x": kit.whole(x, seed=3), "w": kit.whole((4, 3, 2, 2), seed=4)}
    _check(kit, model, feeds, ["Conv", "BatchNormalization"])


@pytest.mark.parametrize("foreign", ["Conv", "BatchNormalization"])
def test_operators_of_another_domain_are_not_taken_for_onnx_ones(kit, foreign):
    x = (2, 3, 6, 5)
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], name="conv"), kit.norm("norm", "a", "y")]
    for node in nodes:
        if node.op_type == foreign:
            node.domain = "elsewhere"
    constants = _constants(kit, x, 4)
    outputs = [kit.value("y", (2, 4, 5, 4))]
    model = kit.model(nodes, [kit.value("x", x)], outputs, constants, domains={"elsewhere": 1})
    result = canonicalise(model).model
    assert kit.operators(result) == ["Conv", "BatchNormalization"]


@pytest.mark.parametrize("part", ["norm_scale", "norm_mean", "norm_var", "w"])
def test_not_a_number_is_reported_by_the_name_it_has_in_the_model(kit, part):
    x = (2, 3, 6, 5)
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], name="conv"), kit.norm("norm", "a", "y")]
    constants = _constants(kit, x, 4)
    constants[part].flat[1] = np.nan
    model = kit.model(nodes, [kit.value("x", x)], [kit.value("y", [None] * 4)], constants)
    with pytest.raises(ModelError, match=f"'{part}'"):
        canonicalise(model)
