"""Width zero: which branches are offered, what they cost and damage, and what is left of them.

The oracle replaces the Add's operand by the mean, with nothing but onnx; weights are Gaussian, so
results agree to float32 rounding: 1e-5 of the largest output.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.graph.cost import model_cost
from onnxcompress.plan.contract import Candidate, Site, candidate_from_dict
from onnxcompress.plan.search import by_rule, conflicts
from onnxcompress.rewrite.manager import rewrite
from onnxcompress_passes.prune import Prune
from onnxcompress_passes.prune_branches import branch_cost, branches
from onnxcompress_passes.prune_setting import KeptChannels

Array = np.ndarray

HEAD = """net (float[N, 3, 6, 7] x) => (float[N, 5, H, W] y) {
    [stem] t = Conv <kernel_shape = [1, 1]> (x, w0, b0) [front] u = Relu (t) """
TAIL = " [last] y = Conv <kernel_shape = [1, 1]> ({end}, wl) }}"
BASIC = """[{0}c1] {0}a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({1}, {0}w1, {0}b1)
    [{0}r] {0}b = Relu ({0}a) [{0}c2] {0}c = Conv <kernel_shape = [1, 1]> ({0}b, {0}w2)
    [{0}] {0}s = Add ({0}c, {1}) [{0}end] {0}o = Relu ({0}s) """
LINEAR = BASIC.split(" [{0}end]")[0] + " "
PROJECTED = """[{0}c1] {0}a = Conv <kernel_shape = [3, 3], strides = [2, 2]> ({1}, {0}w1, {0}b1)
    [{0}r] {0}b = Relu ({0}a) [{0}c2] {0}c = Conv <kernel_shape = [1, 1]> ({0}b, {0}w2)
    [{0}p] {0}q = Conv <kernel_shape = [3, 3], strides = [2, 2]> ({1}, {0}w3, {0}b3)
    [{0}] {0}s = Add ({0}q, {0}c) [{0}end] {0}o = Relu ({0}s) """
SQUEEZED = """[{0}c1] {0}a = Conv <kernel_shape = [1, 1]> ({1}, {0}w2)
    [{0}g] {0}b = GlobalAveragePool ({0}a) [{0}f] {0}d = Conv <kernel_shape = [1, 1]> ({0}b, {0}w2)
    [{0}h] {0}e = Sigmoid ({0}d) [{0}m] {0}c = Mul ({0}a, {0}e)
    [{0}] {0}s = Add ({0}c, {1}) [{0}end] {0}o = Relu ({0}s) """
BOTTLENECK = """[{0}c1] {0}a = Conv <kernel_shape = [1, 1]> ({1}, {0}up)
    [{0}r] {0}b = Relu ({0}a)
    [{0}c2] {0}d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 12> ({0}b, {0}dw)
    [{0}v] {0}e = Relu ({0}d) [{0}c3] {0}c = Conv <kernel_shape = [1, 1]> ({0}e, {0}down)
    [{0}] {0}s = Add ({0}c, {1}) """

NETWORKS: dict[str, tuple[str, str]] = {
    "one block": (BASIC.format("A", "u"), "Ao"),
    "two blocks": (BASIC.format("A", "u") + BASIC.format("B", "Ao"), "Bo"),
    "first of a stage": (PROJECTED.format("A", "u") + BASIC.format("B", "Ao"), "Bo"),
    "without ReLU": (LINEAR.format("A", "t") + LINEAR.format("B", "As"), "Bs"),
    "inverted bottleneck": (BOTTLENECK.format("A", "t") + BOTTLENECK.format("B", "As"), "Bs"),
    "squeezed": (SQUEEZED.format("A", "u"), "Ao"),
}


def build(
    nets: Any, name: str, *, width: int = 8, inner: int = 6, seed: int = 1
) -> onnx.ModelProto:
    body, end = NETWORKS[name]
    equal = name == "squeezed"
    shapes: dict[str, Any] = {"w0": (width, 3, 1, 1), "b0": (width,), "wl": (5, width, 1, 1)}
    for block in "AB":
        shapes |= {
            f"{block}w1": (inner, width, 3, 3),
            f"{block}b1": (inner,),
            f"{block}w2": (width, width if equal else inner, 1, 1),
            f"{block}w3": (width, width, 3, 3),
            f"{block}b3": (width,),
            f"{block}up": (12, width, 1, 1),
            f"{block}dw": (12, 1, 3, 3),
            f"{block}down": (width, 12, 1, 1),
        }
    text = HEAD + body + TAIL.format(end=end).replace("{{", "{").replace("}}", "}")
    used = {key: shape for key, shape in shapes.items() if f" {key}" in text}
    return nets.build(text, seed, **used)


def prepared(nets: Any, name: str, **how: Any) -> tuple[onnx.ModelProto, dict[str, Array], Facts]:
    model = build(nets, name, **how)
    feeds = nets.samples(model, 20)
    return model, feeds, nets.facts(model, feeds)


def offered(facts: Facts, owner: Prune | None = None) -> dict[str, Candidate[KeptChannels]]:
    """The candidate of every branch, through facts that allow only what the pass declares."""
    owner = owner or Prune()
    view, found = facts.restricted(owner.needs), {}
    for site in owner.sites(view):
        if isinstance(site, Site) and facts.view.nodes[site.node].op_type == "Add":
            (found[site.node],) = owner.candidates(site, view)
    return found


def end_of(facts: Facts, add: str) -> tuple[str, int]:
    """The branch's end: the operand 'c' of block A or B."""
    node = facts.view.nodes[add]
    index = list(node.input).index(f"{add}c")
    return f"{add}c", index


def forced(model: onnx.ModelProto, means: Mapping[str, tuple[int, Array]]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.name in means:
            index, mean = means[node.name]
            lined = np.asarray(mean, dtype=np.float32).reshape(1, -1, 1, 1)
            node.input[index] = f"{node.name}_mean"
            copy.graph.initializer.append(onnx.numpy_helper.from_array(lined, node.input[index]))
    return copy


def applied(model: onnx.ModelProto, *chosen: Candidate[KeptChannels]) -> onnx.ModelProto:
    return rewrite(model, chosen, {"prune": Prune()}, strict=True).model


def assert_close(kit: Any, found: onnx.ModelProto, expected: onnx.ModelProto, feeds: Any) -> None:
    onnx.checker.check_model(found, full_check=True)
    for one, other in zip(kit.run(found, feeds), kit.run(expected, feeds), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_offered(nets: Any, tap: Callable[..., Array], name: str) -> None:
    """The mean over samples and positions; the variance relative to the sum's mean square."""
    model, feeds, facts = prepared(nets, name)
    found = offered(facts)
    assert set(found) == {add for add in "AB" if add in {n.name for n in model.graph.node}}
    for add, candidate in found.items():
        tensor, _ = end_of(facts, add)
        values, total = tap(model, tensor, feeds), tap(model, f"{add}s", feeds)
        mean = values.mean(axis=(0, 2, 3))
        assert candidate.setting.kept == ()
        np.testing.assert_allclose(candidate.setting.mean, mean, rtol=1e-5, atol=1e-6)
        share = values.var(axis=(0, 2, 3)).sum() / np.square(total).mean(axis=(0, 2, 3)).sum()
        assert candidate.damage == pytest.approx(share, rel=1e-4)
        assert not candidate.recommended
        inside = {n for n in facts.view.nodes if n.startswith(add)} - {add, f"{add}end", f"{add}p"}
        assert set(candidate.removes) == inside
        assert inside < set(candidate.touches)
        assert add in candidate.touches


@pytest.mark.parametrize("name", NETWORKS)
def test_cost_is_what_is_counted_on_the_result(nets: Any, name: str) -> None:
    model, _, facts = prepared(nets, name)
    for candidate in offered(facts).values():
        result = applied(model, candidate)
        counted = model_cost(result, shapes_for(result, facts.sizes))
        assert candidate.saving == facts.total() - counted
        inside = sum(facts.macs(node) for node in candidate.removes)
        assert candidate.saving.macs == inside > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_the_result_is_the_branch_at_its_mean(nets: Any, kit: Any, name: str) -> None:
    """Each branch alone, and all of them together in every order: the same bytes."""
    model, feeds, facts = prepared(nets, name)
    found = offered(facts)
    for size in range(1, len(found) + 1):
        for some in itertools.combinations(found.values(), size):
            orders = [applied(model, *order) for order in itertools.permutations(some)]
            assert len({o.SerializeToString(deterministic=True) for o in orders}) == 1
            means = {
                c.site.node: (end_of(facts, c.site.node)[1], np.array(c.setting.mean)) for c in some
            }
            reference = forced(model, means)
            assert_close(kit, orders[0], reference, feeds)
            kinds = kit.operators(orders[0])
            assert kinds.count("Max") <= 1
            left = [
                n for n in orders[0].graph.node if n.name in {r for c in some for r in c.removes}
            ]
            assert left == []
            (whole,), (small,) = kit.run(model, feeds), kit.run(orders[0], feeds)
            assert np.abs(whole - small).max() > 1e-2


@pytest.mark.parametrize(
    "mean", [0.0, 0.75, -0.75, None], ids=["zero", "positive", "negative", "mixed"]
)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("width", [8, 6], ids=["distinct", "equal"])
def test_with_channels_of_the_stream_gone(
    nets: Any, kit: Any, name: str, mean: float | None, width: int
) -> None:
    """The stream loses channels, the branches go: zeros behind producers, then the means.

    Channels that are gone are gone from the mean, too.
    """
    model, feeds, facts = prepared(nets, name, width=width)
    coupling = facts.coupling()
    generator = np.random.default_rng(4)
    chosen, means = [], {}
    for add in offered(facts):
        values = generator.standard_normal(width) if mean is None else np.full(width, mean)
        setting = KeptChannels((), tuple(np.float32(values).tolist()))
        if not values.any():
            setting = KeptChannels((), (*[0.0] * width,))
        base = offered(facts)[add]
        chosen.append(Candidate(base.site, setting, base.touches, base.before, base.after, 0.0))
        means[add] = np.array(setting.mean)
    groups = [g for g in coupling.groups if "stem" in g.producers or "Ap" in g.producers]
    assert groups
    gone_at: dict[str, list[int]] = {}
    for group in groups:
        gone = [1, 4, 5]
        kept = tuple(sorted(set(range(group.width)) - set(gone)))
        touches = tuple(facts.view.nodes)
        base = chosen[0]
        site = Site("prune", group.name)
        chosen.append(Candidate(site, KeptChannels(kept), touches, base.before, base.after, 0.0))
        gone_at |= dict.fromkeys(group.producers, gone)
    result = applied(model, *chosen)
    # The oracle: zeros in weights and biases of the producers, and in the means of their sums.
    reference = onnx.ModelProto()
    reference.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in reference.graph.initializer}
    for layer, gone in gone_at.items():
        for constant in facts.view.nodes[layer].input[1:]:
            values = onnx.numpy_helper.to_array(constants[constant]).copy()
            values[gone] = 0
            constants[constant].CopyFrom(onnx.numpy_helper.from_array(values, constant))
    lanes = coupling.lanes
    lost = {c for g in groups for c in (g.channels[i] for i in (1, 4, 5))}
    operands = {}
    for add, values in means.items():
        tensor, index = end_of(facts, add)
        lane = lanes.get(tensor)
        stays = np.ones(width) if lane is None else ~np.isin(lane.classes, list(lost))
        operands[add] = (index, values * stays)
    assert any((v[1] == 0).sum() >= 3 for v in operands.values())
    assert_close(kit, result, forced(reference, operands), feeds)
    assert kit.operators(result).count("Max") <= 1


@pytest.mark.parametrize("signs", list(itertools.product([-0.75, 0.75], repeat=2)))
def test_means_that_only_together_move_a_threshold(
    nets: Any, kit: Any, signs: tuple[float, float]
) -> None:
    """A negative mean leaves the ReLU in front as it is, until that of the next branch joins it.

    Neither branch alone changes the ReLU; what both change together, one of them announces.
    """
    model, feeds, facts = prepared(nets, "two blocks")
    chosen, means = [], {}
    for branch, value in zip(branches(facts).values(), signs, strict=True):
        mean = np.full(8, value)
        toll = branch_cost(facts, branch, mean)
        setting = KeptChannels((), tuple(mean.tolist()))
        site = Site("prune", branch.add)
        chosen.append(Candidate(site, setting, toll.touches, toll.before, toll.after, 0.0))
        means[branch.add] = (branch.index, mean)
    assert_close(kit, applied(model, *chosen), forced(model, means), feeds)


def test_replayed_from_the_plan_file(nets: Any) -> None:
    model, _, facts = prepared(nets, "two blocks")
    for candidate in offered(facts).values():
        again = candidate_from_dict(json.loads(json.dumps(candidate.to_dict())), Prune())
        assert again.setting == candidate.setting
        one, other = applied(model, candidate), applied(model, again)
        assert one.SerializeToString(deterministic=True) == other.SerializeToString(
            deterministic=True
        )


def test_an_excerpt_is_the_block_and_what_may_be_left(nets: Any, kit: Any) -> None:
    """Both run, and end in a tensor of the same size."""
    _, _, facts = prepared(nets, "first of a stage")
    owner = Prune()
    for add, candidate in offered(facts).items():
        ((before, after),) = owner.excerpts(candidate, facts.restricted(owner.needs))
        names = [n.name for n in before.graph.node]
        assert set(candidate.removes) < set(names)
        assert {add, f"{add}end"} <= set(names)
        shapes = []
        for excerpt in (before, after):
            feeds = {
                value.name: np.ones([d.dim_value for d in value.type.tensor_type.shape.dim], "f4")
                for value in excerpt.graph.input
            }
            shapes += [value.shape for value in kit.run(excerpt, feeds)]
        assert shapes == [facts.shape(f"{add}o")] * 2
        assert [n.op_type for n in after.graph.node] == ["Max"]


def test_without_data_no_branch_is_offered(nets: Any) -> None:
    """There is no mean to put in its place."""
    model = build(nets, "two blocks")
    assert branches(nets.facts(model)) == {}
    assert offered(nets.facts(model)) == {}


def test_not_asked_for(nets: Any) -> None:
    """With branches=false, and where widths are given."""
    _, _, facts = prepared(nets, "two blocks")
    assert set(offered(facts)) == {"A", "B"}
    assert offered(facts, Prune(branches=False)) == {}
    assert offered(facts, Prune(channels=0.5)) == {}


@pytest.mark.parametrize(("excluded", "left"), [("A", {"B"}), ("Ar", {"B"}), ("Ac2", set())])
def test_excluded(nets: Any, excluded: str, left: set[str]) -> None:
    """Ac2 belongs to one branch, and its bias would take the mean of the other."""
    model = build(nets, "two blocks")
    facts = nets.facts(model, nets.samples(model, 5), excluded=[excluded])
    assert set(offered(facts)) == left


@pytest.mark.parametrize("excluded", ["stem", "front", "Aend"])
def test_neighbours_that_would_change_are_excluded(nets: Any, excluded: str) -> None:
    """The layer that takes the mean into its bias, and the ReLUs that become one Max."""
    model = build(nets, "one block")
    facts = nets.facts(model, nets.samples(model, 5), excluded=[excluded])
    for candidate in offered(facts).values():
        assert excluded not in candidate.touches


def test_groups_inside_a_branch_conflict_with_its_removal(nets: Any) -> None:
    """A branch is cut narrower or goes as a whole; the stream is cut either way."""
    _, _, facts = prepared(nets, "two blocks")
    owner = Prune()
    view = facts.restricted(owner.needs)
    found = [site for site in owner.sites(view) if isinstance(site, Site)]
    sites = [owner.candidates(site, view) for site in found]
    nodes = [offers[0].site.node for offers in sites]
    pairs = {frozenset((nodes[a], nodes[b])) for a, b in conflicts(sites)}
    assert {frozenset(("Ac1", "A")), frozenset(("Bc1", "B"))} <= pairs
    assert all(pair == {f"{add}c1", add} for pair in pairs for add in pair if add in {"A", "B"})
    assert frozenset(("stem", "A")) not in pairs
    assert by_rule(sites).chosen == ()


def test_every_layer_is_still_heard_of(nets: Any) -> None:
    """Branches add sites at Adds; layers stay sites or refused."""
    model, _, facts = prepared(nets, "two blocks")
    found = [one.node for one in Prune().sites(facts)]
    layers = {n.name for n in model.graph.node if n.op_type == "Conv"}
    assert set(found) == layers | {"A", "B"}
    assert len(found) == len(set(found))


def test_tokens_of_any_number(nets: Any, kit: Any) -> None:
    """[N, L, C]: channels come last, and L is free. What is written runs at another L."""
    text = """net (float[N, L, 6] x) => (float[N, L, 4] y) {
        [stem] t = MatMul (x, w0) [front] u = Relu (t)
        [Ac1] a = MatMul (u, w1) [Ar] b = Relu (a) [Ac2] Ac = MatMul (b, w2)
        [A] As = Add (Ac, u) [last] y = MatMul (As, wl) }"""
    model = nets.build(text, w0=(6, 8), w1=(8, 5), w2=(5, 8), wl=(8, 4))
    generator = np.random.default_rng(1)
    data = {"x": generator.standard_normal((9, 7, 6)).astype(np.float32)}
    facts = nets.facts(model, data, sizes={"x": (1, 7, 6)})
    for candidate in offered(facts).values():
        result = applied(model, candidate)
        assert len(candidate.setting.mean) == 8, "the mean is per channel, not per token"
        for length in (7, 3):
            feeds = {"x": generator.standard_normal((2, length, 6)).astype(np.float32)}
            (found,) = kit.run(result, feeds)
            assert found.shape == (2, length, 4)
