"""What is built: names, what stays, what is left out, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcompress.errors import GradientError
from onnxcompress.gradients.build import gradient_model
from onnxcompress.gradients.emitter import Emitter

node = helper.make_node
TAPS = {"b": 1, "d": 1, "e": 1, "g": 1}


def test_gradients_as_they_are(small: Any) -> None:
    built = small.built(taps={"b": 1}, tensors=["b", "logits", "x"])
    found = small.run(built, {built.loss.target: small.target})
    logits, b = small.oracle.run(small.changed(["logits", "b"]).model, small.feeds)
    powers = np.exp(logits.astype(np.float64))
    chances = powers / powers.sum(axis=1, keepdims=True)
    small.assert_close(found[built.gradients["logits"]], chances - small.target, "logits")
    product = (b * found[built.gradients["b"]]).sum(axis=(2, 3))
    small.assert_close(found[built.products["b"]], product, "b")
    assert found[built.gradients["x"]].shape == small.feeds["x"].shape


@pytest.mark.parametrize("gated", [False, True])
def test_the_model_is_not_changed(small: Any, *, gated: bool) -> None:
    before = small.model.SerializeToString()
    small.built(gated=gated, tensors=["c"])
    assert small.model.SerializeToString() == before


def test_building_twice_gives_the_same(small: Any) -> None:
    first, second = (small.built(gated=True).model.SerializeToString() for _ in range(2))
    assert first == second


def test_names_that_are_taken(small: Any) -> None:
    # Names that the backward graph would hand out have an owner in the network already.
    plain = small.built(gated=True)
    expected = small.products(plain, {plain.loss.target: small.target})
    handed = [name for one in plain.model.graph.node for name in one.output if "_" in name]
    gates, nodes = list(plain.gates.values()), [n.name for n in plain.model.graph.node]
    tensors = {"a": handed[0], "b": gates[0], "c": handed[1], "d": "constant_1", "w1": gates[1]}
    tensors |= {"f": plain.loss.target, "x": handed[3]}
    graph = small.model.graph
    for one, name in zip(graph.node, reversed(nodes), strict=False):
        one.name = name
        one.input[:] = [tensors.get(n, n) for n in one.input]
        one.output[:] = [tensors.get(n, n) for n in one.output]
    for value in (*graph.initializer, *graph.input):
        value.name = tensors.get(value.name, value.name)
    taps = {tensors.get(tap, tap): axis for tap, axis in TAPS.items()}
    sizes = {tensors["x"]: small.feeds["x"].shape}
    built = gradient_model(small.model, sizes, taps=taps, gated=True)
    feeds = {tensors["x"]: small.feeds["x"], built.loss.target: small.target}
    found = small.products(built, feeds)
    for tap in TAPS:
        np.testing.assert_array_equal(found[tensors.get(tap, tap)], expected[tap])


def test_emitted_names_are_new(small: Any) -> None:
    graph = small.model.graph
    graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "gradient_1"))
    graph.input.append(helper.make_tensor_value_info("gradient_2", 1, [2]))
    graph.node[0].name, graph.node[1].output[0] = "gradient_3", "gradient_4"
    emit = Emitter(graph)
    names = [emit.name() for _ in range(3)]
    assert len({*names, *(f"gradient_{n}" for n in range(1, 5))}) == 7


def test_equal_constants_of_different_types_are_different(small: Any) -> None:
    emit = Emitter(small.model.graph)
    kinds = [np.float32, np.float16, np.int32, np.float64]
    names = {emit.constant(np.zeros((2, 2), kind)) for kind in kinds}
    names |= {emit.constant(np.zeros(shape, np.float32)) for shape in ((4,), (1, 4), (4, 1))}
    assert len(names) == len(kinds) + 3
    assert emit.constant(np.zeros((2, 2), np.float32)) in names


def test_nothing_is_left_that_nobody_needs(small: Any) -> None:
    graph = small.built(taps={"g": 1}).model.graph
    read = {name for one in graph.node for name in one.input}
    read |= {output.name for output in graph.output}
    assert all(read.intersection(one.output) for one in graph.node)
    assert read.issuperset(tensor.name for tensor in graph.initializer)
    # Behind the pool there is no convolution on the way back.
    assert sum(one.op_type == "Conv" for one in graph.node) == 2


def test_what_the_loss_does_not_depend_on_has_no_output(small: Any) -> None:
    network = small.changed(["logits"], node("Neg", ["b"], ["aside"], name="aside"))
    built = network.built(taps={"b": 1, "aside": 1}, tensors=["aside", "c"], gated=True)
    assert set(built.products) == {"b"}
    assert set(built.gradients) == {"c"}
    network.products(built, {built.loss.target: small.target})


def test_missing_operators_are_named(small: Any) -> None:
    small.model.graph.node[3].op_type = "Sinh"
    with pytest.raises(GradientError, match="no gradient is known of Sinh 'tanh'"):
        small.built()
    # In front of all taps it does not matter.
    assert set(small.built(taps={"e": 1, "g": 1}).products) == {"e", "g"}


def test_older_opsets_are_raised(small: Any) -> None:
    old = onnx.ModelProto()
    old.CopyFrom(small.model)
    old.opset_import[0].version = 13
    built = gradient_model(old, small.sizes, taps=TAPS)
    newer = small.built()
    assert built.model.opset_import[0].version == 18
    found = small.products(built, {built.loss.target: small.target})
    for tap, values in small.products(newer, {newer.loss.target: small.target}).items():
        small.assert_close(found[tap], values, tap)


def test_an_input_without_axes_beside_the_samples(small: Any, kit: Any) -> None:
    # The batch size is that of what has a batch axis, in whatever order inputs are listed.
    network = small.changed(["y"], node("Mul", ["logits", "rate"], ["y"], name="scaled"))
    network.model.graph.output[0].CopyFrom(kit.value("y", small.target.shape))
    inputs = [kit.value("rate", []), *network.model.graph.input]
    del network.model.graph.input[:]
    network.model.graph.input.extend(inputs)
    sizes = {"rate": (), **small.sizes}
    built = gradient_model(network.model, sizes, taps={"b": 1})
    feeds = {"rate": np.array(1.0, np.float32), built.loss.target: small.target}
    found = network.products(built, feeds)["b"]
    plain = small.built(taps={"b": 1})
    expected = small.products(plain, {plain.loss.target: small.target})["b"]
    small.assert_close(found, expected)
