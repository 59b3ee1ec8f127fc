"""Gates: the gradient in a gate is the sum of z dC/dz, against differences in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.errors import GradientError

node = helper.make_node
TAPS = {"b": 1, "d": 1, "e": 1, "g": 1}


def _losses(small: Any, model: onnx.ModelProto, feeds: Any) -> np.ndarray:
    """Cross-entropy of every sample, by definition and in float64."""
    (logits,) = small.oracle.reference(model)(feeds)
    level = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return np.asarray(-(small.target * (logits - level)).sum(axis=1))


def _gated(model: onnx.ModelProto, shapes: Mapping[str, Any]) -> onnx.ModelProto:
    """The forward network with a gate behind every tap, made by hand."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for tap, shape in shapes.items():
        at = next(i for i, one in enumerate(graph.node) if tap in one.output)
        for reader in graph.node:
            reader.input[:] = [f"{tap}_gated" if n == tap else n for n in reader.input]
        graph.input.append(helper.make_tensor_value_info(f"{tap}_gate", TensorProto.FLOAT, shape))
        graph.node.insert(at + 1, node("Mul", [tap, f"{tap}_gate"], [f"{tap}_gated"]))
    return copy


def _slopes(small: Any, gates: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Differences of each sample's loss in every gate [N, C]."""
    model = _gated(small.model, {tap: values.shape for tap, values in gates.items()})
    values = {**small.feeds, **{f"{tap}_gate": v for tap, v in gates.items()}}
    wide = {name: v.astype(np.float64) for name, v in values.items()}
    result = {}
    for tap, gate in gates.items():
        flat = wide[f"{tap}_gate"].reshape(len(gate), -1)
        slopes = np.zeros(flat.shape)
        for channel in range(flat.shape[1]):
            sides = []
            for way in (1e-6, -1e-6):
                # Samples do not see one another: all of them are moved at once.
                moved = flat.copy()
                moved[:, channel] += way
                given = {**wide, f"{tap}_gate": moved.reshape(gate.shape)}
                sides.append(_losses(small, model, given))
            slopes[:, channel] = (sides[0] - sides[1]) / 2e-6
        result[tap] = slopes
    return result


@pytest.mark.parametrize("ones", [True, False])
def test_products_are_gradients_in_gates(small: Any, *, ones: bool) -> None:
    built = small.built(gated=True)
    assert set(built.gates) == set(built.products) == set(TAPS)
    batch = len(small.target)
    gates = {}
    for seed, tap in enumerate(TAPS):
        channels = small.model.graph.initializer[0].dims[0]
        shape = [batch, channels] if tap == "g" else [batch, channels, 1, 1]
        values = small.oracle.draw("positive", shape, seed=20 + seed)
        gates[tap] = np.ones_like(values) if ones else values
    feeds = {built.gates[tap]: values for tap, values in gates.items()}
    found = small.products(built, {**feeds, built.loss.target: small.target})
    for tap, slopes in _slopes(small, gates).items():
        small.assert_close(found[tap], slopes, tap)


def test_gates_need_not_be_there(small: Any) -> None:
    plain, gated = small.built(), small.built(gated=True)
    assert not plain.gates
    assert len(plain.model.graph.input) == 2
    assert len(gated.model.graph.input) == 2 + len(TAPS)
    one = small.products(plain, {plain.loss.target: small.target})
    other = small.products(gated, {gated.loss.target: small.target})
    for tap in TAPS:
        small.assert_close(one[tap], other[tap], tap)


def test_a_tap_that_is_an_output_as_well(small: Any) -> None:
    # What the loss reads of the output itself belongs to the gradient in the gate, too.
    network = small.changed(["logits", "b"])
    built = network.built(taps={"b": 1}, tensors=["b"])
    made = _shapes(network, ["logits", "b"])
    cotangents = {
        name: small.oracle.draw("smooth", made[output].shape, seed=8 + index)
        for index, (output, name) in enumerate(built.loss.cotangents.items())
    }
    found = network.run(built, cotangents)
    product = (made["b"] * found[built.gradients["b"]]).sum(axis=(2, 3))
    small.assert_close(found[built.products["b"]], product)
    with pytest.raises(GradientError, match="'b' is an output"):
        network.built(taps={"b": 1}, gated=True)


def test_a_gated_tap_that_a_subgraph_reads_is_refused(small: Any) -> None:
    output = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    branch = helper.make_graph([node("Neg", ["b"], ["inner"], name="n")], "branch", [], [output])
    extra = [
        node("ReduceSum", ["logits"], ["total"], name="total", keepdims=0),
        node("Greater", ["total", "total"], ["never"], name="never"),
        node("If", ["never"], ["h"], name="if", then_branch=branch, else_branch=branch),
        node("ReduceMean", ["h"], ["mean"], name="mean", keepdims=0),
        node("Add", ["logits", "mean"], ["y"], name="last"),
    ]
    network = small.changed(["y"], *extra)
    with pytest.raises(GradientError, match=r"If 'if' .it reads channels in a subgraph"):
        network.built(taps={"b": 1})
    with pytest.raises(GradientError, match="'b' is read by a subgraph"):
        network.built(taps={"b": 1}, gated=True)


def _shapes(network: Any, names: list[str]) -> dict[str, np.ndarray]:
    found = network.oracle.run(network.model, network.feeds)
    return dict(zip(names, found, strict=True))


def test_samples_do_not_see_one_another(small: Any) -> None:
    target, feeds = small.target, small.feeds["x"]
    whole = small.built()
    together = small.products(whole, {whole.loss.target: target})
    alone = small.built()
    for at in range(len(target)):
        # The others' inputs and targets do not matter.
        mixed, wrong = feeds[::-1].copy() * 2, target[:, ::-1].copy()
        mixed[at], wrong[at] = feeds[at], target[at]
        found = small.products(alone, {"x": mixed, alone.loss.target: wrong})
        for tap in TAPS:
            small.assert_close(found[tap][at], together[tap][at], tap)


def test_channels_along_the_batch_are_refused(small: Any) -> None:
    with pytest.raises(GradientError, match="tensor 'b' has no batch axis"):
        small.built(taps={"b": 0})
