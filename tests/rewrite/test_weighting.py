"""Factors fitted by what the network's answer sees of their errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress as oc
from onnxcompress.analyse.linear import linear_layer
from onnxcompress.errors import GradientError
from onnxcompress.graph.view import GraphView
from onnxcompress.rewrite import mending
from onnxcompress.rewrite.weighting import DAMPING, fishers, root_of

Array = np.ndarray
DENSE = "net (float[N, 8] x) => (float[N, 6] y) {{ {} [r] y = Sigmoid (a) }}"
WHOLE = "[c] a = Gemm <transB = 1> (x, w, b)"
FACTORS = "[core] m = MatMul (x, k) [out] a = Gemm <transB = 1> (m, v, b)"
PERCEPTRON = """net (float[N, 6] x) => (float[N, 4] y) {
    [one] a = Gemm <transB = 1> (x, w1, b1) [r] c = Relu (a)
    [two] y = MatMul (c, w2) }"""


def networks(nets: Any) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    before = nets.build(DENSE.format(WHOLE), seed=1, w=(6, 8), b=(6,))
    after = nets.build(DENSE.format(FACTORS), seed=2, k=(8, 3), v=(6, 3), b=(6,))
    bias = next(t for t in before.graph.initializer if t.name == "b")
    next(t for t in after.graph.initializer if t.name == "b").CopyFrom(bias)
    return before, after


def information(seed: int = 5) -> Array:
    """Some directions of six matter more than others."""
    mix = np.random.default_rng(seed).standard_normal((6, 6)) * np.geomspace(1.0, 0.05, 6)
    return np.asarray(mix @ mix.T)


def product(bench: Any, model: onnx.ModelProto) -> Array:
    return np.asarray(bench.constant(model, "out", 1) @ bench.constant(model, "core", 1).T)


def test_factors_are_best_in_the_metric_of_the_information(
    nets: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L'^-1 U U' L' B, U the principal components of L' B x: by rows, and by the metric itself."""
    monkeypatch.setattr(mending, "TOLERATED", 0.0)
    before, after = networks(nets)
    feeds = nets.samples(before, 300)
    fisher = information()
    found = bench.repaired(before, after, feeds, fisher={"a": fisher})
    plain = bench.repaired(before, after, feeds)
    (done,) = found.mended
    metric = fisher / (np.trace(fisher) / 6) + DAMPING * np.eye(6)
    x = feeds["x"].astype(np.float64)
    centred = x - x.mean(axis=0)
    weight, offset = bench.constant(before, "c", 1), bench.constant(before, "c", 2)

    def lost(matrix: Array, metric: Array) -> float:
        errors = centred @ (weight - matrix).T
        return float(np.einsum("nh,hk,nk->", errors, metric, errors)) / len(errors)

    ours, other = product(bench, found.model), product(bench, plain.model)
    assert lost(ours, metric) < 0.9 * lost(other, metric)
    assert lost(ours, np.eye(6)) > lost(other, np.eye(6))
    # What is lost cannot be less than the last eigenvalues of the weighted answers' covariance.
    # The pull to the old weights, as strong as was chosen, leaves B a little beside `weight`.
    full, _ = bench.ridge(x, x @ weight.T + offset, product(bench, after), done.shrinkage)
    root = np.linalg.cholesky(metric)
    answers = centred @ full.T @ root
    basis = np.linalg.svd(answers, full_matrices=False)[2][:3]
    expected = np.linalg.solve(root.T, basis.T @ basis @ root.T @ full)
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    bias = offset + (weight - ours) @ x.mean(axis=0)
    np.testing.assert_allclose(bench.constant(found.model, "out", 2), bias, atol=1e-5)


def test_layers_that_are_whole_do_not_see_it(nets: Any, bench: Any) -> None:
    """Every answer of a whole layer is solved by itself."""
    before, _ = networks(nets)
    noise = np.random.default_rng(3).standard_normal((6, 8)) / 3
    weight = (bench.constant(before, "c", 1) + noise).astype(np.float32)
    result = bench.variant(before, w=weight)
    feeds = nets.samples(before, 100)
    one = bench.repaired(before, result, feeds, fisher={"a": information()})
    other = bench.repaired(before, result, feeds)
    assert one.model.SerializeToString() == other.model.SerializeToString()


def test_information_by_hand(nets: Any, kit: Any) -> None:
    """A classifier's F in its scores is E[diag(p) - p p'], and J'F J in front of a layer."""
    model = nets.build(PERCEPTRON, w1=(5, 6), b1=(5,), w2=(5, 4))
    feeds = nets.samples(model, 1000)
    found = fishers(nets.facts(model, feeds))
    assert set(found) == {"a", "y"}
    (scores,) = kit.run(model, feeds)
    wide = scores.astype(np.float64)
    p = np.exp(wide - wide.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    each = np.einsum("ni,ij->nij", p, np.eye(4)) - np.einsum("ni,nj->nij", p, p)
    # One class is drawn for every sample: entries spread by up to 0.5 / sqrt(1000).
    np.testing.assert_allclose(found["y"], each.mean(axis=0), atol=0.05)
    view = GraphView(model)
    hidden = feeds["x"].astype(np.float64) @ view.array64("w1").T + view.array64("b1")
    slopes = (hidden > 0)[:, :, np.newaxis] * view.array64("w2")
    expected = np.einsum("nij,njk,nlk->il", slopes, each, slopes) / len(slopes)
    np.testing.assert_allclose(found["a"], expected, atol=0.1 * np.abs(expected).max())


def test_root_of_groups_and_of_channels_that_are_left(nets: Any) -> None:
    model = nets.build(
        "net (float[N, 4, 5, 5] x) => (float[N, 6, h, v] y) { [c] y = Conv <group = 2> (x, w) }",
        w=(6, 2, 3, 3),
    )
    layer = linear_layer(model.graph.node[0], GraphView(model))
    wide = np.random.default_rng(1).standard_normal((8, 8))
    fisher, kept = wide @ wide.T, np.array([0, 2, 3, 4, 6, 7])
    root = root_of({"y": fisher}, layer, kept)
    assert root is not None
    for group, channels in enumerate(([0, 2, 3], [4, 6, 7])):
        block = fisher[np.ix_(channels, channels)]
        level = np.trace(block) / 3
        expected = block / level + DAMPING * np.eye(3)
        np.testing.assert_allclose(root[group] @ root[group].T, expected, rtol=1e-12)
        np.testing.assert_array_equal(root[group], np.tril(root[group]))
    assert root_of({}, layer, kept) is None
    assert root_of({"y": np.zeros((8, 8))}, layer, kept) is None


@pytest.mark.usefixtures("quick")
def test_a_job_by_fisher_information(nets: Any) -> None:
    model = nets.build(PERCEPTRON, w1=(16, 6), b1=(16,), w2=(16, 4))
    feeds = nets.samples(model, 300)

    def made(repair: str) -> Any:
        return oc.compress(
            model,
            data=feeds,
            passes=["svd:rank=3"],
            gate=False,
            repair=repair,
            max_drop=100.0,
            min_snr=-100.0,
            threads=1,
        )

    fisher, plain = made("fisher"), made("refit")
    assert fisher.report["repair"]["method"] == "fisher"
    assert fisher.model.SerializeToString() != plain.model.SerializeToString()
    assert fisher.model.SerializeToString() == made("fisher").model.SerializeToString()


@pytest.mark.usefixtures("quick")
def test_without_an_adjoint_it_is_refused(nets: Any) -> None:
    """Nothing is fitted in another way silently."""
    text = PERCEPTRON.replace("c = Relu (a)", "c = Tan (a)")
    model = nets.build(text, w1=(16, 6), b1=(16,), w2=(16, 4))
    with pytest.raises(GradientError, match="Tan"):
        oc.compress(
            model,
            data=nets.samples(model, 300),
            passes=["svd:rank=3"],
            gate=False,
            repair="fisher",
            max_drop=100.0,
            min_snr=-100.0,
            threads=1,
        )
