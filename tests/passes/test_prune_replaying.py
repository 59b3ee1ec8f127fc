"""Plans of `prune`: replayed, in any order, once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import ModelError, PassError, UsageError
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import Editor
from onnxcompress.plan.contract import (
    Candidate,
    NoCandidate,
    Site,
    candidate_from_dict,
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


def applied(model: onnx.ModelProto, *candidates: Candidate[KeptChannels]) -> onnx.ModelProto:
    return rewrite(model, candidates, {"prune": Prune()}, strict=True).model


def octets(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", ["residual", "concat"])
def test_replayed_from_the_plan_file(nets: Any, name: str) -> None:
    """Candidates survive JSON, and their rewrite needs nothing else."""
    facts = nets.facts(graph(nets, name))
    for candidates in offers(Prune(), facts).values():
        for candidate in candidates:
            text = json.dumps(candidate.to_dict(), allow_nan=False)
            again = candidate_from_dict(json.loads(text), Prune())
            assert again.setting == candidate.setting
            assert octets(applied(facts.model, again)) == octets(applied(facts.model, candidate))


@pytest.mark.parametrize("name", ["chain", "residual", "concat"])
def test_groups_in_any_order(nets: Any, kit: Any, name: str) -> None:
    """The same bytes, and as many channels as each group has by itself."""
    facts = nets.facts(graph(nets, name))
    chosen = [candidates[-1] for candidates in offers(Prune(), facts).values()]
    assert len(chosen) == 2
    results = {octets(applied(facts.model, *order)) for order in itertools.permutations(chosen)}
    assert len(results) == 1
    (both,) = results
    model = onnx.load_model_from_string(both)
    onnx.checker.check_model(model, full_check=True)
    for candidate in chosen:
        weight = next(n for n in model.graph.node if n.name == candidate.site.node).input[1]
        (dims,) = (tuple(t.dims) for t in model.graph.initializer if t.name == weight)
        assert dims[0] == len(candidate.setting.kept)
    feeds = nets.samples(model, 2)
    (alone,), (found,) = kit.run(applied(facts.model, chosen[0]), feeds), kit.run(model, feeds)
    assert alone.shape == found.shape
    assert not np.allclose(alone, found)


def test_a_graph_is_pruned_once(nets: Any) -> None:
    """Channel numbers count on the original."""
    facts = nets.facts(chain(nets))
    first, second = (candidates[-1] for candidates in offers(Prune(), facts).values())
    edit = Editor(facts.model)
    Prune().rewrite(first, edit)
    with pytest.raises(ModelError, match="already"):
        Prune().rewrite(second, edit)


def test_channels_that_are_not_there(nets: Any) -> None:
    facts = nets.facts(chain(nets))

    def kept(node: str, *channels: int) -> Candidate[KeptChannels]:
        return Candidate(Site("prune", node), KeptChannels(channels), (node,), Cost(), Cost(), 0.0)

    for candidate, words in (
        (kept("one", 0, 12), "12 channels, not 12"),
        (kept("one", -1), "12 channels, not -1"),
        (kept("fc", 0), "'fc'"),
        (kept("nowhere", 0), "'nowhere'"),
    ):
        with pytest.raises(PassError, match=words):
            Prune().rewrite(candidate, Editor(facts.model))


def test_a_mean_that_fits_no_branch(nets: Any) -> None:
    facts = nets.facts(graph(nets, "residual"))
    for node, mean in (("sum", (0.5,) * 11), ("stem", (0.5,) * 12)):
        candidate = Candidate(
            Site("prune", node), KeptChannels((), mean), (node,), Cost(), Cost(), 0.0
        )
        with pytest.raises(PassError, match=f"no residual branch.*'{node}'"):
            Prune().rewrite(candidate, Editor(facts.model))


def test_activations_are_asked_for(nets: Any) -> None:
    facts = nets.facts(chain(nets))
    for criterion in ("activation-mean", "activation-std", "apoz"):
        owner = Prune(criterion)
        with pytest.raises(UsageError, match="--data"):
            offers(owner, facts)
