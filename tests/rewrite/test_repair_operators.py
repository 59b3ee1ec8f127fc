"""Repair of half precision, of operands that are no constants, of Gemm, and beside subgraphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.plan.channels.remove import left_of_lanes, remove_channels


@pytest.mark.usefixtures("free")
def test_half_precision_stays_half(nets: Any, bench: Any, kit: Any) -> None:
    generator = np.random.default_rng(1)
    model = nets.build(
        """net (float16[N, 3, 4, 5] x) => (float16[N, 4, 4, 5] y) {
        [one] a = Conv (x, w1, b1) [r] b = Relu (a) [two] y = Conv (b, w2) }""",
        w1=generator.standard_normal((5, 3, 1, 1)).astype(np.float16),
        b1=generator.standard_normal(5).astype(np.float16),
        w2=generator.standard_normal((4, 5, 1, 1)).astype(np.float16),
    )
    feeds = {"x": generator.standard_normal((80, 3, 4, 5)).astype(np.float16)}
    result = bench.variant(model, w2=generator.standard_normal((4, 5, 1, 1)).astype(np.float16))
    found = bench.repaired(model, result, feeds)
    assert {t.data_type for t in found.model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert bench.relative(kit, model, found.model, feeds) < 0.01


def test_weights_that_are_computed_are_left(nets: Any, bench: Any) -> None:
    model = nets.build(
        """net (float[N, 3, 4, 5] x) => (float[N, 4, 4, 5] y) {
        [one] a = Conv (x, w1) [r] b = Relu (a) [bend] v = Sigmoid (w2)
        [two] c = Conv (b, v) [q] d = Relu (c) [three] y = Conv (d, w3) }""",
        w1=(5, 3, 1, 1),
        w2=(4, 5, 1, 1),
        w3=(4, 4, 1, 1),
    )
    feeds = nets.samples(model, 60)
    result = bench.variant(model, w1=np.random.default_rng(1).random((5, 3, 1, 1), np.float32))
    for method in ("refit", "scale"):
        found = bench.repaired(model, result, feeds, method=method)
        assert list(found.left) == ["two"]
        assert "run time" in found.left["two"]
        assert set(bench.by_node(found)) == {"one", "three"}


def test_biases_that_are_computed_are_left(nets: Any, bench: Any) -> None:
    model = nets.build(
        """net (float[N, 3, 4, 5] x) => (float[N, 4, 4, 5] y) {
        [one] a = Conv (x, w1) [r] b = Relu (a) [bend] v = Sigmoid (b2)
        [two] c = Conv (b, w2, v) [q] y = Relu (c) }""",
        w1=(5, 3, 1, 1),
        w2=(4, 5, 1, 1),
        b2=(4,),
    )
    result = bench.variant(model, w1=np.random.default_rng(1).random((5, 3, 1, 1), np.float32))
    for method in ("refit", "scale"):
        found = bench.repaired(model, result, nets.samples(model, 60), method=method)
        assert "run time" in found.left["two"]
        assert set(bench.by_node(found)) == {"one"}


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("bias", ["b2", ""])
def test_a_gemm_whose_beta_scales_its_bias(nets: Any, bench: Any, tap: Any, bias: str) -> None:
    """Also where there was none: a bias that is added is multiplied by beta as well."""
    model = nets.build(
        f"""net (float[N, 6] x) => (float[N, 3] y) {{
        [one] a = Gemm <transB = 1> (x, w1, b1) [r] b = Relu (a)
        [two] y = Gemm <alpha = 0.5, beta = 3.0> (b, w2{bias and ", "}{bias}) }}""",
        w1=(5, 6),
        b1=(5,),
        w2=(5, 3),
        **({"b2": (3,)} if bias else {}),
    )
    feeds = nets.samples(model, 300)
    # A unit that is gone leaves a mean behind, which only the bias can make up for.
    coupling = nets.facts(model).coupling()
    gone = {"one": (0, 3)}
    result = remove_channels(model, coupling, gone)
    kept = left_of_lanes(coupling, coupling.classes(gone))
    found = bench.repaired(model, result, feeds, kept)
    done = bench.by_node(found)["two"]
    prior = 0.5 * bench.constant(result, "two", 1).T
    matrix, offset = bench.ridge(
        tap(result, "b", feeds), tap(model, "y", feeds), prior, done.shrinkage
    )
    assert np.abs(offset).min() > 1e-2
    np.testing.assert_allclose(0.5 * bench.constant(found.model, "two", 1).T, matrix, atol=1e-5)
    np.testing.assert_allclose(3 * bench.constant(found.model, "two", 2), offset, atol=1e-5)


@pytest.mark.usefixtures("free")
def test_subgraphs_and_operators_of_other_domains(nets: Any, bench: Any, kit: Any) -> None:
    model = nets.build(
        """net (float[N, 3, 4, 5] x) => (float[N, 4, 4, 5] y) {
        [one] a = Conv (x, w1) [r] b = Relu (a) [two] c = Conv (b, w2) [own] d = Gelu (c)
        [three] e = Conv (d, w3) [s] y = Sigmoid (e) }""",
        w1=(5, 3, 1, 1),
        w2=(4, 5, 1, 1),
        w3=(4, 4, 1, 1),
        yes=np.array(True),
    )
    next(n for n in model.graph.node if n.name == "own").domain = "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))

    def branch(name: str) -> onnx.GraphProto:
        steps = [
            onnx.helper.make_node("Relu", ["b"], [f"{name}1"]),
            onnx.helper.make_node("Neg", [f"{name}1"], [f"{name}2"]),
        ]
        return onnx.helper.make_graph(steps, name, [], [kit.value(f"{name}2", None)])

    node = onnx.helper.make_node(
        "If", ["yes"], ["u"], "if", then_branch=branch("t"), else_branch=branch("e")
    )
    model.graph.node.append(node)
    model.graph.output.append(kit.value("u", ["N", 5, 4, 5]))
    feeds = nets.samples(model, 100)
    noise = np.random.default_rng(1).random((5, 3, 1, 1), np.float32)
    result = bench.variant(model, w1=noise)
    for method in ("refit", "scale"):
        found = bench.repaired(model, result, feeds, method=method)
        assert found.left == {}
        assert set(bench.by_node(found)) == {"one", "two", "three"}
        if method == "refit":
            assert bench.relative(kit, model, found.model, feeds) < 1e-3
