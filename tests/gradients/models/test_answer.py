"""What a network is held to: classes however they are written, or its own outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.errors import ModelError
from onnxcompress.gradients.answer import find_answer
from onnxcompress.gradients.known import know

node = helper.make_node
TAPS = {"b": 1, "d": 1, "e": 1, "g": 1}


def _expected(small: Any) -> dict[str, np.ndarray]:
    built = small.built()
    return small.products(built, {built.loss.target: small.target})


ENDS: dict[str, list[Any]] = {
    "logits": [],
    "softmax": [node("Softmax", ["logits"], ["y"], name="end", axis=1)],
    "softmax from behind": [node("Softmax", ["logits"], ["y"], name="end")],
    "log-softmax": [node("LogSoftmax", ["logits"], ["y"], name="end", axis=-1)],
    "softmax, then ones": [
        node("Softmax", ["logits"], ["p"], name="end", axis=1),
        node("Unsqueeze", ["p", "axes"], ["y"], name="wide"),
    ],
    "ones, then softmax": [
        node("Unsqueeze", ["logits", "axes"], ["p"], name="wide"),
        node("Softmax", ["p"], ["y"], name="end", axis=1),
    ],
    "softmax along the last axis, flattened": [
        node("Unsqueeze", ["logits", "front"], ["p"], name="wide"),
        node("Softmax", ["p"], ["q"], name="end", axis=3),
        node("Flatten", ["q"], ["y"], name="flat"),
    ],
    "identity": [
        node("Softmax", ["logits"], ["p"], name="end", axis=1),
        node("Identity", ["p"], ["y"], name="same"),
    ],
}
AXES = {"axes": [2, 3], "front": [1, 2]}


def _ended(small: Any, end: str) -> Any:
    network = small.changed(["y"] if ENDS[end] else ["logits"], *ENDS[end])
    for name, axes in AXES.items():
        network.model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.array(axes, np.int64), name)
        )
    del network.model.graph.output[:]
    return _declared(network, "y" if ENDS[end] else "logits")


def _declared(network: Any, name: str) -> Any:
    """With an output whose shape is inferred at any batch size."""
    network.model.graph.output.append(onnx.ValueInfoProto(name=name))
    return network.changed([name])


@pytest.mark.parametrize("end", ENDS)
def test_classes_however_they_are_written(small: Any, end: str) -> None:
    network = _ended(small, end)
    built = network.built()
    assert not built.loss.cotangents
    found = network.products(built, {built.loss.target: small.target})
    for tap, values in _expected(small).items():
        small.assert_close(found[tap], values, tap)


@pytest.mark.parametrize("end", ["softmax", "softmax, then ones", "log-softmax"])
def test_the_loss_is_that_of_the_logits(small: Any, end: str) -> None:
    network = _ended(small, end)
    known = know(network.model, small.sizes)
    answer = find_answer(known)
    assert (answer.logits, answer.classes) == ("logits", small.classes)
    assert not answer.probabilities


# Scores that are normalised by hand, so that no Softmax is found.
BY_HAND = [
    node("Exp", ["logits"], ["powers"], name="exp"),
    node("ReduceSum", ["powers", "one"], ["sum"], name="total", keepdims=1),
    node("Div", ["powers", "sum"], ["y"], name="div"),
]


def test_probabilities_that_no_softmax_made(small: Any) -> None:
    one = onnx.numpy_helper.from_array(np.array([1], np.int64), "one")
    small.model.graph.initializer.append(one)
    network = small.changed(["y"], *BY_HAND)
    built = network.built(probabilities=True)
    found = network.products(built, {built.loss.target: small.target})
    for tap, values in _expected(small).items():
        small.assert_close(found[tap], values, tap)
    # Taken for logits, they have another gradient.
    built = network.built()
    other = network.products(built, {built.loss.target: small.target})
    assert np.abs(other["b"] - found["b"]).max() > 0.1 * np.abs(found["b"]).max()


def test_probabilities_that_need_not_add_up_to_one(small: Any) -> None:
    # Sigmoids: the gradient of -sum t log(p / sum p), by hand.
    network = small.changed(["y"], node("Sigmoid", ["logits"], ["y"], name="end"))
    built = network.built(taps={}, tensors=["logits"], probabilities=True)
    found = network.run(built, {built.loss.target: small.target})
    (p,) = small.oracle.run(network.model, small.feeds)
    p = p.astype(np.float64)
    slope = (p / p.sum(axis=1, keepdims=True) - small.target) / p * p * (1 - p)
    small.assert_close(found[built.gradients["logits"]], slope)


def test_a_probability_of_zero_has_a_finite_gradient(small: Any) -> None:
    extra = [
        node("Relu", ["logits"], ["positive"], name="cut"),
        node("Add", ["positive", "positive"], ["y"], name="twice"),
    ]
    network = small.changed(["y"], *extra)
    built = network.built(taps={"b": 1}, probabilities=True)
    found = network.products(built, {built.loss.target: small.target})["b"]
    assert np.isfinite(found).all()


def test_probabilities_are_not_said_twice(small: Any) -> None:
    # In front of a Softmax there are logits whatever is said of the output.
    network = _ended(small, "softmax")
    built = network.built(probabilities=True)
    found = network.products(built, {built.loss.target: small.target})
    for tap, values in _expected(small).items():
        small.assert_close(found[tap], values, tap)


def test_several_outputs_are_held_to_themselves(small: Any) -> None:
    network = small.changed(["logits", "d"])
    built = network.built(taps={"b": 1, "c": 1}, tensors=["e"])
    assert list(built.loss.cotangents) == ["logits", "d"]
    assert built.loss.target == ""
    made = small.oracle.run(network.model, small.feeds)
    v = [small.oracle.draw("smooth", y.shape, seed=5 + i) for i, y in enumerate(made)]
    names = built.loss.cotangents.values()
    whole = network.run(built, dict(zip(names, v, strict=True)))
    # Linear in the cotangents: the parts of both outputs add up.
    parts = []
    for only in range(2):
        given = [values * np.float32(i == only) for i, values in enumerate(v)]
        parts.append(network.run(built, dict(zip(names, given, strict=True))))
    for name in built.products.values():
        assert np.abs(parts[0][name]).max() > 0
        small.assert_close(whole[name], parts[0][name] + parts[1][name], name)
    # d does not depend on e, so that e's gradient is what the logits alone give.
    e = built.gradients["e"]
    assert not parts[1][e].any()
    weight = onnx.numpy_helper.to_array(small.model.graph.initializer[3]).astype(np.float64)
    height, width = small.feeds["x"].shape[2:]
    slope = v[0] @ weight / (height * width)
    expected = np.broadcast_to(slope[:, :, np.newaxis, np.newaxis], whole[e].shape)
    small.assert_close(whole[e], expected)


def test_an_image_is_held_to_itself(small: Any) -> None:
    network = small.changed(["e"], drop=3)
    built = network.built(taps={}, tensors=["e", "d"])
    (name,) = built.loss.cotangents.values()
    v = small.oracle.draw("smooth", small.oracle.run(network.model, small.feeds)[0].shape)
    found = network.run(built, {name: v})
    for tensor in ("e", "d"):
        np.testing.assert_array_equal(found[built.gradients[tensor]], v)


def test_outputs_that_are_no_real_numbers_take_no_part(small: Any) -> None:
    extra = node("ArgMax", ["logits"], ["best"], name="best", axis=1)
    network = small.changed(["best", "logits"], extra)
    built = network.built()
    found = network.products(built, {built.loss.target: small.target})
    for tap, values in _expected(small).items():
        small.assert_close(found[tap], values, tap)


def test_no_real_numbers_at_all_are_refused(small: Any) -> None:
    extra = node("ArgMax", ["logits"], ["best"], name="best", axis=1)
    with pytest.raises(ModelError, match="no output of the network is a floating-point"):
        small.changed(["best"], extra).built()


def test_answers_of_half_precision(small: Any) -> None:
    extra = [
        node("Cast", ["logits"], ["half"], name="half", to=TensorProto.FLOAT16),
        node("Softmax", ["half"], ["y"], name="end", axis=1),
    ]
    network = small.changed(["y"], *extra)
    built = network.built(taps={"b": 1})
    found = network.products(built, {built.loss.target: small.target})["b"]
    expected = _expected(small)["b"]
    # Logits near 4 are rounded to 2^-9, their gradients to 2^-11 of themselves.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2.0**-6 * np.abs(expected).max())
