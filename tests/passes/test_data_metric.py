"""tucker2 and svd in the metric of the data: exact, better, counted, replayed, declared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress as oc
from onnxcompress.analyse.facts import Facts, Need
from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.errors import OnnxCompressError, PassError, UsageError
from onnxcompress.graph.cost import model_cost
from onnxcompress.graph.memo import Memo
from onnxcompress.plan.contract import Candidate, NoCandidate, Site, candidate_from_dict
from onnxcompress.plan.known_moments import remember_facts
from onnxcompress.rewrite.manager import rewrite
from onnxcompress_passes.low_rank_pass import LowRankPass
from onnxcompress_passes.svd import Svd
from onnxcompress_passes.tucker2 import Tucker2

Array = np.ndarray
NET = "net ({} x) => ({} y) {{ [layer] a = {} [bend] y = Sigmoid (a) }}"
IMAGE, ANSWER = "float[N, {}, 6, 7]", "float[N, {}, h, v]"
# Inputs and answers, the call, extents of its constants, the pass, ranks below the full ones.
LAYERS: dict[str, tuple[str, str, str, dict[str, Any], type[LowRankPass[Any, Any]], str]] = {
    "tucker2": (
        IMAGE.format(8),
        ANSWER.format(10),
        "Conv <strides = [2, 1], pads = [1, 0, 2, 1]> (x, w, b)",
        {"w": (10, 8, 3, 2), "b": (10,)},
        Tucker2,
        "4x3",
    ),
    "tucker2, equal": (
        IMAGE.format(8),
        ANSWER.format(8),
        "Conv <pads = [1, 1, 1, 1]> (x, w)",
        {"w": (8, 8, 3, 3)},
        Tucker2,
        "3x3",
    ),
    "tucker2, groups": (
        IMAGE.format(8),
        ANSWER.format(12),
        "Conv <group = 2> (x, w)",
        {"w": (12, 4, 3, 2)},
        Tucker2,
        "3x2",
    ),
    "tucker2, out alone": (
        IMAGE.format(8),
        ANSWER.format(10),
        "Conv (x, w)",
        {"w": (10, 8, 3, 2)},
        Tucker2,
        "3x8",
    ),
    "svd, conv": (
        IMAGE.format(8),
        ANSWER.format(10),
        "Conv <strides = [2, 3]> (x, w)",
        {"w": (10, 8, 1, 1)},
        Svd,
        "3",
    ),
    "svd, bias": (
        IMAGE.format(8),
        ANSWER.format(8),
        "Conv (x, w, b)",
        {"w": (8, 8, 1, 1), "b": (8,)},
        Svd,
        "3",
    ),
    "svd, groups": (
        IMAGE.format(8),
        ANSWER.format(16),
        "Conv <group = 2> (x, w)",
        {"w": (16, 4, 1, 1)},
        Svd,
        "2",
    ),
    "gemm": (
        "float[N, 9]",
        "float[N, 6]",
        "Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)",
        {"w": (6, 9), "b": (6,)},
        Svd,
        "3",
    ),
    "matmul": ("float[N, 5, 9]", "float[N, 5, 6]", "MatMul (x, w)", {"w": (9, 6)}, Svd, "3"),
}


def network(nets: Any, name: str) -> onnx.ModelProto:
    x, y, call, constants, *_ = LAYERS[name]
    made: onnx.ModelProto = nets.build(NET.format(x, y, call), **constants)
    return made


def inputs(nets: Any, model: onnx.ModelProto, count: int = 80, seed: int = 5) -> dict[str, Array]:
    """Channels that depend on each other and differ in size, about means that are not zero."""
    (x,) = nets.samples(model, count, seed=seed).values()
    axis = x.ndim - 1 if x.ndim == 3 else 1
    size = x.shape[axis]
    generator = np.random.default_rng(4)
    mix = generator.standard_normal((size, size)) * np.geomspace(1.0, 0.05, size)
    mixed = np.moveaxis(
        np.moveaxis(x, axis, -1) @ mix.T + generator.standard_normal(size), -1, axis
    )
    return {"x": np.ascontiguousarray(mixed, dtype=np.float32)}


def offered(owner: LowRankPass[Any, Any], facts: Facts) -> list[Candidate[Any]]:
    """Candidates of the one layer, through facts that allow only what the pass declares."""
    view = facts.restricted(owner.needs)
    (site,) = [found for found in owner.sites(view) if isinstance(found, Site)]
    return list(owner.candidates(site, view))


def applied(
    owner: LowRankPass[Any, Any], candidate: Candidate[Any], facts: Facts, *, data: bool = True
) -> onnx.ModelProto:
    memo = Memo()
    if data:
        remember_facts(facts, memo)
    return rewrite(facts.model, [candidate], {owner.name: owner}, strict=True, memo=memo).model


def errors(tap: Any, one: onnx.ModelProto, two: onnx.ModelProto, feeds: Any) -> tuple[float, Array]:
    """Relative squared error of the answers about their mean, and what the means differ by."""
    was, now = tap(one, "a", feeds), tap(two, "a", feeds)
    axes = tuple(a for a in range(was.ndim) if a != (1 if was.ndim == 4 else was.ndim - 1))
    variance = np.square(was - was.mean(axis=axes, keepdims=True)).sum()
    return float(np.square(was - now).sum() / variance), (was - now).mean(axis=axes)


@pytest.mark.parametrize("metric", ["data", "auto", "weights"])
@pytest.mark.parametrize("name", LAYERS)
def test_full_ranks_are_exact(nets: Any, kit: Any, name: str, metric: str) -> None:
    model = network(nets, name)
    feeds = inputs(nets, model)
    facts = nets.facts(model, feeds)
    for rank in ("full", "auto"):
        owner = LAYERS[name][4](rank=rank, metric=metric)
        first = offered(owner, facts)[0]
        assert first.damage == 0.0
        result = applied(owner, first, facts)
        assert len(result.graph.node) > len(model.graph.node)
        (expected,), (found,) = kit.run(model, feeds), kit.run(result, feeds)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_factors_from_data_beat_those_of_weights(nets: Any, tap: Any, name: str) -> None:
    """On inputs whose directions differ, at the same ranks; also on inputs not looked at."""
    model = network(nets, name)
    owner_type, rank = LAYERS[name][4:]
    feeds, fresh = inputs(nets, model), inputs(nets, model, seed=55)
    facts = nets.facts(model, feeds)
    found = {}
    for metric in ("data", "weights", "auto"):
        owner = owner_type(rank=rank, metric=metric)
        (candidate,) = offered(owner, facts)
        assert candidate.setting.metric == ("weights" if metric == "weights" else "data")
        result = applied(owner, candidate, facts)
        found[metric] = errors(tap, model, result, feeds), errors(tap, model, result, fresh), result
    ours, theirs = found["data"], found["weights"]
    assert ours[0][0] < 0.8 * theirs[0][0]
    assert ours[1][0] < 0.8 * theirs[1][0]
    assert found["auto"][2].SerializeToString() == ours[2].SerializeToString()
    # A bias makes up for the mean, where the layer can have one.
    if "Conv" in LAYERS[name][2]:
        np.testing.assert_allclose(ours[0][1], 0.0, atol=1e-5)
        assert np.abs(theirs[0][1]).max() > 1e-2


@pytest.mark.parametrize(
    "name",
    ["tucker2, out alone", "svd, conv", "svd, bias", "gemm"],
)
def test_damage_is_what_is_lost(nets: Any, tap: Any, name: str) -> None:
    """Of the variance of the answers, exactly, where one side alone is cut."""
    model = network(nets, name)
    feeds = inputs(nets, model)
    facts = nets.facts(model, feeds)
    owner = LAYERS[name][4](rank=LAYERS[name][5], metric="data")
    (candidate,) = offered(owner, facts)
    lost, _ = errors(tap, model, applied(owner, candidate, facts), feeds)
    # The layer's float32 answers, and factors that are stored in float32.
    assert candidate.damage == pytest.approx(lost, rel=1e-4)


@pytest.mark.parametrize("name", ["tucker2", "tucker2, equal", "tucker2, groups", "svd, groups"])
def test_damage_is_honest(nets: Any, tap: Any, name: str) -> None:
    """Never much below what is lost where both sides are cut; groups count by their variance."""
    model = network(nets, name)
    feeds = inputs(nets, model)
    facts = nets.facts(model, feeds)
    owner = LAYERS[name][4](round_to=1, metric="data")
    offers = offered(owner, facts)
    assert len(offers) > 1
    damages = [c.damage for c in offers]
    assert damages == sorted(damages)
    for candidate in offers[1:]:
        lost, _ = errors(tap, model, applied(owner, candidate, facts), feeds)
        assert lost <= 1.02 * candidate.damage + 1e-6


@pytest.mark.parametrize(("name", "rank"), [("tucker2, groups", "3x4"), ("svd, groups", "2")])
def test_groups_count_by_their_variance(nets: Any, tap: Any, name: str, rank: str) -> None:
    """The first group answers little: what it loses hardly matters. Exact, as one side is full."""
    model = network(nets, name)
    (tensor,) = model.graph.initializer
    weight = onnx.numpy_helper.to_array(tensor).copy()
    weight[: len(weight) // 2] /= 10
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    feeds = inputs(nets, model)
    facts = nets.facts(model, feeds)
    owner = LAYERS[name][4](rank=rank, metric="data")
    (candidate,) = offered(owner, facts)
    lost, _ = errors(tap, model, applied(owner, candidate, facts), feeds)
    assert candidate.damage == pytest.approx(lost, rel=1e-4)


@pytest.mark.parametrize("metric", ["data", "weights"])
@pytest.mark.parametrize("name", LAYERS)
def test_parameters_are_counted(nets: Any, name: str, metric: str) -> None:
    model = network(nets, name)
    feeds = inputs(nets, model, 20)
    facts = nets.facts(model, feeds)
    for options in ({"rank": LAYERS[name][5]}, {"rank": "full"}, {"round_to": 3}):
        owner = LAYERS[name][4](metric=metric, **options)
        for candidate in offered(owner, facts):
            result = applied(owner, candidate, facts)
            counted = sum(int(np.prod(t.dims)) for t in result.graph.initializer)
            assert candidate.after.params == counted
            assert candidate.after.weight_bytes == 4 * counted
            assert candidate.before.params == sum(
                int(np.prod(t.dims)) for t in model.graph.initializer
            )
            cost = model_cost(result, shapes_for(result, facts.sizes))
            bend = facts.cost("bend").macs
            assert candidate.after.macs == cost.macs - bend


@pytest.mark.parametrize("name", ["tucker2", "gemm"])
def test_settings_survive_the_plan_file(nets: Any, name: str) -> None:
    model = network(nets, name)
    facts = nets.facts(model, inputs(nets, model))
    for metric in ("data", "weights"):
        owner = LAYERS[name][4](rank=LAYERS[name][5], metric=metric)
        (candidate,) = offered(owner, facts)
        text = json.dumps(candidate.to_dict(), allow_nan=False)
        again = candidate_from_dict(json.loads(text), owner)
        # What matters to planning only is not in the file.
        assert again == replace(candidate, recommended=False, follows=False)
        one, two = (applied(owner, c, facts).SerializeToString() for c in (candidate, again))
        assert one == two
    # A plan from before there was a metric: the metric of the weights.
    values = json.loads(text)
    del values["setting"]["metric"]
    assert candidate_from_dict(values, owner).setting.metric == "weights"


@pytest.mark.usefixtures("quick")
def test_replayed_with_and_without_data(nets: Any, tmp_path: Path) -> None:
    model = network(nets, "svd, conv")
    feeds = inputs(nets, model)
    bounds: dict[str, Any] = {"gate": False, "min_snr": -100.0, "max_drop": 100.0, "threads": 1}
    owner = Svd(rank="2", metric="data")
    made = oc.compress(model, data=feeds, passes=[owner], **bounds)
    (chosen,) = made.plan.chosen
    assert chosen.setting.metric == "data"
    path = tmp_path / "plan.json"
    path.write_text(made.plan.to_json())
    again = oc.compress(model, data=feeds, plan=path, **bounds)
    assert again.plan.chosen == (replace(chosen, recommended=False, follows=False),)
    assert again.model.SerializeToString() == made.model.SerializeToString()
    with pytest.raises(OnnxCompressError, match=r"calibration inputs.*give --data") as refused:
        oc.compress(model, plan=path, **bounds)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["tucker2", "matmul"])
def test_without_data(nets: Any, name: str) -> None:
    """auto counts weights, data is refused, and a rewrite by data says what it misses."""
    model = network(nets, name)
    facts = nets.facts(model)
    owner_type, rank = LAYERS[name][4:]
    (candidate,) = offered(owner_type(rank=rank), facts)
    assert candidate.setting.metric == "weights"
    with pytest.raises(NoCandidate, match="metric=data needs calibration inputs: give --data"):
        offered(owner_type(rank=rank, metric="data"), facts)
    seen = nets.facts(model, inputs(nets, model))
    (candidate,) = offered(owner_type(rank=rank, metric="data"), seen)
    with pytest.raises(PassError, match=r"'layer'.*calibration inputs.*give --data"):
        applied(owner_type(), candidate, facts, data=False)


@pytest.mark.parametrize("owner", [Tucker2(), Svd()], ids=["tucker2", "svd"])
def test_moments_must_be_declared(nets: Any, owner: LowRankPass[Any, Any]) -> None:
    name = "tucker2" if isinstance(owner, Tucker2) else "gemm"
    model = network(nets, name)
    facts = nets.facts(model, inputs(nets, model))
    assert Need.MOMENTS in owner.needs
    with pytest.raises(PassError, match="MOMENTS"):
        owner.candidates(Site(owner.name, "layer"), facts.restricted(frozenset({Need.SHAPES})))


def test_wide_layers_count_weights(nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcompress_passes.low_rank_pass.MOST_FEATURES", 8)
    model = network(nets, "gemm")
    facts = nets.facts(model, inputs(nets, model))
    (candidate,) = offered(Svd(rank="3"), facts)
    assert candidate.setting.metric == "weights"
    with pytest.raises(NoCandidate, match="reads more than 8 numbers: metric=weights"):
        offered(Svd(rank="3", metric="data"), facts)


def test_unknown_metrics_are_refused() -> None:
    with pytest.raises(UsageError, match="svd: metric='loss' is none of auto, data, weights"):
        Svd(metric="loss")
