"""Low-rank layers repaired whole: what they multiply out to is reduced-rank regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.graph.view import GraphView
from onnxcompress.numerics.data_low_rank import data_svd
from onnxcompress.rewrite import mending
from onnxcompress.rewrite.units import Unit, factored_layers

Array = np.ndarray
CONV = "net (float[N, 5, 6, 7] x) => (float[N, 4, h, v] y) {{ {} [r] y = Sigmoid (a) }}"
DENSE = "net (float[N, 8] x) => (float[N, 6] y) {{ {} [r] y = Sigmoid (a) }}"
SPATIAL = "strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]"
# The layer as it was; the factors; extents of the factors; which is into, core, out.
ROWS: dict[str, tuple[str, str, str, dict[str, Any], tuple[str, ...]]] = {
    "triple": (
        CONV,
        f"[c] a = Conv <{SPATIAL}> (x, w, b)",
        f"[in] m = Conv (x, u) [core] n = Conv <{SPATIAL}> (m, k) [out] a = Conv (n, v, b)",
        {"w": (4, 5, 3, 2), "b": (4,), "u": (2, 5, 1, 1), "k": (3, 2, 3, 2), "v": (4, 3, 1, 1)},
        ("in", "core", "out"),
    ),
    "in and core": (
        CONV,
        f"[c] a = Conv <{SPATIAL}> (x, w)",
        f"[in] m = Conv (x, u) [core] a = Conv <{SPATIAL}> (m, k)",
        {"w": (4, 5, 3, 2), "u": (2, 5, 1, 1), "k": (4, 2, 3, 2)},
        ("in", "core", ""),
    ),
    "core and out": (
        CONV,
        f"[c] a = Conv <{SPATIAL}> (x, w)",
        f"[core] m = Conv <{SPATIAL}> (x, k) [out] a = Conv (m, v)",
        {"w": (4, 5, 3, 2), "k": (2, 5, 3, 2), "v": (4, 2, 1, 1)},
        ("", "core", "out"),
    ),
    "pointwise, strided": (
        CONV,
        "[c] a = Conv <strides = [2, 2]> (x, w, b)",
        "[core] m = Conv <strides = [2, 2]> (x, k) [out] a = Conv (m, v, b)",
        {"w": (4, 5, 1, 1), "b": (4,), "k": (2, 5, 1, 1), "v": (4, 2, 1, 1)},
        ("", "core", "out"),
    ),
    "gemm": (
        DENSE,
        "[c] a = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)",
        "[core] m = MatMul (x, k) [out] a = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (m, v, b)",
        {"w": (6, 8), "b": (6,), "k": (8, 3), "v": (6, 3)},
        ("", "core", "out"),
    ),
    "matmul": (
        DENSE,
        "[c] a = MatMul (x, w)",
        "[core] m = MatMul (x, k) [out] a = MatMul (m, v)",
        {"w": (8, 6), "k": (8, 3), "v": (3, 6)},
        ("", "core", "out"),
    ),
}


def pair(nets: Any, name: str) -> tuple[onnx.ModelProto, onnx.ModelProto, Unit]:
    head, was, factors, constants, _ = ROWS[name]
    models = []
    for text in (was, factors):
        names = {n for n in constants if f" {n})" in text or f" {n}," in text}
        drawn = {n: v for n, v in constants.items() if n in names}
        models.append(nets.build(head.format(text), seed=len(models) + 1, **drawn))
    before, after = models
    if "b" in constants:
        # The bias goes with the last factor as it was.
        bias = next(t for t in before.graph.initializer if t.name == "b")
        next(t for t in after.graph.initializer if t.name == "b").CopyFrom(bias)
    found = factored_layers(GraphView(before), GraphView(after))
    (row,) = found.values()
    return before, after, row


def inputs(nets: Any, model: onnx.ModelProto, count: int = 200) -> dict[str, Array]:
    """Channels of different size that depend on each other, about means that are not zero."""
    (x,) = nets.samples(model, count).values()
    channels = x.shape[1]
    mix = np.random.default_rng(4).standard_normal((channels, channels))
    mix *= np.geomspace(1.0, 0.2, channels)
    return {"x": (np.einsum("nc...,cd->nd...", x, mix.T) + 0.5).astype(np.float32)}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_factors_are_found(nets: Any, tap: Any, name: str) -> None:
    before, after, row = pair(nets, name)
    parts = (row.into, row.core, row.out)
    assert tuple(part.node if part is not None else "" for part in parts) == ROWS[name][4]
    whole = next(n for n in before.graph.node if n.name == "c")
    assert (row.whole.input, row.whole.output) == (whole.input[0], whole.output[0])
    # The product in place of the original weight answers what the factors answer.
    view = GraphView(after)
    product = row.product(view)
    old = GraphView(before).array("w")
    from onnxcompress.analyse.linear import linear_layer

    layer = linear_layer(whole, GraphView(before))
    assert product.shape == (1, layer.outputs, layer.features)
    stored = layer.stored(product, old)
    one = onnx.ModelProto()
    one.CopyFrom(before)
    next(t for t in one.graph.initializer if t.name == "w").CopyFrom(
        onnx.numpy_helper.from_array(stored, "w")
    )
    feeds = nets.samples(before, 5)
    np.testing.assert_allclose(tap(one, "a", feeds), tap(after, "a", feeds), atol=1e-4)
    matrices = [part.matrices(view.array(part.spec.weight)) for part in parts if part is not None]
    np.testing.assert_allclose(row.multiplied(matrices), product, atol=1e-12)


def test_what_is_no_row_of_factors(nets: Any) -> None:
    """A bias in between, another reader, groups, a tensor that was there: each layer by itself."""
    head = "net (float[N, 4, 6, 7] x) => (float[N, 4, h, v] y) {{ {} }}"
    shapes = {"w": (4, 4, 1, 1), "u": (4, 4, 1, 1), "v": (4, 4, 1, 1), "b": (4,)}
    shapes["k3"] = (4, 4, 3, 3)
    before = nets.build(head.format("[c] a = Conv (x, w) [r] y = Relu (a)"), **shapes)
    for text in (
        "[one] m = Conv (x, u, b) [two] a = Conv (m, v) [r] y = Relu (a)",
        "[one] m = Conv (x, u) [two] k = Conv (m, v) [sum] a = Add (k, m) [r] y = Relu (a)",
        "[one] m = Conv (x, u) [bend] k = Relu (m) [two] a = Conv (k, v) [r] y = Relu (a)",
        "[one] a = Conv (x, u) [two] m = Conv (a, v) [r] y = Relu (m)",
        "[one] m = Conv <strides = [2, 2]> (x, u) [two] a = Conv (m, k3) [r] y = Relu (a)",
        "[one] m = Conv (x, k3) [two] a = Conv <strides = [2, 2]> (m, v) [r] y = Relu (a)",
        "[one] m = Conv <pads = [1, 1, 1, 1]> (x, u) [two] a = Conv (m, k3) [r] y = Relu (a)",
    ):
        after = nets.build(head.format(text), **shapes)
        assert factored_layers(GraphView(before), GraphView(after)) == {}
    grouped = nets.build(
        head.format("[one] m = Conv <group = 2> (x, u) [two] a = Conv (m, v) [r] y = Relu (a)"),
        **{**shapes, "u": (4, 2, 1, 1)},
    )
    assert factored_layers(GraphView(before), GraphView(grouped)) == {}


def rows_of(row: Unit, tap: Any, model: onnx.ModelProto, feeds: dict[str, Array]) -> Any:
    """(x, y) of the layer as it was; patches by explicit loops."""
    answer, x = tap(model, "a", feeds), feeds["x"].astype(np.float64)
    if not row.whole.convolves:
        return x, answer
    (kh, kw), spec = row.whole.spec.kernel, row.whole.spec
    (s0, s1), (d0, d1), (top, left, bottom, right) = spec.strides, spec.dilations, spec.pads
    padded = np.pad(x, [(0, 0), (0, 0), (top, bottom), (left, right)])
    places = [
        (n, i, j)
        for n in range(len(x))
        for i in range(answer.shape[2])
        for j in range(answer.shape[3])
    ]
    patches = np.array(
        [
            padded[
                n,
                :,
                i * s0 : i * s0 + (kh - 1) * d0 + 1 : d0,
                j * s1 : j * s1 + (kw - 1) * d1 + 1 : d1,
            ].ravel()
            for n, i, j in places
        ]
    )
    return patches, np.array([answer[n, :, i, j] for n, i, j in places])


def with_ridge(covariance: Array, shrinkage: float) -> Array:
    """Factors are drawn to the fitted weight as that is drawn to the old one."""
    size = len(covariance)
    return np.asarray(covariance + shrinkage * np.trace(covariance) / size * np.eye(size))


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("name", ROWS)
def test_repaired_factors_are_reduced_rank_regression(
    nets: Any, bench: Any, tap: Any, monkeypatch: pytest.MonkeyPatch, name: str, *, free: bool
) -> None:
    """U U' B: B by ridge regression on the rows, U the principal components of what it answers."""
    if free:
        monkeypatch.setattr(mending, "TOLERATED", 0.0)
    before, after, row = pair(nets, name)
    feeds = inputs(nets, before)
    found = bench.repaired(before, after, feeds)
    (done,) = found.mended
    assert done.node == row.last.node
    assert done.method == "refit"
    assert done.after < 0.8 * done.before
    x, y = rows_of(row, tap, before, feeds)
    biased = row.last.can_hold_bias
    view = GraphView(found.model)
    again = factored_layers(GraphView(before), view)
    (new,) = again.values()
    product = new.product(view)[0]
    prior = row.product(GraphView(after))[0]
    middle = x.mean(axis=0) if biased else np.zeros(x.shape[1])
    covariance = with_ridge((x - middle).T @ (x - middle) / len(x), done.shrinkage)
    if biased:
        full, _ = bench.ridge(x, y, prior, done.shrinkage)
    else:
        weight = np.sqrt(done.shrinkage * np.square(x).sum() / x.shape[1])
        left = np.concatenate([x, weight * np.eye(x.shape[1])])
        right = np.concatenate([y, weight * prior.T])
        full = np.linalg.lstsq(left, right, rcond=None)[0].T

    def lost(matrix: Array) -> float:
        return float(np.trace((full - matrix) @ covariance @ (full - matrix).T))

    whole = lost(0 * full)
    if row.into is None:
        rank = row.core.outputs
        expected = data_svd(full, covariance, rank).reconstruct()
        values, vectors = np.linalg.eigh(full @ covariance @ full.T)
        basis = vectors[:, ::-1][:, :rank]
        np.testing.assert_allclose(expected, basis @ basis.T @ full, atol=1e-9)
        # Factors are stored in float32.
        np.testing.assert_allclose(product, expected, atol=2e-5)
        assert lost(product) - values[:-rank].sum() <= 1e-6 * whole
    else:
        # No closed form: nothing near by is better in the metric of the data.
        generator = np.random.default_rng(2)
        parts = [p for p in (new.into, new.core, new.out) if p is not None]
        own = [p.matrices(view.array(p.spec.weight)) for p in parts]
        assert lost(new.multiplied(own)[0]) < lost(prior)
        for _ in range(10):
            moved = [m + 0.03 * np.abs(m).max() * generator.standard_normal(m.shape) for m in own]
            assert lost(new.multiplied(moved)[0]) > lost(product)
    if biased:
        bias = row.last.spec.beta if not row.whole.convolves else 1.0
        expected_bias = y.mean(axis=0) - product @ x.mean(axis=0)
        stored = bench.constant(found.model, row.last.node, 2) * bias
        np.testing.assert_allclose(stored, expected_bias, atol=1e-4)
    else:
        assert len(view.nodes[row.last.node].input) == 2


@pytest.mark.parametrize("name", ROWS)
def test_factors_of_a_known_matrix(nets: Any, name: str) -> None:
    """With moments that are known, to 1e-6 of all that there is to lose."""
    _, _, row = pair(nets, name)
    generator = np.random.default_rng(8)
    matrix = generator.standard_normal((row.whole.outputs, row.whole.features))
    mix = generator.standard_normal((row.whole.features,) * 2)
    covariance = mix @ mix.T
    given = matrix[np.newaxis], covariance[np.newaxis]
    product = row.multiplied(row.factors(*given, sweeps=3))[0]
    rest = matrix - product
    lost = float(np.trace(rest @ covariance @ rest.T))
    values = np.linalg.eigvalsh(matrix @ covariance @ matrix.T)
    rank = row.out.features if row.out is not None else row.whole.outputs
    bound = float(values[: len(values) - rank].sum())
    if row.into is None:
        assert lost == pytest.approx(bound, abs=1e-6 * values.sum())
    else:
        assert bound * (1 - 1e-9) <= lost < values.sum()
    shapes = [part.shape[1:] for part in row.factors(*given, sweeps=0)]
    layers = [part for part in (row.into, row.core, row.out) if part is not None]
    assert shapes == [(layer.outputs, layer.features) for layer in layers]


def test_groups_are_factored_by_themselves(nets: Any, bench: Any, tap: Any) -> None:
    """Each group's factors are those of its own channels, at one shrinkage for all."""
    spatial = "group = 2, strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]"
    head = "net (float[N, 6, 6, 7] x) => (float[N, 8, h, v] y) {{ {} [r] y = Sigmoid (a) }}"
    before = nets.build(
        head.format(f"[c] a = Conv <{spatial}> (x, w, b)"), seed=1, w=(8, 3, 3, 2), b=(8,)
    )
    after = nets.build(
        head.format(f"[core] m = Conv <{spatial}> (x, k) [out] a = Conv <group = 2> (m, v, b)"),
        seed=2,
        k=(4, 3, 3, 2),
        v=(8, 2, 1, 1),
        b=(8,),
    )
    feeds = inputs(nets, before)
    (row,) = factored_layers(GraphView(before), GraphView(after)).values()
    found = bench.repaired(before, after, feeds)
    (done,) = found.mended
    assert done.method == "refit"
    (new,) = factored_layers(GraphView(before), GraphView(found.model)).values()
    product, prior = new.product(GraphView(found.model)), row.product(GraphView(after))
    patches, answers = rows_of(row, tap, before, feeds)
    for group in (0, 1):
        x, y = patches[:, 18 * group : 18 * group + 18], answers[:, 4 * group : 4 * group + 4]
        full, _ = bench.ridge(x, y, prior[group], done.shrinkage)
        metric = with_ridge(np.cov(x.T, bias=True), done.shrinkage)
        expected = data_svd(full, metric, 2).reconstruct()
        np.testing.assert_allclose(product[group], expected, atol=2e-5)


def test_lossless_factors_stay(nets: Any, bench: Any) -> None:
    """Factors that multiply out to the weight leave nothing to repair."""
    before = pair(nets, "gemm")[0]
    left, values, right = np.linalg.svd(bench.constant(before, "c", 1), full_matrices=False)
    exact = nets.build(
        DENSE.format(ROWS["gemm"][2]),
        k=right.T.astype(np.float32),
        v=(left * values).astype(np.float32),
        b=bench.constant(before, "c", 2).astype(np.float32),
    )
    found = bench.repaired(before, exact, inputs(nets, before))
    assert [m.method for m in found.mended] == ["kept"]
    np.testing.assert_array_equal(
        bench.constant(found.model, "out", 1), bench.constant(exact, "out", 1)
    )
