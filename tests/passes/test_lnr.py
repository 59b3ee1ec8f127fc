"""Linear Neural Reconstruction: exact where it can be, invariant, joint, and honest."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress as oc
from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import BoundError, UsageError
from onnxcompress.graph.memo import Memo
from onnxcompress.numerics.elimination import problem_scales
from onnxcompress.numerics.group_swap import refit_error
from onnxcompress.plan.channels.consumers import consumers, problems_of
from onnxcompress.plan.contract import NoCandidate, Refusal, Site
from onnxcompress.plan.known_moments import layer_moments, remember_facts
from onnxcompress.rewrite.manager import rewrite
from onnxcompress_passes.lnr import Lnr

Array = np.ndarray
CONVS = """net (float[N, 3, 6, 7] x) => (float[N, 5] y) {
    [one] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) [r1] b = Relu (a)
    [two] c = Conv <strides = [2, 1]> (b, w2, b2) [r2] d = Relu (c)
    [pool] e = GlobalAveragePool (d) [flat] f = Flatten (e)
    [fc] y = Gemm <transB = 1> (f, w3, b3) }"""
MLP = """net (float[N, 3, 3, 4] x) => (float[N, 5] y) {
    [one] a = Conv (x, w1, b1) [r1] b = Relu (a) [flat] c = Flatten (b)
    [two] d = Gemm (c, w2, b2) [r2] e = Relu (d)
    [fc] y = Gemm <transB = 1> (e, w3, b3) }"""
RESIDUAL = """net (float[N, 3, 4, 5] x) => (float[N, 5, 4, 5] y) {
    [stem] a = Conv (x, w0, b0) [r0] b = Relu (a)
    [c1] c = Conv <pads = [1, 1, 1, 1]> (b, w1, b1) [bend] d = Sigmoid (c) [c2] e = Conv (d, w2)
    [sum] f = Add (b, e) [r1] g = Relu (f)
    [last] y = Conv (g, w3, b3) }"""


@dataclass(frozen=True)
class Reconstruction:
    """What the pass keeps of a network, and what it makes of it."""

    kept: dict[str, tuple[int, ...]]
    model: onnx.ModelProto


def reconstruct(owner: Lnr, facts: Facts) -> Reconstruction:
    """Carry out the recommended candidate of every site."""
    view, chosen = facts.restricted(owner.needs), []
    for site in owner.sites(view):
        if isinstance(site, Site):
            with suppress(NoCandidate):
                chosen.append(owner.candidates(site, view)[-1])
    memo = Memo()
    remember_facts(facts, memo)
    result = rewrite(facts.model, chosen, {"lnr": owner}, strict=True, memo=memo)
    return Reconstruction({c.site.node: c.setting.kept for c in chosen}, result.model)


def relative(
    kit: Any, one: onnx.ModelProto, two: onnx.ModelProto, feeds: dict[str, Array]
) -> float:
    (was,), (now) = kit.run(one, feeds)[:1], kit.run(two, feeds)[0]
    return float(np.linalg.norm(now - was) / np.linalg.norm(was))


def initializers(model: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: onnx.numpy_helper.to_array(t).copy() for t in model.graph.initializer}


def with_values(model: onnx.ModelProto, **values: Array) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            array = values[tensor.name].astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return copy


def plain(nets: Any, name: str) -> onnx.ModelProto:
    made: onnx.ModelProto
    if name == "convs":
        made = nets.build(
            CONVS, w1=(8, 3, 3, 3), b1=(8,), w2=(6, 8, 3, 2), b2=(6,), w3=(5, 6), b3=(5,)
        )
    elif name == "mlp":
        made = nets.build(MLP, w1=(8, 3, 1, 1), b1=(8,), w2=(96, 6), b2=(6,), w3=(5, 6), b3=(5,))
    else:
        made = nets.build(
            RESIDUAL,
            w0=(6, 3, 1, 1),
            b0=(6,),
            w1=(4, 6, 3, 3),
            b1=(4,),
            w2=(6, 4, 1, 1),
            w3=(5, 6, 1, 1),
            b3=(5,),
        )
    return made


def redundant(
    nets: Any, name: str, *, twins: bool = True
) -> tuple[onnx.ModelProto, dict[str, list[set[int]]]]:
    """Half of the channels dead (or twins); and the sets of which one channel each is needed."""
    model = plain(nets, name)
    values = initializers(model)
    outward = 1 if name == "mlp" else 0
    for weight, bias, axis, dead, pairs in (
        ("w1", "b1", 0, (2, 5), ((0, 7, 0.5), (4, 1, 3.0))),
        ("w2", "b2", outward, (3,), ((0, 5, 2.0), (1, 2, 0.25))),
    ):
        rows = np.moveaxis(values[weight], axis, 0)
        for source, twin, factor in pairs:
            values[bias][source] += np.float32(0.3)
            rows[twin], values[bias][twin] = factor * rows[source], factor * values[bias][source]
        for channel in dead if twins else (*dead, *(twin for _, twin, _ in pairs)):
            rows[channel] = 0.0
            values[bias][channel] = -1.0
    classes = {"one": [{0, 7}, {4, 1}, {3}, {6}], "two": [{0, 5}, {1, 2}, {4}]}
    if not twins:
        classes = {"one": [{0}, {4}, {3}, {6}], "two": [{0}, {1}, {4}]}
    return with_values(model, **values), classes


# The penalty shares weights out among twins, so the group lasso does not tell them apart.
@pytest.mark.parametrize(("selector", "twins"), [("obs", True), ("obs", False), ("lasso", False)])
@pytest.mark.parametrize("name", ["convs", "mlp"])
def test_dead_and_duplicated_channels_cost_nothing(
    nets: Any, kit: Any, name: str, selector: str, *, twins: bool
) -> None:
    model, classes = redundant(nets, name, twins=twins)
    facts = nets.facts(model, nets.samples(model, 200))
    owner = Lnr(channels=0.5, selector=selector, weights="refit", round_to=0)
    found = reconstruct(owner, facts)
    for group, sets in classes.items():
        assert len(found.kept[group]) == len(sets)
        for alike in sets:
            assert len(alike & set(found.kept[group])) == 1, (group, found.kept[group])
    fresh = nets.samples(model, 50, seed=66)
    assert relative(kit, model, found.model, fresh) <= 1e-5


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["convs", "mlp"])
def test_repair_restores_what_twins_did(nets: Any, kit: Any, name: str) -> None:
    """And the job's report proves that removal equals zeroing."""
    model, _ = redundant(nets, name)
    fresh = nets.samples(model, 50, seed=66)

    def made(repair: str) -> Any:
        return oc.compress(
            model,
            data=nets.samples(model, 200),
            passes=[Lnr(channels=0.5)],
            gate=False,
            repair=repair,
            min_snr=-100.0,
            max_drop=100.0,
            threads=1,
        )

    found, bare = made("refit"), made("off")
    for one in (found, bare):
        (check,) = one.report["self_check"]
        assert (check["pass"], check["relative_error"] <= 1e-5) == ("lnr", True)
    error, before = (relative(kit, model, one.model, fresh) for one in (found, bare))
    assert before > 0.3
    # 160 rows for 96 unknowns, in float32: the refit of the pass itself, above, comes closer.
    assert error <= 5e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selector": "best"}, "selector='best' is none of obs, lasso"),
        ({"chaining": "sideways"}, "chaining='sideways'"),
        ({"weights": "none"}, "weights='none'"),
        ({"strength": "much", "selector": "lasso"}, "strength='much' is not a number"),
        ({"strength": True, "selector": "lasso"}, "strength=True is not a number"),
        ({"strength": 1.0, "selector": "lasso"}, "strength=1.0 must lie between 0 and 1"),
        ({"strength": -0.1, "selector": "lasso"}, "strength=-0.1 must lie"),
        ({"strength": 0.1}, "strength goes with selector=lasso"),
        ({"strength": 0.1, "selector": "lasso", "channels": 0.5}, "without channels"),
        ({"weights": "refit"}, "weights=refit goes with channels=F or strength=F"),
        ({"weights": "lasso", "channels": 0.5}, "weights=lasso goes with selector=lasso"),
        ({"reweighted": -1}, "reweighted=-1 must be a whole number"),
        ({"reweighted": 1.5}, "reweighted=1.5"),
        ({"bias": 1}, "bias=1 must be true or false"),
        ({"scale_invariant": "no"}, "scale_invariant='no'"),
        ({"channels": 1.5}, "channels=1.5 must lie between 0 and 1"),
        ({"round_to": -1}, "round_to=-1"),
    ],
)
def test_options_are_validated(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Lnr(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 0.5},
        {"channels": 0.5, "selector": "lasso"},
        {"channels": 0.5, "selector": "lasso", "reweighted": 2},
        {"strength": 0.7, "selector": "lasso"},
    ],
    ids=str,
)
def test_rescaled_channels_change_nothing(nets: Any, options: dict[str, Any]) -> None:
    """A ReLU channel times s, and its reader divided by s, is the same network."""
    model = plain(nets, "convs")
    values = initializers(model)
    by = np.float32([4.0, 0.25, 8.0, 1.0, 0.125, 2.0, 16.0, 0.5])
    values["w1"] *= by[:, None, None, None]
    values["b1"] *= by
    values["w2"] /= by[None, :, None, None]
    other = with_values(model, **values)
    feeds = nets.samples(model, 100)
    one, two = (reconstruct(Lnr(**options), nets.facts(m, feeds)).kept for m in (model, other))
    assert one == two
    assert any(len(kept) < 6 for kept in one.values())
    if "strength" in options:
        scaled = Lnr(scale_invariant=False, **options)
        three, four = (reconstruct(scaled, nets.facts(m, feeds)).kept for m in (model, other))
        assert three != four


def centred_error(x: Array, y: Array) -> float:
    """Of least squares with a bias, relative to the variance of y; by numpy.linalg.lstsq."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(np.square(rest).sum() / np.square(y).sum())


def stream_errors(tap: Any, model: onnx.ModelProto, feeds: Any) -> Any:
    """What both layers that read the residual stream lose without some of its channels."""
    b, g, c, y = (tap(model, name, feeds) for name in ("b", "g", "c", "y"))
    padded = np.pad(b, [(0, 0), (0, 0), (1, 1), (1, 1)])
    patches = np.array(
        [
            padded[n, :, i : i + 3, j : j + 3].reshape(6, 9)
            for n in range(len(b))
            for i in range(4)
            for j in range(5)
        ]
    )

    def rows(values: Array) -> Array:
        return np.moveaxis(values, 1, -1).reshape(-1, values.shape[1])

    def error(kept: tuple[int, ...]) -> float:
        near = patches[:, list(kept)].reshape(len(patches), -1)
        return centred_error(near, rows(c)) + centred_error(rows(g)[:, list(kept)], rows(y))

    return error


def test_both_readers_of_a_residual_stream_decide(nets: Any, tap: Any) -> None:
    """Damage is what both lose after least squares, and the choice is near the best of all."""
    model = plain(nets, "residual")
    feeds = nets.samples(model, 60)
    facts = nets.facts(model, feeds)
    error = stream_errors(tap, model, feeds)
    owner = Lnr(round_to=1, branches=False)
    site = next(s for s in owner.sites(facts) if s.node == "stem")
    offers = owner.candidates(site, facts)
    assert [len(c.setting.kept) for c in offers] == [6, 5, 4, 3, 2, 1]
    damages = [c.damage for c in offers]
    assert damages == sorted(damages)
    assert damages[0] == 0.0
    for candidate in offers[1:]:
        assert candidate.damage == pytest.approx(error(candidate.setting.kept), rel=1e-3)
    fixed = Lnr(channels=0.5)
    (chosen,) = fixed.candidates(site, facts)
    every = sorted(error(kept) for kept in combinations(range(6), 3))
    assert error(chosen.setting.kept) <= every[1] * (1 + 1e-6)
    assert chosen.damage == pytest.approx(error(chosen.setting.kept), rel=1e-3)


@pytest.mark.parametrize("selector", ["obs", "lasso"])
def test_ladder_damage_is_the_error_of_the_refit(nets: Any, selector: str) -> None:
    model = plain(nets, "convs")
    facts = nets.facts(model, nets.samples(model, 60))
    coupling = facts.coupling()
    owner = Lnr(selector=selector, round_to=1)
    for site in owner.sites(facts):
        group = coupling.group_of(site.node)
        if group is None or not isinstance(site, Site):
            continue
        problems = problems_of(
            consumers(facts, coupling, group), layer_moments(facts, ["two", "fc"])
        )
        scales = problem_scales(problems, None)
        offers = owner.candidates(site, facts)
        damages = [c.damage for c in offers]
        assert damages == sorted(damages)
        assert damages[-1] > damages[1] > 0
        sets = [set(c.setting.kept) for c in offers]
        assert all(more > fewer for more, fewer in pairwise(sets))
        for candidate in offers[1:]:
            expected = refit_error(problems, candidate.setting.kept, scales, 1e-6)
            assert candidate.damage == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("chaining", ["parallel", "top-down", "bottom-up"])
@pytest.mark.parametrize("name", ["convs", "mlp", "residual"])
def test_chainings(nets: Any, kit: Any, name: str, chaining: str) -> None:
    """Least squares undo the shrinkage of the group lasso; with biases they come closer still."""
    model = plain(nets, name)
    feeds = nets.samples(model, 150)
    facts = nets.facts(model, feeds)
    fixed: dict[str, Any] = {"channels": 0.7, "selector": "lasso", "chaining": chaining}
    found = {
        (weights, bias): reconstruct(Lnr(**fixed, weights=weights, bias=bias), facts)
        for weights, bias in (("refit", True), ("lasso", True), ("refit", False))
    }
    widths = {g: len(k) for g, k in found["refit", True].kept.items()}
    assert widths == {g.name: round(0.7 * g.width) for g in facts.coupling().groups}
    if chaining != "top-down":
        assert found["refit", True].kept == found["lasso", True].kept
    refit, lasso, bare = (relative(kit, model, f.model, feeds) for f in found.values())
    assert refit < lasso
    assert refit < bare
    assert refit < 1.0


def test_top_down_makes_up_for_what_was_lost_in_front(nets: Any, kit: Any) -> None:
    """The second layer is rebuilt from what the compressed network delivers."""
    model = plain(nets, "convs")
    feeds = nets.samples(model, 200)
    facts = nets.facts(model, feeds)
    errors = {
        chaining: relative(
            kit,
            model,
            reconstruct(Lnr(channels=0.5, weights="refit", chaining=chaining), facts).model,
            feeds,
        )
        for chaining in ("parallel", "top-down")
    }
    assert errors["top-down"] < errors["parallel"]


def test_bottom_up_rebuilds_only_what_the_next_layer_keeps(nets: Any) -> None:
    """'two' computes 0 to 2 from large weights, which 'fc' hardly reads; 3 to 5 from small ones."""
    model = plain(nets, "convs")
    values = initializers(model)
    values["w2"][:3, 4:] = 0.0
    values["w2"][:3, :4] *= 5.0
    values["w2"][3:, :4] = 0.0
    values["b2"] += np.float32(1)
    values["w3"][:, :3] *= 1e-3
    facts = nets.facts(with_values(model, **values), nets.samples(model, 100))
    found = {
        chaining: reconstruct(Lnr(channels=0.5, chaining=chaining), facts).kept
        for chaining in ("parallel", "bottom-up")
    }
    assert found["parallel"]["two"] == found["bottom-up"]["two"] == (3, 4, 5)
    assert found["bottom-up"]["one"] == (4, 5, 6, 7)
    assert found["parallel"]["one"] != (4, 5, 6, 7)


def test_without_data_it_says_so(nets: Any, pruning: Any) -> None:
    model = plain(nets, "convs")
    refused = pruning.refused(Lnr(), nets.facts(model))
    assert refused["one"] == refused["two"] == "lnr decides on calibration inputs: give --data"
    with pytest.raises(BoundError, match="give --data"):
        oc.compress(model, passes=["lnr:channels=0.5"], gate=False, threads=1)


def test_the_same_data_gives_the_same_bytes(nets: Any) -> None:
    model = plain(nets, "mlp")
    feeds = nets.samples(model, 60)
    owner = Lnr(channels=0.5, weights="refit", chaining="top-down")
    one, two = (reconstruct(owner, nets.facts(model, feeds)).model for _ in range(2))
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_a_group_that_a_transposed_convolution_reads_is_left_to_prune(nets: Any) -> None:
    """And the other groups are not."""
    model = nets.build(
        """net (float[N, 3, 5, 6] x) => (float[N, 4, 5, 6] y) {
        [one] a = Conv (x, w1) [r1] b = Relu (a) [up] c = ConvTranspose (b, w2)
        [r2] d = Relu (c) [two] e = Conv (d, w3) [r3] f = Relu (e) [three] y = Conv (f, w4) }""",
        w1=(8, 3, 1, 1),
        w2=(8, 6, 1, 1),
        w3=(8, 6, 1, 1),
        w4=(4, 8, 1, 1),
    )
    facts = nets.facts(model, nets.samples(model, 60))
    found = list(Lnr().sites(facts.restricted(Lnr.needs)))
    sites = [one.node for one in found if isinstance(one, Site)]
    assert sites == ["up", "two"]
    (refusal,) = (one for one in found if isinstance(one, Refusal) and one.node == "one")
    assert "ConvTranspose" in refusal.reason
    assert "prune" in refusal.reason
    for site in (one for one in found if isinstance(one, Site)):
        assert len(Lnr(round_to=1).candidates(site, facts)) > 1
