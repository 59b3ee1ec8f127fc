"""Both passes on single layers of every geometry, against arithmetic done without them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.analyse.facts import analyse
from onnxcompress.load.canonical import canonicalise
from onnxcompress.plan.contract import Candidate, NoCandidate, Site
from onnxcompress.plan.options import collect
from onnxcompress.plan.registry import make_pass
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.runtime import Execution, open_session

# (out, in, sizes, kernel): all extents distinct, and all equal.
DISTINCT = (10, 6, (9, 8), (3, 2))
EQUAL = (4, 4, (4, 4), (4, 4))
ONE = Execution(threads=1)

GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"pads": [1, 1, 1, 1]},
    "asymmetric": {"pads": [1, 0, 2, 1]},
    "stride": {"strides": [2, 2], "pads": [1, 1, 1, 1]},
    "mixed_stride_dilation": {"strides": [2, 1], "dilations": [1, 2], "pads": [2, 1, 2, 3]},
    "same_upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "same_lower": {"auto_pad": "SAME_LOWER"},
    "valid": {"auto_pad": "VALID"},
}


def conv_model(
    extents: tuple[int, int, tuple[int, ...], tuple[int, ...]],
    attributes: Mapping[str, Any],
    *,
    group: int = 1,
    bias: bool = True,
    dynamic: bool = False,
    dtype: type = np.float32,
) -> onnx.ModelProto:
    out, inputs, sizes, kernel = extents
    generator = np.random.default_rng(5)
    weight = generator.standard_normal((out, inputs // group, *kernel)).astype(dtype)
    tensors = [numpy_helper.from_array(weight, "w")]
    names = ["x", "w"]
    if bias:
        tensors.append(numpy_helper.from_array(generator.standard_normal(out).astype(dtype), "b"))
        names.append("b")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("Conv", names, ["y"], name="conv", group=group, **attributes)
    dims: list[Any] = ["N", inputs, *(["H", "W"] if dynamic else sizes)]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, dims)],
        [helper.make_tensor_value_info("y", kind, ["N", out, *[None] * len(sizes)])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    with open_session(model, ONE) as session:
        return np.asarray(session.run(feeds)[0])


def rewritten(
    model: onnx.ModelProto, sizes: Mapping[str, tuple[int, ...]], name: str, **options: Any
) -> tuple[onnx.ModelProto, Candidate[Any]]:
    """The model with the last (tightest) candidate of its only site applied."""
    canonical = canonicalise(model).model
    owner = make_pass(name, **options)
    offers = collect(analyse(canonical, sizes), [owner])
    assert len(offers.sites) == 1, offers.refusals
    candidate = offers.sites[0][-1]
    return rewrite(canonical, [candidate], {name: owner}, strict=True).model, candidate


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    difference = found.astype(np.float64) - expected.astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


def replace_weight(model: onnx.ModelProto, weight: np.ndarray) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    stored = next(t for t in changed.graph.initializer if t.name == "w")
    stored.CopyFrom(numpy_helper.from_array(weight, "w"))
    return changed


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("extents", [DISTINCT, EQUAL], ids=["distinct", "equal"])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_full_triple_is_exact(
    geometry: str,
    extents: tuple[int, int, tuple[int, ...], tuple[int, ...]],
    group: int,
    bias: bool,
) -> None:
    model = conv_model(extents, GEOMETRIES[geometry], group=group, bias=bias)
    x = np.random.default_rng(6).standard_normal((2, extents[1], *extents[2])).astype(np.float32)
    result, _ = rewritten(model, {"x": x.shape}, "tucker2", rank="full")
    assert [node.op_type for node in result.graph.node] == ["Conv"] * 3
    # Three float32 convolutions of at most 64 terms each instead of one: some 1e-7 per term.
    assert relative(run(result, {"x": x}), run(model, {"x": x})) < 2e-6


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("size", [(9, 8), (7, 10)])
def test_auto_pad_stays_where_sizes_are_dynamic(mode: str, size: tuple[int, int]) -> None:
    model = conv_model(DISTINCT, {"auto_pad": mode, "strides": [2, 1]}, dynamic=True)
    result, _ = rewritten(model, {"x": (1, 6, 9, 8)}, "tucker2", rank="full")
    x = np.random.default_rng(7).standard_normal((1, 6, *size)).astype(np.float32)
    assert relative(run(result, {"x": x}), run(model, {"x": x})) < 2e-6


@pytest.mark.parametrize("ranks", ["4x3", "10x3", "4x6"])
@pytest.mark.parametrize("geometry", ["asymmetric", "mixed_stride_dilation"])
def test_truncated_triple_equals_conv_with_the_reconstructed_weight(
    ranks: str, geometry: str
) -> None:
    model = conv_model(DISTINCT, GEOMETRIES[geometry])
    x = np.random.default_rng(8).standard_normal((1, 6, 9, 8)).astype(np.float32)
    result, candidate = rewritten(model, {"x": x.shape}, "tucker2", rank=ranks)
    constants = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    found = constants["conv_tucker_core"].astype(np.float64)
    if "conv_tucker_in" in constants:
        found = np.einsum("abhw,bs->ashw", found, constants["conv_tucker_in"][:, :, 0, 0])
    if "conv_tucker_out" in constants:
        found = np.einsum("ta,ashw->tshw", constants["conv_tucker_out"][:, :, 0, 0], found)
    # A rank that is full needs no factor: Tucker-1.
    assert ("conv_tucker_out" in constants) == (candidate.setting.rank_out < 10)
    assert ("conv_tucker_in" in constants) == (candidate.setting.rank_in < 6)
    expected = run(replace_weight(model, found.astype(np.float32)), {"x": x})
    assert relative(run(result, {"x": x}), expected) < 2e-6
    weight = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    measured = ((weight - found) ** 2).sum() / (weight**2).sum()
    # The promise is the truncated HOSVD's error; the iteration does at least as well, and not
    # absurdly better on noise.
    assert 0.5 * candidate.damage < measured <= candidate.damage + 1e-6


@pytest.mark.parametrize("spatial", [1, 3])
def test_other_dimensions(spatial: int) -> None:
    extents = (6, 4, (7, 6, 5)[:spatial], (3, 2, 2)[:spatial])
    model = conv_model(extents, {"pads": [1] * (2 * spatial)})
    x = np.random.default_rng(9).standard_normal((1, 4, *extents[2])).astype(np.float32)
    result, _ = rewritten(model, {"x": x.shape}, "tucker2", rank="full")
    assert relative(run(result, {"x": x}), run(model, {"x": x})) < 2e-6


@pytest.mark.parametrize(
    "attributes", [{}, {"strides": [2, 1]}, {"pads": [1, 0, 0, 1], "strides": [1, 2]}]
)
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("out", [10, 6])
def test_svd_of_pointwise_convolutions(attributes: dict[str, Any], group: int, out: int) -> None:
    model = conv_model((out, 6, (9, 8), (1, 1)), attributes, group=group)
    x = np.random.default_rng(10).standard_normal((2, 6, 9, 8)).astype(np.float32)
    exact, _ = rewritten(model, {"x": x.shape}, "svd", rank="full")
    assert relative(run(exact, {"x": x}), run(model, {"x": x})) < 2e-6
    rank = 2
    result, candidate = rewritten(model, {"x": x.shape}, "svd", rank=rank)
    weight = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    blocks = weight.reshape(group, out // group, 6 // group)
    best = []
    for block in blocks:
        left, values, right = np.linalg.svd(block, full_matrices=False)
        best.append((left[:, :rank] * values[:rank]) @ right[:rank])
    approximation = np.concatenate(best).reshape(weight.shape)
    expected = run(replace_weight(model, approximation.astype(np.float32)), {"x": x})
    assert relative(run(result, {"x": x}), expected) < 2e-6
    measured = ((weight - approximation) ** 2).sum() / (weight**2).sum()
    assert candidate.damage == pytest.approx(measured, abs=1e-12)


@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("sizes", [(5, 7), (6, 6)], ids=["distinct", "equal"])
def test_svd_of_gemm(trans: int, alpha: float, sizes: tuple[int, int]) -> None:
    rows, columns = sizes
    generator = np.random.default_rng(11)
    weight = generator.standard_normal((columns, rows) if trans else (rows, columns))
    graph = helper.make_graph(
        [
            helper.make_node(
                "Gemm", ["x", "w", "c"], ["y"], name="fc", transB=trans, alpha=alpha, beta=2.0
            )
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", columns])],
        [
            numpy_helper.from_array(weight.astype(np.float32), "w"),
            numpy_helper.from_array(generator.standard_normal(columns).astype(np.float32), "c"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    x = generator.standard_normal((3, rows)).astype(np.float32)
    result, _ = rewritten(model, {"x": x.shape}, "svd", rank="full")
    assert len(result.graph.node) == 2
    assert relative(run(result, {"x": x}), run(model, {"x": x})) < 2e-6


def test_fp16_weights_stay_fp16() -> None:
    model = conv_model(DISTINCT, {}, dtype=np.float16)
    result, _ = rewritten(model, {"x": (1, 6, 9, 8)}, "tucker2", rank="4x3")
    assert {t.data_type for t in result.graph.initializer} == {TensorProto.FLOAT16}


def test_rank_zero_and_full_rank_are_reported() -> None:
    """EVBMF on noise finds nothing, and `energy:1` keeps everything: reasons, not silence."""
    model = canonicalise(conv_model((40, 40, (6, 6), (3, 3)), {})).model
    facts = analyse(model, {"x": (1, 40, 6, 6)})
    noise = collect(facts, [make_pass("tucker2", rank="evbmf")])
    assert not noise.sites
    assert "rank 0" in noise.refusals[0].reason
    everything = collect(facts, [make_pass("tucker2", rank="energy:1")])
    assert not everything.sites
    assert "full rank" in everything.refusals[0].reason
    owner = make_pass("tucker2", rank="evbmf")
    site = next(iter(owner.sites(facts)))
    assert isinstance(site, Site)
    with pytest.raises(NoCandidate):
        owner.candidates(site, facts)
