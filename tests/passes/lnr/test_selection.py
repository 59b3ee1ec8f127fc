"""Which channels `lnr` keeps: redundant ones go, readers decide together, units do not matter."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress as oc
from onnxcompress.numerics.elimination import problem_scales
from onnxcompress.numerics.group_swap import refit_error
from onnxcompress.plan.channels.consumers import consumers, problems_of
from onnxcompress.plan.contract import Site
from onnxcompress.plan.known_moments import layer_moments
from onnxcompress_passes.lnr import Lnr

Array = np.ndarray


# The penalty shares weights out among twins, so the group lasso does not tell them apart.
@pytest.mark.parametrize(("selector", "twins"), [("obs", True), ("obs", False), ("lasso", False)])
@pytest.mark.parametrize("name", ["convs", "mlp"])
def test_dead_and_duplicated_channels_cost_nothing(
    lnr: Any, nets: Any, kit: Any, name: str, selector: str, *, twins: bool
) -> None:
    model, classes = lnr.redundant(nets, name, twins=twins)
    facts = nets.facts(model, nets.samples(model, 200))
    owner = Lnr(channels=0.5, selector=selector, weights="refit", round_to=0)
    found = lnr.reconstruct(owner, facts)
    for group, sets in classes.items():
        assert len(found.kept[group]) == len(sets)
        for alike in sets:
            assert len(alike & set(found.kept[group])) == 1, (group, found.kept[group])
    fresh = nets.samples(model, 50, seed=66)
    assert lnr.relative(kit, model, found.model, fresh) <= 1e-5


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["convs", "mlp"])
def test_repair_restores_what_twins_did(lnr: Any, nets: Any, kit: Any, name: str) -> None:
    """And the job's report proves that removal equals zeroing."""
    model, _ = lnr.redundant(nets, name)
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
    error, before = (lnr.relative(kit, model, one.model, fresh) for one in (found, bare))
    assert before > 0.3
    # 160 rows for 96 unknowns, in float32: the refit of the pass itself, above, comes closer.
    assert error <= 5e-5


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
def test_rescaled_channels_change_nothing(lnr: Any, nets: Any, options: dict[str, Any]) -> None:
    """A ReLU channel times s, and its reader divided by s, is the same network."""
    model = lnr.plain(nets, "convs")
    values = lnr.initializers(model)
    by = np.float32([4.0, 0.25, 8.0, 1.0, 0.125, 2.0, 16.0, 0.5])
    values["w1"] *= by[:, None, None, None]
    values["b1"] *= by
    values["w2"] /= by[None, :, None, None]
    other = lnr.with_values(model, **values)
    feeds = nets.samples(model, 100)
    one, two = (lnr.reconstruct(Lnr(**options), nets.facts(m, feeds)).kept for m in (model, other))
    assert one == two
    assert any(len(kept) < 6 for kept in one.values())
    if "strength" in options:
        scaled = Lnr(scale_invariant=False, **options)
        three, four = (lnr.reconstruct(scaled, nets.facts(m, feeds)).kept for m in (model, other))
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


def test_both_readers_of_a_residual_stream_decide(lnr: Any, nets: Any, tap: Any) -> None:
    """Damage is what both lose after least squares, and the choice is near the best of all."""
    model = lnr.plain(nets, "residual")
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
def test_ladder_damage_is_the_error_of_the_refit(lnr: Any, nets: Any, selector: str) -> None:
    model = lnr.plain(nets, "convs")
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


def test_ladder_damage_behind_a_channel_that_has_to_stay(nets: Any) -> None:
    """Each half needs one channel: one of the second half stays before the first half goes."""
    model = nets.build(
        """net (float[N, 6, 4, 5] x) => (float[N, 1, 4, 5] y, float[N, 1, 4, 5] z) {
        [one] a = Conv (x, w1) [r] b = Relu (a) [half] p, q = Split <axis = 1> (b, sizes)
        [two] y = Conv (p, w2) [three] z = Conv (q, w3) }""",
        w1=np.eye(6, dtype=np.float32)[:, :, np.newaxis, np.newaxis],
        sizes=np.array([3, 3]),
        w2=np.array([[1, 1, 0]], np.float32)[:, :, np.newaxis, np.newaxis],
        w3=np.array([[1, 1, 1]], np.float32)[:, :, np.newaxis, np.newaxis],
    )
    facts = nets.facts(model, nets.samples(model, 200))
    owner = Lnr(round_to=1)
    offers = owner.candidates(next(s for s in owner.sites(facts) if s.node == "one"), facts)
    gone = [set(range(6)) - set(c.setting.kept) for c in offers]
    assert gone[1] == {2}
    assert len(gone[3] & {3, 4, 5}) == 2
    assert len(gone[4] & {0, 1}) == 1, "the third of the second half stays"
    # Independent inputs of equal variance: each counts as the square of its weight.
    shares = [0.0, 0.0, 1 / 3, 2 / 3, 2 / 3 + 1 / 2]
    assert [c.damage for c in offers] == pytest.approx(shares, abs=0.05)


def test_few_inputs_do_not_make_channels_look_free(nets: Any) -> None:
    """30 rows of 60 independent features: each seems to follow from the others, and none does."""
    model = nets.build(
        """net (float[N, 60, 1, 1] x) => (float[N, 4] y) {
        [one] a = Conv (x, w1) [flat] f = Flatten (a) [fc] y = Gemm <transB = 1> (f, w2) }""",
        w1=np.eye(60, dtype=np.float32)[:, :, np.newaxis, np.newaxis],
        w2=(4, 60),
    )
    facts = nets.facts(model, nets.samples(model, 30))
    owner = Lnr(round_to=10)
    offers = owner.candidates(next(s for s in owner.sites(facts) if s.node == "one"), facts)
    shares = {len(c.setting.kept): c.damage for c in offers}
    # The least of 60 independent parts go first, so half the width loses less than half.
    assert shares[60] == 0.0
    assert 0.15 < shares[30] < 0.5
    assert 0.5 < shares[10] < 1.0
