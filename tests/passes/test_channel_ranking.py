"""The order in which channels go, against a simulation that knows nothing but the definitions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress.plan.saliency.question as question_module
from onnxcompress.analyse.coupling.result import Coupling
from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import PassError
from onnxcompress_passes.channel_ranking import Ranking, order_within, removal_sequence

Array = np.ndarray
One = tuple[str, int]
Scores = dict[str, list[float]]


def ranking(**how: Any) -> Ranking:
    options = {
        "criterion": "weight",
        "norm": "l2",
        "normalise": "l2",
        "combine": "mean",
        "scope": "layer",
        "per_step": 0,
        "seed": 0,
    }
    return Ranking(**{**options, **how})


CHAIN = """net (float[N, 3, 4, 5] x) => (float[N, 2, 4, 5] y) {
    [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
    [r1] b = Relu (a)
    [two] c = Conv <kernel_shape = [1, 1]> (b, w2)
    [r2] d = Relu (c)
    [three] e = Conv <kernel_shape = [1, 1]> (d, w3)
    [r3] f = Relu (e)
    [last] y = Conv <kernel_shape = [1, 1]> (f, w4) }"""
WIDTHS = {"one": 5, "two": 4, "three": 6}


@pytest.fixture(scope="module", params=["distinct", "equal"])
def chain(request: Any, nets: Any) -> onnx.ModelProto:
    """Three layers whose channels go one by one; the last one's stay."""
    widths = WIDTHS if request.param == "distinct" else dict.fromkeys(WIDTHS, 4)
    one, two, three = widths.values()
    return nets.build(
        CHAIN,
        seed=3,
        w1=(one, 3, 1, 1),
        w2=(two, one, 1, 1),
        w3=(three, two, 1, 1),
        w4=(2, three, 1, 1),
    )


def forced(model: onnx.ModelProto, removed: dict[str, list[int]]) -> onnx.ModelProto:
    """The chain with rows of zeros, and with columns of zeros behind them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    for number, layer in enumerate(("one", "two", "three"), start=1):
        for name, axis in ((f"w{number}", 0), (f"w{number + 1}", 1)):
            weight = onnx.numpy_helper.to_array(constants[name]).copy()
            weight[(slice(None),) * axis + (removed.get(layer, []),)] = 0
            constants[name].CopyFrom(onnx.numpy_helper.from_array(weight, name))
    return copy


def chain_scores(
    model: onnx.ModelProto,
    removed: dict[str, list[int]],
    mean: Callable[[onnx.ModelProto, str], Array] | None,
) -> Scores:
    """Relative norms of filters of the masked chain, or means of its activations if asked."""
    masked = forced(model, removed)
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in masked.graph.initializer}
    found: Scores = {}
    for number, layer in enumerate(("one", "two", "three"), start=1):
        if mean is None:
            filters = constants[f"w{number}"].astype(np.float64)
            raw = [float(np.sqrt(np.square(one).sum())) for one in filters]
        else:
            raw = [float(v) for v in mean(masked, "bdf"[number - 1])]
        norm = sum(v * v for v in raw) ** 0.5 or 1.0
        found[layer] = [v / norm for v in raw]
    return found


def simulated(
    model: onnx.ModelProto, how: Ranking, mean: Callable[[onnx.ModelProto, str], Array] | None
) -> list[One]:
    """At every step the worst `per_step` of each layer, or of all; one of each layer stays."""
    removed: dict[str, list[int]] = {layer: [] for layer in WIDTHS}
    sequence: list[One] = []
    while True:
        scores = chain_scores(model, removed, mean)
        left = [
            (score, list(WIDTHS).index(layer), channel, layer)
            for layer, line in scores.items()
            for channel, score in enumerate(line)
            if channel not in removed[layer]
        ]
        before = len(sequence)
        taken = dict.fromkeys((*WIDTHS, ""), 0)
        for _, _, channel, layer in (
            sorted(left)
            if how.scope == "global"
            else sorted(left, key=lambda one: (one[1], one[0], one[2]))
        ):
            batch = layer if how.scope == "layer" else ""
            if taken[batch] < how.per_step and len(scores[layer]) - len(removed[layer]) > 1:
                removed[layer].append(channel)
                sequence.append((layer, channel))
                taken[batch] += 1
        if len(sequence) == before:
            return sequence


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("per_step", [1, 2, 3, 50])
@pytest.mark.parametrize("criterion", ["weight", "activation-mean"])
def test_iterative(
    nets: Any,
    tap: Callable[..., Array],
    chain: onnx.ModelProto,
    criterion: str,
    per_step: int,
    scope: str,
) -> None:
    feeds = nets.samples(chain, 12)
    facts = nets.facts(chain, feeds)
    how = ranking(criterion=criterion, per_step=per_step, scope=scope)
    found = removal_sequence(facts, facts.coupling(), how)

    def mean(masked: onnx.ModelProto, tensor: str) -> Array:
        return tap(masked, tensor, feeds).mean(axis=(0, 2, 3))

    expected = simulated(chain, how, mean if criterion != "weight" else None)
    assert list(found) == expected
    widths = {group.name: group.width for group in facts.coupling().groups}
    assert {n: len(order_within(found, n)) for n in widths} == {n: w - 1 for n, w in widths.items()}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_one_shot(nets: Any, chain: onnx.ModelProto, scope: str) -> None:
    """Scored once and sorted, without the best of every layer."""
    facts = nets.facts(chain)
    found = removal_sequence(facts, facts.coupling(), ranking(scope=scope))
    scores = chain_scores(chain, {}, None)
    everything = sorted((s, layer, c) for layer, line in scores.items() for c, s in enumerate(line))
    best = {layer: line.index(max(line)) for layer, line in scores.items()}
    assert list(found) == [(layer, c) for _, layer, c in everything if c != best[layer]]
    for layer, line in scores.items():
        order = order_within(found, layer)
        assert all(line[a] <= line[b] for a, b in pairwise(order))
        assert set(order) == set(range(len(line))) - {best[layer]}


def test_iterative_is_another_order(nets: Any, chain: onnx.ModelProto) -> None:
    facts = nets.facts(chain)
    once = removal_sequence(facts, facts.coupling(), ranking(scope="global"))
    often = removal_sequence(facts, facts.coupling(), ranking(scope="global", per_step=1))
    assert set(once) != set(often) or once != often


def test_later_scores_come_from_the_masked_network(
    nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channel 0 of 'two' lives off channel 0 of 'one', which goes first.

    'one' makes channels of 1, 2, 4; 'two' makes 6, 5, 4 from all of them, but 0, 5, 4 and then
    0, 1, 4 from what is left.
    """
    text = """net (float[N, 1, 2, 2] x) => (float[N, 1, 2, 2] y) {
        [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
        [two] b = Conv <kernel_shape = [1, 1]> (a, w2)
        [last] y = Conv <kernel_shape = [1, 1]> (b, w3) }"""
    one = np.float32([1, 2, 4]).reshape(3, 1, 1, 1)
    two = np.float32([[6, 0, 0], [0, 2, 0.25], [0, 0, 1]]).reshape(3, 3, 1, 1)
    model = nets.build(text, w1=one, w2=two, w3=np.ones((1, 3, 1, 1), np.float32))
    feeds = {"x": np.ones((4, 1, 2, 2), np.float32)}
    how = ranking(criterion="activation-mean", normalise="none", per_step=1)

    def sequence() -> tuple[One, ...]:
        facts = nets.facts(model, feeds)
        return removal_sequence(facts, facts.coupling(), how)

    # In the first step 'two' loses its least, channel 2; then channel 0 has become nothing.
    expected = (("one", 0), ("two", 2), ("one", 1), ("two", 0))
    assert sequence() == expected
    monkeypatch.setattr(question_module, "zero_channels", lambda model, *_: model)
    assert sequence() == (("one", 0), ("two", 2), ("one", 1), ("two", 1))


def test_ties_are_broken_by_position(nets: Any) -> None:
    equal = np.ones((4, 3, 1, 1), np.float32)
    model = nets.build(
        CHAIN,
        w1=equal,
        w2=np.ones((4, 4, 1, 1), np.float32),
        w3=np.ones((4, 4, 1, 1), np.float32),
        w4=np.ones((2, 4, 1, 1), np.float32),
    )
    facts = nets.facts(model)
    coupling = facts.coupling()
    ordered = [(layer, c) for layer in WIDTHS for c in range(4)]
    for how in (ranking(), ranking(scope="global")):
        found = removal_sequence(facts, coupling, how)
        # The first of the best stays.
        assert list(found) == [one for one in ordered if one[1] != 0]
    for scope in ("layer", "global"):
        found = removal_sequence(facts, coupling, ranking(scope=scope, per_step=50))
        assert list(found) == [one for one in ordered if one[1] != 3]


PARTS = """net (float[N, 3, 4, 5] x) => (float[N, 2, 4, 5] y) {
    [one] a = Conv <kernel_shape = [1, 1]> (x, w1)
    [r1] b = Relu (a)
    [two] c = Conv <kernel_shape = [1, 1]> (x, w2)
    [r2] d = Relu (c)
    [join] e = Concat <axis = 1> (b, d)
    [parts] p, q = Split <axis = 1> (e, sizes)
    [left] l = Conv <kernel_shape = [1, 1]> (p, w3)
    [right] r = Conv <kernel_shape = [1, 1]> (q, w4)
    [sum] y = Add (l, r) }"""


@pytest.fixture(scope="module")
def parts(nets: Any) -> Facts:
    """3 + 5 channels joined and split 2 + 6: channels 0, 1 of 'one' alone make the first part."""
    return nets.facts(
        nets.build(
            PARTS,
            w1=(3, 3, 1, 1),
            w2=(5, 3, 1, 1),
            w3=(2, 2, 1, 1),
            w4=(2, 6, 1, 1),
            sizes=np.array([2, 6]),
        )
    )


def breaks(coupling: Coupling, removed: set[One]) -> bool:
    by_group = {g.name: [c for n, c in removed if n == g.name] for g in coupling.groups}
    try:
        coupling.classes(by_group)
    except PassError:
        return True
    return False


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("per_step", [0, 1, 3])
def test_something_of_everything_stays(parts: Facts, per_step: int, scope: str, seed: int) -> None:
    """What is left cannot lose anything more, whichever channels are the least important."""
    coupling = parts.coupling()
    assert {g.name: g.width for g in coupling.groups} == {"one": 3, "two": 5}
    how = ranking(criterion="random", seed=seed, scope=scope, per_step=per_step)
    found = removal_sequence(parts, coupling, how)
    assert len(found) == len(set(found))
    assert not breaks(coupling, set(found))
    assert removal_sequence(parts, coupling, how) == found
    everything = {(g.name, c) for g in coupling.groups for c in range(g.width)}
    kept = everything - set(found)
    assert {c for n, c in kept if n == "one"} & {0, 1}
    assert ("one", 2) in kept or any(n == "two" for n, _ in kept)


def test_joint_covers_hold(nets: Any) -> None:
    """The second part holds channel 2 of 'one' and all of 'two', which have no cover of their own.

    Where all of these are the least important, one of them stays all the same.
    """
    small = np.full((5, 3, 1, 1), 1e-3, np.float32)
    first = np.ones((3, 3, 1, 1), np.float32)
    first[2] = 1e-3
    model = nets.build(
        PARTS, w1=first, w2=small, w3=(2, 2, 1, 1), w4=(2, 6, 1, 1), sizes=np.array([2, 6])
    )
    facts = nets.facts(model)
    for per_step in (0, 1, 2, 100):
        how = ranking(normalise="none", scope="global", per_step=per_step)
        found = removal_sequence(facts, facts.coupling(), how)
        assert not breaks(facts.coupling(), set(found))
        assert breaks(facts.coupling(), {("one", 2), *(("two", c) for c in range(5))})


@pytest.mark.parametrize("per_step", [0, 2])
def test_every_prefix_can_be_removed(parts: Facts, per_step: int) -> None:
    how = ranking(criterion="weight", scope="global", per_step=per_step)
    found = removal_sequence(parts, parts.coupling(), how)
    for length in range(len(found) + 1):
        assert not breaks(parts.coupling(), set(found[:length]))
