"""Criteria from gradients, against differences of the loss in every element of every activation.

The engine works in float32: sums of a few hundred products of order one leave about 1e-5 of the
largest score of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import UsageError
from onnxcompress.plan.saliency.criteria import CRITERIA
from onnxcompress.plan.saliency.gradients import gate_gradients, map_size

Array = np.ndarray
CLASSIFIERS = ["chain", "chain, equal extents", "residual", "dense", "swish"]
ROUNDED = 2e-5


def close(found: Array, expected: Any, tolerance: float = ROUNDED) -> None:
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def taylor(slow: Any, layer: str) -> list[float]:
    """|1/M sum_m dC/dz_m z_m| of every sample, then the mean (eq. 8 of 2017)."""
    positions = slow.z(layer).shape[2]
    return [
        sum(abs(h / positions) for h in per_sample) / slow.count
        for per_sample in slow.gate_gradients(layer)
    ]


def taylor_gate(slow: Any, layer: str) -> list[float]:
    """(sum_m dC/dz_m z_m)^2 of every sample, then the mean (2019)."""
    return [sum(h * h for h in line) / slow.count for line in slow.gate_gradients(layer)]


SLOW: Mapping[str, Callable[..., list[float]]] = {"taylor": taylor, "taylor-gate": taylor_gate}


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "own answers"])
@pytest.mark.parametrize("criterion", SLOW)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_first_order(case: Any, ask: Any, name: str, criterion: str, labelled: bool) -> None:
    known = case(name, labelled=labelled)
    found = CRITERIA[criterion].score(ask(known.facts))
    assert set(found) == set(known.gated.taps)
    for layer, scores in found.items():
        close(scores, SLOW[criterion](known.gated, layer))
        assert len(set(scores.tolist())) == len(scores)


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "own answers"])
@pytest.mark.parametrize("criterion", SLOW)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_first_order_of_what_is_left(
    case: Any, ask: Any, name: str, criterion: str, labelled: bool
) -> None:
    """The loss stays that of the network's own answers, before anything was gone."""
    known = case(name, labelled=labelled)
    found = CRITERIA[criterion].score(ask(known.facts, known.removed))
    whole = CRITERIA[criterion].score(ask(known.facts))
    slow = known.left
    for layer, scores in found.items():
        close(scores, SLOW[criterion](slow, layer))
        assert not np.allclose(scores, whole[layer], rtol=1e-2, atol=0)
    ((layer, gone),) = known.removed.items()
    assert (found[layer][list(gone)] == 0.0).all()
    assert (np.delete(found[layer], gone) > 0.0).all()


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_gate_gradients_of_every_sample(case: Any, ask: Any, name: str) -> None:
    """Sample by sample, in the order that the engine drew them in."""
    known = case(name, labelled=True)
    order = np.random.default_rng(0).permutation(known.gated.count)
    for layer, rows in gate_gradients(ask(known.facts)).items():
        close(rows, np.array(known.gated.gate_gradients(layer)).T[order])


def test_the_size_of_a_map(case: Any, ask: Any, nets: Any) -> None:
    """Positions of one sample: one of a hidden layer, tokens where a MatMul makes channels."""
    sizes = {
        name: {layer: map_size(question, layer) for layer in question.layers}
        for name in ("chain", "residual", "dense", "swish")
        for question in [ask(case(name, labelled=False).facts)]
    }
    assert sizes == {
        "chain": {"one": 15, "two": 2},
        "residual": {"stem": 20, "one": 20, "two": 20},
        "dense": {"one": 1, "two": 1},
        "swish": {"one": 6, "two": 3},
    }
    tokens = """net (float[N, 7, 3] x) => (float[N, 7, 2] y) {
        [one] a = MatMul (x, u)
        [r] b = Relu (a)
        [two] y = MatMul (b, v) }"""
    model = nets.build(tokens, u=(3, 5), v=(5, 2))
    for batch in (1, 4):
        assert map_size(ask(nets.facts(model, sizes={"x": (batch, 7, 3)})), "one") == 7


def relative_slopes(slow: Any, layer: str) -> Array:
    """The derivative of the one number y in every gate, over |y|: [channels, samples]."""
    up, down = (np.array(slow.moved_gates(layer, step)) for step in (1e-6, -1e-6))
    return (up - down) / 2e-6 / np.abs(slow.answers[0].ravel())


@pytest.mark.parametrize("gone", [False, True], ids=["whole", "some gone"])
def test_a_number_is_held_to_itself(case: Any, ask: Any, gone: bool) -> None:
    """C = (y' - y)^2 / (2 y^2): with one number per sample, the random sign falls out.

    The second derivative of C in a gate is (dy/dg / y)^2 where y' = y; obd is half of it.
    """
    known = case("number", labelled=False)
    slow = known.left if gone else known.gated
    question = ask(known.facts, known.removed if gone else None)
    scores = {name: CRITERIA[name].score(question) for name in ("taylor", "taylor-gate", "obd")}
    for layer in slow.taps:
        h = relative_slopes(slow, layer)
        close(scores["taylor"][layer], np.abs(h).mean(axis=1) / slow.z(layer).shape[2])
        close(scores["taylor-gate"][layer], np.square(h).mean(axis=1))
        close(scores["obd"][layer], 0.5 * np.square(h).mean(axis=1))


def test_a_picture_is_held_to_itself(case: Any, ask: Any) -> None:
    """h = v'J z over |y| for random signs v: its mean square is |J z|^2 / |y|^2.

    v'a has variance 2 (|a|^4 - sum a^4) in its square; five standard deviations of the mean.
    """
    known = case("picture", labelled=False, count=400)
    slow = known.gated
    y = slow.answers[0].reshape(slow.count, -1)
    weight = known.facts.view.array64("w2")[:, :, 0, 0]
    z = slow.z("one")
    # The last layer is linear: channel c adds w2[:, c] z to the picture.
    parts = np.einsum("oc,cnp->cnop", weight, z).reshape(len(z), slow.count, -1)
    squares = np.square(parts).sum(axis=2)
    energies = np.square(y).sum(axis=1)
    expected = squares / energies
    spread = 2.0 * (np.square(squares) - (parts**4).sum(axis=2)) / np.square(energies)
    sigma = np.sqrt(spread.sum(axis=1)) / slow.count
    question = ask(known.facts)
    found = CRITERIA["taylor-gate"].score(question)["one"]
    assert (np.abs(found - expected.mean(axis=1)) < 5 * sigma).all()
    assert (5 * sigma < 0.5 * expected.mean(axis=1)).all()
    close(CRITERIA["obd"].score(question)["one"], 0.5 * found, 1e-12)


# Two channels of which one never gets past its ReLU: nothing but the other one's second derivative
# is left of v'Hv, whatever the signs.
SINGLE = """net (float[N, 3, 2, 2] x) => (float[N, 3] y) {
    [one] a = Conv <kernel_shape = [1, 1]> (x, w1, b1)
    [r1] b = Relu (a)
    [flat] c = Flatten (b)
    [last] y = Gemm <transB = 1> (c, w2, b2) }"""


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "own answers"])
def test_the_second_derivative_in_one_gate(
    nets: Any, ask: Any, slow_net: Any, labelled: bool
) -> None:
    """Up to the fourth derivative: the engine takes differences over two steps of 0.2.

    0.2^2 / 6 of it, where it is at most a few times the second one.
    """
    bias = np.float32([0.4, -100.0])
    model = nets.build(SINGLE, seed=3, w1=(2, 3, 1, 1), b1=bias, w2=(3, 8), b2=(3,))
    feeds = nets.samples(model, 9)
    labels = [0, 1, 2, 2, 1, 0, 0, 1, 2] if labelled else None
    slow = slow_net(model, feeds, {"one": ("b", 1)}, {"one": "a"}, labels)
    facts = nets.facts(model, feeds if labels is None else {**feeds, "y": np.array(labels)})
    _, hessians = slow.hessians()
    expected = 0.5 * np.diagonal(hessians, axis1=1, axis2=2).mean(axis=0)
    found = CRITERIA["obd"].score(ask(facts))["one"]
    assert found[1] == 0.0
    assert expected[0] > 0.01
    close(found, expected, 2e-2)


@pytest.mark.parametrize("gone", [False, True], ids=["whole", "some gone"])
@pytest.mark.parametrize("name", ["dense", "swish"])
def test_second_order(case: Any, ask: Any, name: str, gone: bool) -> None:
    """Half |diagonal| of the mean Hessian, up to what random signs leave of the rest of it.

    v_i (H v)_i has variance sum over j != i of H_ij^2, for each of four draws per sample. The
    networks are smooth behind their gates: a kink has no second derivative to compare with.
    """
    known = case(name, labelled=True, count=300)
    slow = known.left if gone else known.gated
    gates, hessians = slow.hessians()
    diagonal = np.diagonal(hessians, axis1=1, axis2=2)
    spread = np.square(hessians).sum(axis=2) - np.square(diagonal)
    sigma = np.sqrt(spread.sum(axis=0) / 4) / slow.count
    expected = diagonal.mean(axis=0)
    found = CRITERIA["obd"].score(ask(known.facts, known.removed if gone else None))
    line = np.array([found[layer][channel] for layer, channel in gates])
    # The engine's step is 0.2: 0.2^2 / 6 of fourth derivatives, taken to be like the second ones.
    allowed = 0.5 * (5 * sigma + 2e-2 * np.abs(expected).max())
    assert (np.abs(line - 0.5 * np.abs(expected)) <= allowed).all()
    assert np.median(allowed) < 0.5 * np.abs(expected).max()
    for layer, channels in known.removed.items() if gone else ():
        assert (found[layer][list(channels)] == 0.0).all()


@pytest.mark.parametrize("criterion", ["taylor", "taylor-gate", "obd"])
def test_data_is_needed(nets: Any, ask: Any, criterion: str) -> None:
    model = nets.build(SINGLE, w1=(2, 3, 1, 1), b1=(2,), w2=(3, 8), b2=(3,))
    with pytest.raises(UsageError, match="--data"):
        CRITERIA[criterion].score(ask(nets.facts(model)))
