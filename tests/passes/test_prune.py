"""The pass `prune`: options, widths on offer, counted cost, predicted damage, replay.

That removal equals zeroing is tested with the coupling engine; here it is tested once more end to
end, through the pass and its plan entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.graph.cost import Cost, model_cost
from onnxcompress.plan.contract import (
    Candidate,
    NoCandidate,
    Refusal,
    Site,
)
from onnxcompress.rewrite.manager import rewrite
from onnxcompress_passes.prune import KeptChannels, Prune

Array = np.ndarray


CHAIN = """net (float[N, 3, 6, 7] x) => (float[N, 5] y) {
    [one] a = Conv <kernel_shape = [3, 3]> (x, w1, b1)
    [r1] b = Relu (a)
    [two] c = Conv <kernel_shape = [1, 1]> (b, w2)
    [r2] d = Relu (c)
    [pool] e = GlobalAveragePool (d)
    [flat] f = Flatten (e)
    [fc] y = Gemm <transB = 1> (f, w3, b3) }"""


def chain(nets: Any, one: int = 12, two: int = 20, seed: int = 1) -> onnx.ModelProto:
    return nets.build(
        CHAIN, seed, w1=(one, 3, 3, 3), b1=(one,), w2=(two, one, 1, 1), w3=(5, two), b3=(5,)
    )


RESIDUAL = """net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y) {
    [stem] a = Conv <kernel_shape = [1, 1]> (x, w0, b0)
    [r0] b = Relu (a)
    [c1] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w1, b1)
    [bend] d = Sigmoid (c)
    [c2] e = Conv <kernel_shape = [1, 1]> (d, w2)
    [sum] f = Add (b, e)
    [r1] g = Relu (f)
    [last] y = Conv <kernel_shape = [1, 1]> (g, w3) }"""


CONCAT = """net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y) {
    [one] a = Conv <kernel_shape = [1, 1]> (x, w0)
    [two] b = Conv <kernel_shape = [1, 1]> (x, w1)
    [r1] c = Sigmoid (b)
    [join] d = Concat <axis = 1> (a, c)
    [last] y = Conv <kernel_shape = [1, 1]> (d, w2, b2) }"""


DEPTHWISE = """net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y) {
    [one] a = Conv <kernel_shape = [1, 1]> (x, w0, b0)
    [r1] b = Clip (a, low, high)
    [dw] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 12> (b, w1, b1)
    [r2] d = Clip (c, low, high)
    [last] y = Conv <kernel_shape = [1, 1]> (d, w2) }"""


SHARED = """net (float[N, 3, 6, 7] x, float[N, 3, 3, 2] z)
        => (float[N, 5, 6, 7] y, float[N, 5, 3, 2] u) {
    [near] a = Conv <kernel_shape = [1, 1]> (x, w, b)
    [r1] c = Sigmoid (a)
    [near_last] y = Conv <kernel_shape = [1, 1]> (c, v)
    [far] d = Conv <kernel_shape = [1, 1]> (z, w, b)
    [r2] e = Sigmoid (d)
    [far_last] u = Conv <kernel_shape = [1, 1]> (e, v) }"""


DEQUANTISED = """net (float[N, 3, 6, 7] x) => (float[N, 5, 6, 7] y) {
    [dq0] v0 = DequantizeLinear <axis = 0> (q0, s0, z0)
    [one] a = Conv <kernel_shape = [1, 1]> (x, v0, b0)
    [r1] b = Sigmoid (a)
    [dq1] v1 = DequantizeLinear (q1, s1)
    [last] y = Conv <kernel_shape = [1, 1]> (b, v1) }"""


MATMUL = """net (float[N, 6] x) => (float[N, 4] y) {
    [one] a = MatMul (x, w0)
    [plus] b = Add (b0, a)
    [bend] c = Sigmoid (b)
    [two] y = MatMul (c, w1) }"""


def graph(nets: Any, name: str) -> onnx.ModelProto:
    generator = np.random.default_rng(9)

    def whole(*shape: int) -> Array:
        return generator.integers(-127, 128, shape).astype(np.int8)

    match name:
        case "chain":
            return chain(nets)
        case "residual":
            return nets.build(RESIDUAL, w0=(12, 3, 1, 1), b0=(12,), w1=(10, 12, 3, 3), b1=(10,),
                              w2=(12, 10, 1, 1), w3=(5, 12, 1, 1))  # fmt: skip
        case "residual, equal":
            return nets.build(RESIDUAL.replace("[N, 5", "[N, 12"), w0=(12, 3, 1, 1), b0=(12,),
                              w1=(12, 12, 3, 3), b1=(12,), w2=(12, 12, 1, 1),
                              w3=(12, 12, 1, 1))  # fmt: skip
        case "concat":
            return nets.build(CONCAT, w0=(8, 3, 1, 1), w1=(6, 3, 1, 1), w2=(5, 14, 1, 1),
                              b2=(5,))  # fmt: skip
        case "depthwise":
            return nets.build(DEPTHWISE, w0=(12, 3, 1, 1), b0=(12,), w1=(12, 1, 3, 3), b1=(12,),
                              w2=(5, 12, 1, 1), low=np.float32(0), high=np.float32(6))  # fmt: skip
        case "shared":
            return nets.build(SHARED, w=(8, 3, 1, 1), b=(8,), v=(5, 8, 1, 1))
        case "dequantised":
            return nets.build(DEQUANTISED, q0=whole(10, 3, 1, 1), z0=whole(10), b0=(10,),
                              s0=np.linspace(0.001, 0.02, 10).astype(np.float32),
                              q1=whole(5, 10, 1, 1), s1=np.float32(0.01))  # fmt: skip
        case _:
            return nets.build(MATMUL, w0=(6, 9), b0=(9,), w1=(9, 4))


GRAPHS = ["chain", "residual", "residual, equal", "concat", "depthwise", "shared", "dequantised",
          "matmul"]  # fmt: skip


def offers(owner: Prune, facts: Facts) -> dict[str, Sequence[Candidate[KeptChannels]]]:
    """Candidates of every site, through facts that allow only what the pass declares."""
    view, found = facts.restricted(owner.needs), {}
    for site in list(owner.sites(view)):
        if isinstance(site, Site):
            try:
                found[site.node] = owner.candidates(site, view)
            except NoCandidate:
                found[site.node] = []
    return found


def refused(owner: Prune, facts: Facts) -> dict[str, str]:
    found = owner.sites(facts.restricted(owner.needs))
    return {one.node: one.reason for one in found if isinstance(one, Refusal)}


def applied(model: onnx.ModelProto, *candidates: Candidate[KeptChannels]) -> onnx.ModelProto:
    return rewrite(model, candidates, {"prune": Prune()}, strict=True).model


def counted(model: onnx.ModelProto, facts: Facts) -> Cost:
    return model_cost(model, shapes_for(model, facts.sizes))


@pytest.mark.parametrize("name", GRAPHS)
def test_cost_is_what_is_counted_on_the_result(nets: Any, name: str) -> None:
    """Every candidate of every group, alone: what it promises is what the rewrite saves."""
    facts = nets.facts(graph(nets, name))
    found = offers(Prune(round_to=1), facts)
    assert found
    lossy = 0
    for group, candidates in found.items():
        for candidate in candidates:
            result = applied(facts.model, candidate)
            saving = facts.total() - counted(result, facts)
            assert candidate.saving == saving, (group, candidate.setting)
            assert group in candidate.touches
            lossy += saving.macs > 0
    assert lossy >= 6


def masked(model: onnx.ModelProto, facts: Facts, group: str, gone: list[int]) -> onnx.ModelProto:
    """The model with a Mul by zeros and ones right behind every producer of a group."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    for node in nodes:
        copy.graph.node.append(node)
        if node.name in facts.coupling().group(group).producers:
            made = copy.graph.node[-1].output[0]
            shape = facts.shape(made)
            mask = np.ones((1, shape[1], *([1] * (len(shape) - 2))), np.float32)
            mask[:, gone] = 0
            copy.graph.node[-1].output[0] = f"{made}_raw"
            names = [f"{made}_raw", f"{made}_mask"]
            copy.graph.node.append(onnx.helper.make_node("Mul", names, [made]))
            copy.graph.initializer.append(onnx.numpy_helper.from_array(mask, f"{made}_mask"))
    return copy


@pytest.mark.parametrize("name", GRAPHS)
def test_a_candidate_equals_channels_of_zeros(nets: Any, kit: Any, name: str) -> None:
    """Masks behind the producers; channels of a group are those of its producers, in order.

    For float32 sums of at most 108 terms of order one, regrouped, 1e-5 is generous; Sigmoid
    makes what remains 1/2, so that absorbed constants matter.
    """
    model = graph(nets, name)
    facts = nets.facts(model)
    feeds = nets.samples(model, 3)
    for group, candidates in offers(Prune(round_to=1), facts).items():
        candidate = candidates[len(candidates) // 2]
        width = facts.coupling().group(group).width
        gone = sorted(set(range(width)) - set(candidate.setting.kept))
        assert gone
        reference = masked(model, facts, group, gone)
        small = applied(model, candidate)
        onnx.checker.check_model(small, full_check=True)
        for whole, expected, found in zip(
            kit.run(model, feeds), kit.run(reference, feeds), kit.run(small, feeds), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
            assert name == "shared" or np.abs(whole - expected).max() > 1e-3


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("criterion", ["weight", "random"])
def test_ladders(nets: Any, name: str, criterion: str) -> None:
    """All channels first; then ever fewer, each a part of the one before, cheaper and worse."""
    facts = nets.facts(graph(nets, name))
    for group, candidates in offers(Prune(criterion, seed=3), facts).items():
        assert candidates[0].setting.kept == tuple(range(facts.coupling().group(group).width))
        assert candidates[0].damage == 0.0
        assert candidates[0].saving == Cost()
        assert not any(candidate.recommended for candidate in candidates)
        assert len({candidate.before for candidate in candidates}) == 1
        for loose, tight in pairwise(candidates):
            assert set(tight.setting.kept) < set(loose.setting.kept)
            assert tight.damage >= loose.damage
            assert tight.after.macs <= loose.after.macs
            assert tight.after.params <= loose.after.params


def test_planted_costs_do_not_pass(nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgotten biases and MACs show in the comparison above."""
    monkeypatch.setattr("onnxcompress.plan.channels.cost._new_biases", lambda *_: Cost())
    with pytest.raises(AssertionError):
        test_cost_is_what_is_counted_on_the_result(nets, "residual")
    monkeypatch.undo()
    monkeypatch.setattr(
        "onnxcompress.plan.channels.cost._macs", lambda facts, name, _: facts.macs(name)
    )
    with pytest.raises(AssertionError):
        test_cost_is_what_is_counted_on_the_result(nets, "chain")


def widths(candidates: Sequence[Candidate[KeptChannels]]) -> list[int]:
    return [len(candidate.setting.kept) for candidate in candidates]


def test_no_smaller_width(nets: Any) -> None:
    facts = nets.facts(chain(nets, one=4))
    owner = Prune(round_to=4)
    with pytest.raises(NoCandidate, match="no smaller width"):
        owner.candidates(Site("prune", "one"), facts)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.51, 0.9])
@pytest.mark.parametrize("round_to", [0, 4])
def test_a_fraction_of_every_group(nets: Any, fraction: float, round_to: int) -> None:
    """One recommended candidate; widths are rounded up to multiples."""
    facts = nets.facts(chain(nets))
    found = offers(Prune(channels=fraction, round_to=round_to), facts)
    for group, full in (("one", 12), ("two", 20)):
        wanted = round(fraction * full)
        if round_to:
            wanted = -(-wanted // round_to) * round_to
        if wanted >= full:
            assert found[group] == []
            continue
        (candidate,) = found[group]
        assert candidate.recommended
        assert len(candidate.setting.kept) == wanted
        ladder = offers(Prune(round_to=1), facts)[group]
        (same,) = (c for c in ladder if len(c.setting.kept) == wanted)
        assert candidate.setting == same.setting
        assert (candidate.saving, candidate.damage) == (same.saving, same.damage)


def test_a_fraction_of_all_together(nets: Any) -> None:
    """'one' is loud and 'two' is quiet: what goes of 32 channels goes from 'two' first."""
    model = chain(nets)
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            louder = onnx.numpy_helper.to_array(tensor) * np.float32(100)
            tensor.CopyFrom(onnx.numpy_helper.from_array(louder, "w1"))
    facts = nets.facts(model)
    for fraction, one, two in ((0.75, 12, 12), (0.5, 12, 4), (0.25, 7, 1)):
        owner = Prune(channels=fraction, scope="global", normalise="none")
        found = offers(owner, facts)
        kept = {g: len(c[0].setting.kept) if c else None for g, c in found.items()}
        # 24, 16 and 8 of 32 stay, one of 'two' at least.
        assert kept == {"one": one if one < 12 else None, "two": two}


def test_nothing_is_left_over_for_a_fraction_of_nothing(nets: Any) -> None:
    """One channel stays, however small the fraction is."""
    found = offers(Prune(channels=0.001), nets.facts(chain(nets)))
    assert {group: widths(c) for group, c in found.items()} == {"one": [1], "two": [1]}


def test_a_whole_fraction_changes_nothing(nets: Any) -> None:
    facts = nets.facts(chain(nets))
    owner = Prune(channels=1.0)
    for node, width in (("one", 12), ("two", 20)):
        with pytest.raises(NoCandidate, match=f"all {width} channels stay"):
            owner.candidates(Site("prune", node), facts)


def test_the_least_important_channels_go(nets: Any) -> None:
    """By a norm computed here; with `random` it is others."""
    facts = nets.facts(chain(nets))
    weight = facts.view.array64("w1")
    for norm in ("l1", "l2"):
        scores = [float((abs(f) if norm == "l1" else f * f).sum()) for f in weight]
        best = sorted(range(12), key=lambda c: scores[c])[6:]
        (candidate,) = offers(Prune(channels=0.5, norm=norm), facts)["one"]
        assert candidate.setting.kept == tuple(sorted(best))
    kept = {
        offers(Prune("random", channels=0.5, seed=s), facts)["one"][0].setting.kept
        for s in range(5)
    }
    assert len(kept) > 1


@pytest.mark.parametrize("data", [False, True], ids=["weights alone", "with data"])
def test_damage(nets: Any, tap: Callable[..., Array], *, data: bool) -> None:
    """sum over c of |W[:, c]|^2 E[(x_c - v_c)^2] relative to all, added up over consumers.

    The residual's channels end in 'c1' (behind ReLU: v = 0) and 'last'; those of 'c1' in 'c2',
    behind Sigmoid: v = 1/2.
    """
    model = graph(nets, "residual")
    feeds = nets.samples(model, 20)
    facts = nets.facts(model, feeds if data else None)

    def shares(weight: str, tensor: str, left: float) -> list[float]:
        values = facts.view.array64(weight)
        inputs = tap(model, tensor, feeds)
        found = []
        for c in range(values.shape[1]):
            energy = sum(float(w) ** 2 for w in values[:, c].ravel())
            moment = float(((inputs[:, c] - left) ** 2).mean()) if data else 1.0
            found.append(energy * moment)
        return [one / sum(found) for one in found]

    behind = {
        "stem": [shares("w1", "b", 0.0), shares("w3", "g", 0.0)],
        "c1": [shares("w2", "d", 0.5)],
    }
    for group, consumers in behind.items():
        for candidate in offers(Prune(round_to=1, branches=False), facts)[group]:
            width = len(consumers[0])
            gone = set(range(width)) - set(candidate.setting.kept)
            expected = sum(share[c] for share in consumers for c in gone)
            # Moments are sums over float32 activations of other batches.
            assert candidate.damage == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_depthwise_layers_have_no_damage_of_their_own(nets: Any) -> None:
    """Their inputs and outputs go together: only 'last' loses a part of its response."""
    facts = nets.facts(graph(nets, "depthwise"))
    energy = np.square(facts.view.array64("w2")).sum(axis=(0, 2, 3))
    for candidate in offers(Prune(round_to=1), facts)["one"]:
        gone = sorted(set(range(12)) - set(candidate.setting.kept))
        expected = energy[gone].sum() / energy.sum()
        assert candidate.damage == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_refusals(nets: Any) -> None:
    """The last layer makes the output; members go with the first; every layer is heard of."""
    facts = nets.facts(graph(nets, "residual"))
    reasons = refused(Prune(), facts)
    assert set(reasons) == {"c2", "last"}
    assert "'stem'" in reasons["c2"]
    assert "output" in reasons["last"]
    (see,) = (r.see for r in Prune().sites(facts) if isinstance(r, Refusal) and r.node == "c2")
    assert see == "prune"


@pytest.mark.parametrize("excluded", ["stem", "c2", "last", "sum", "r1"])
def test_excluded(nets: Any, excluded: str) -> None:
    """A group with an excluded layer stays; one whose layers it does not touch does not."""
    facts = nets.facts(graph(nets, "residual"), excluded=[excluded])
    reasons = refused(Prune(), facts)
    found = offers(Prune(), facts)
    changes = {
        name
        for candidates in offers(Prune(), nets.facts(graph(nets, "residual"))).values()
        for name in (n for c in candidates[1:] for n in c.touches)
    }
    if excluded in changes:
        assert "excluded by the user" in reasons["stem"]
        assert ("c1" in found) == (excluded != "c2")
    else:
        assert set(found) == {"stem", "c1"}
    for candidates in found.values():
        assert not any(excluded in candidate.touches for candidate in candidates)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(nets: Any, value: float) -> None:
    """The group is refused with the layer's name: it would be scored by it."""
    model = chain(nets)
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[0, 0] = value
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w2"))
    reasons = refused(Prune(), nets.facts(model))
    assert all("'two' contains NaN or infinite" in reasons[name] for name in ("one", "two"))


def test_quantised_layers_are_refused(nets: Any) -> None:
    text = """net (uint8[N, 3, 4, 4] x) => (int32[N, 5, 4, 4] y) {
        [whole] y = ConvInteger (x, w) }"""
    facts = nets.facts(nets.build(text, w=np.ones((5, 3, 1, 1), np.uint8)))
    assert "quantised already" in refused(Prune(), facts)["whole"]
