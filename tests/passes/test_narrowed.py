"""Low rank on layers that lost channels: rows and columns of the factors of the whole layer.

The oracle is the network with the product of the factors as its weight, and the channels that are
gone at zero. Weights are Gaussian; results agree to float32 rounding: 1e-5 of the largest output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.sizes import input_specs
from onnxcompress.calibrate.arrays import dataset_from_arrays
from onnxcompress.graph.memo import Memo
from onnxcompress.plan.contract import Candidate, Pass, Site
from onnxcompress.plan.known_moments import remember_facts
from onnxcompress.plan.plan import Plan, read_plan
from onnxcompress.plan.search import conflicts
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.rewrite.mender import Mender
from onnxcompress.runtime import Execution
from onnxcompress_passes.lnr import Lnr
from onnxcompress_passes.prune import Prune
from onnxcompress_passes.svd import Svd
from onnxcompress_passes.tucker2 import Tucker2

Array = np.ndarray

NETWORK = """net (float[N, 3, 7, 6] x) => (float[N, 5] y) {
    [c1] a = Conv <kernel_shape = [1, 1]> (x, w1, b1) [r1] b = Relu (a)
    [c2] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 1]> (b, w2, b2)
    [r2] d = Relu (c)
    [c3] e = Conv <kernel_shape = [1, 1], strides = [1, 2]> (d, w3) [r3] f = Relu (e)
    [p] g = GlobalAveragePool (f) [fl] h = Flatten (g)
    [g1] i = Gemm <transB = 1, alpha = 0.5> (h, w4, b4) [r4] j = Relu (i)
    [g2] k = Gemm <transB = 0> (j, w5, b5) [r5] l = Relu (k)
    [m] y = MatMul (l, w6) }"""
SHAPES: dict[str, tuple[int, ...]] = {
    "w1": (9, 3, 1, 1),
    "b1": (9,),
    "w2": (12, 9, 3, 3),
    "b2": (12,),
    "w3": (11, 12, 1, 1),
    "w4": (10, 11),
    "b4": (10,),
    "w5": (10, 8),
    "b5": (8,),
    "w6": (8, 5),
}
LAYERS = {"c2": "c", "c3": "e", "g1": "i", "g2": "k", "m": "y"}
"""Layers that are factored, and what they answer."""


@pytest.fixture
def model(nets: Any) -> onnx.ModelProto:
    built: onnx.ModelProto = nets.build(NETWORK, **SHAPES)
    return built


@pytest.fixture
def feeds(nets: Any, model: onnx.ModelProto) -> dict[str, Array]:
    samples: dict[str, Array] = nets.samples(model, 60)
    return samples


@pytest.fixture
def facts(nets: Any, model: onnx.ModelProto, feeds: dict[str, Array]) -> Facts:
    found: Facts = nets.facts(model, feeds)
    return found


def low_rank(layer: str, rank: int, metric: str) -> Pass[Any]:
    if layer == "c2":
        return Tucker2(rank=f"{rank}x{rank}", metric=metric)
    return Svd(rank=str(rank), metric=metric)


def offered(owner: Pass[Any], node: str, facts: Facts) -> Candidate[Any]:
    return owner.candidates(Site(owner.name, node), facts.restricted(owner.needs))[-1]


def pruned(facts: Facts, share: float) -> list[Candidate[Any]]:
    """Every group at this share of its channels."""
    owner = Prune(channels=share)
    view = facts.restricted(owner.needs)
    sites = [site for site in owner.sites(view) if isinstance(site, Site)]
    return [owner.candidates(site, view)[-1] for site in sites]


def applied(facts: Facts, *chosen: Candidate[Any]) -> onnx.ModelProto:
    passes = {"prune": Prune(), "tucker2": Tucker2(), "svd": Svd()}
    memo = Memo()
    remember_facts(facts, memo)
    return rewrite(facts.model, chosen, passes, strict=True, memo=memo).model


def with_zeros(model: onnx.ModelProto, chosen: list[Candidate[Any]]) -> onnx.ModelProto:
    """Channels that go at zero behind their layers, by a Mul."""
    outputs = {node.name: node.output[0] for node in model.graph.node}
    zeroed = onnx.ModelProto()
    zeroed.CopyFrom(model)
    for candidate in chosen:
        # A layer that was factored ends in the tensor that it always made.
        tensor = LAYERS.get(candidate.site.node) or outputs[candidate.site.node]
        rank, width = (
            (4, SHAPES[f"w{candidate.site.node[1]}"][0])
            if (candidate.site.node.startswith("c"))
            else (2, {"g1": 10, "g2": 8}[candidate.site.node])
        )
        mask = np.zeros(width, np.float32)
        mask[list(candidate.setting.kept)] = 1
        shape = (1, width, 1, 1)[:rank]
        name = f"{tensor}_mask"
        zeroed.graph.initializer.append(onnx.numpy_helper.from_array(mask.reshape(shape), name))
        for node in zeroed.graph.node:
            node.input[:] = [f"{tensor}_zeroed" if t == tensor else t for t in node.input]
        at = next(i for i, n in enumerate(zeroed.graph.node) if tensor in n.output)
        node = onnx.helper.make_node("Mul", [tensor, name], [f"{tensor}_zeroed"], f"{tensor}_mul")
        zeroed.graph.node.insert(at + 1, node)
    del zeroed.graph.value_info[:]
    return zeroed


@pytest.mark.parametrize("share", [0.7, 0.4, 0.15], ids=["many", "some", "few"])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_same_as_zeros_in_the_factored_network(
    kit: Any, facts: Facts, feeds: Any, layer: str, share: float
) -> None:
    """Few channels left: fewer than the rank, so that the factors are multiplied out."""
    factored = offered(low_rank(layer, 3, "weights"), layer, facts)
    channels = pruned(facts, share)
    found = applied(facts, *channels, factored)
    onnx.checker.check_model(found, full_check=True)
    reference = with_zeros(applied(facts, factored), channels)
    for one, other in zip(kit.run(found, feeds), kit.run(reference, feeds), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("share", [0.7, 0.4])
@pytest.mark.parametrize("layer", ["c2", "c3", "g1", "g2"])
def test_mean_answers_stay_what_they_were(
    tap: Callable[..., Array],
    facts: Facts,
    feeds: Any,
    layer: str,
    share: float,
) -> None:
    """In the metric of the data, the bias makes up for what factors change in the mean.

    What is left of the layer reads what is left of its input, which is what it was.
    """
    factored = offered(low_rank(layer, 3, "data"), layer, facts)
    # Only the channels around this layer, so that what it reads is the original's.
    before = {"c2": "c1", "c3": "c2", "g1": "c3", "g2": "g1"}[layer]
    channels = [c for c in pruned(facts, share) if c.site.node in {before, layer}]
    assert len(channels) == 2
    one = tap(applied(facts, *channels), LAYERS[layer], feeds)
    other = tap(applied(facts, *channels, factored), LAYERS[layer], feeds)
    assert np.abs(one - other).max() > 0.1
    axes = tuple(at for at in range(one.ndim) if at != 1)
    np.testing.assert_allclose(one.mean(axes), other.mean(axes), rtol=0, atol=2e-6)


def test_which_sites_conflict(facts: Facts) -> None:
    """Channels and ranks may go together; two passes that take channels do not, nor new weights."""
    sites = [[c] for c in pruned(facts, 0.5)]
    at = {offers[0].site.node: number for number, offers in enumerate(sites)}
    sites.append([offered(low_rank("c2", 3, "weights"), "c2", facts)])
    assert conflicts(sites, together=True) == []
    assert (at["c2"], len(sites) - 1) in conflicts(sites)
    rivals = [*sites, [offered(Lnr(channels=0.5), "c2", facts)]]
    assert (at["c2"], len(sites)) in conflicts(rivals, together=True)
    fitted = [offered(Lnr(channels=0.5, weights="refit"), "c2", facts)]
    pair = [[offered(low_rank("c2", 3, "weights"), "c2", facts)], fitted]
    assert conflicts(pair, together=True) == [(0, 1)]


def test_replayed_from_the_plan_file(model: onnx.ModelProto, facts: Facts, tmp_path: Any) -> None:
    chosen = (*pruned(facts, 0.5), offered(low_rank("c2", 3, "weights"), "c2", facts))
    passes = tuple((name, {}) for name in ("prune", "tucker2"))
    plan = Plan("digest", passes, chosen, (), {}, True)
    path = tmp_path / "plan.json"
    path.write_text(plan.to_json())
    again, _ = read_plan(path)
    one, other = applied(facts, *chosen), applied(facts, *again.chosen)
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def test_repaired_as_one_layer(nets: Any, model: onnx.ModelProto, facts: Facts) -> None:
    """What is left of a layer, and factored, is fitted again to what is left of its answers."""
    rows = nets.samples(model, 400, seed=9)
    data = dataset_from_arrays(rows, input_specs(model), preprocess=None, source="here")
    factored = offered(low_rank("c2", 4, "data"), "c2", facts)
    chosen = (*pruned(facts, 0.6), factored)
    memo = Memo()
    remember_facts(facts, memo)
    passes = {"prune": Prune(), "tucker2": Tucker2()}
    mender = Mender(facts, data, passes, memo, Execution(threads=1), 0, "refit")
    result = rewrite(model, chosen, passes, strict=True, memo=memo).model
    repaired = mender(result, chosen)
    assert repaired is not None
    fitted = {one.node: one for one in repaired.mended}
    (whole,) = [one for node, one in fitted.items() if node.startswith("c2")]
    assert whole.method == "refit"
    assert whole.after < 0.9 * whole.before
    assert [n.name for n in repaired.model.graph.node] == [n.name for n in result.graph.node]
