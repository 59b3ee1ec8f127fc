"""Norms of filters, weight by weight, and chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.plan.saliency.criteria import CRITERIA

Array = np.ndarray


def slow_norm(weights: list[float], norm: str) -> float:
    if norm == "l1":
        return sum(abs(w) for w in weights)
    squares = sum(w * w for w in weights)
    if norm == "l2":
        return squares**0.5
    return squares / len(weights) if weights else 0.0


def conv_filter(weight: Array, node: onnx.NodeProto, channel: int, gone: set[int]) -> list[float]:
    """Every weight that makes one output channel of a Conv from inputs that are left."""
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    outputs, inner = weight.shape[:2]
    mine = channel // (outputs // group)
    return [
        float(w)
        for place in range(inner)
        for w in weight[channel, place].ravel()
        if mine * inner + place not in gone
    ]


def transposed_filter(
    weight: Array, node: onnx.NodeProto, channel: int, gone: set[int]
) -> list[float]:
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    inputs, outer = weight.shape[:2]
    mine, place = divmod(channel, outer)
    inner = inputs // group
    return [
        float(w)
        for source in range(mine * inner, (mine + 1) * inner)
        for w in weight[source, place].ravel()
        if source not in gone
    ]


def dense_filter(weight: Array, node: onnx.NodeProto, channel: int, gone: set[int]) -> list[float]:
    rows = any(a.name == "transB" and a.i for a in node.attribute)
    matrix = weight if rows else weight.T
    return [float(w) for i, w in enumerate(matrix[channel]) if i not in gone]


FILTERS = {
    "Conv": conv_filter,
    "ConvTranspose": transposed_filter,
    "Gemm": dense_filter,
    "MatMul": dense_filter,
}

# The layer under test is 'layer', behind 'first' and in front of 'last'.
LAYERS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "Conv": ("Conv <kernel_shape = [3, 2]> (a, w)", {"w": (5, 6, 3, 2), "v": (4, 5, 1, 1)}),
    "Conv, equal extents": ("Conv <kernel_shape = [2, 2]> (a, w)",
                            {"w": (6, 6, 2, 2), "v": (6, 6, 1, 1)}),
    "grouped": ("Conv <kernel_shape = [1, 2], group = 2> (a, w)",
                {"w": (8, 3, 1, 2), "v": (4, 8, 1, 1)}),
    "depthwise": ("Conv <kernel_shape = [3, 3], group = 6> (a, w)",
                  {"w": (6, 1, 3, 3), "v": (4, 6, 1, 1)}),
    "ConvTranspose": ("ConvTranspose <kernel_shape = [3, 2]> (a, w)",
                      {"w": (6, 5, 3, 2), "v": (4, 5, 1, 1)}),
    "ConvTranspose, grouped": ("ConvTranspose <kernel_shape = [1, 2], group = 2> (a, w)",
                               {"w": (6, 4, 1, 2), "v": (4, 8, 1, 1)}),
}  # fmt: skip
DENSES: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "Gemm, transB=1": ("Gemm <transB = 1> (a, w, b)", {"w": (5, 6), "b": (5,)}),
    "Gemm, transB=0": ("Gemm (a, w, b)", {"w": (6, 5), "b": (5,)}),
    "MatMul": ("MatMul (a, w)", {"w": (6, 5)}),
    "MatMul, equal extents": ("MatMul (a, w)", {"w": (6, 6)}),
}


def network(nets: Any, kind: str) -> onnx.ModelProto:
    if kind in LAYERS:
        layer, shapes = LAYERS[kind]
        text = f"""net (float[N, 3, 6, 7] x) => (float[N, C, H, W] y) {{
            [first] a = Conv <kernel_shape = [1, 1]> (x, u)
            [layer] b = {layer}
            [relu] c = Relu (b)
            [last] y = Conv <kernel_shape = [1, 1]> (c, v) }}"""
        return nets.build(text, u=(6, 3, 1, 1), **shapes)
    layer, shapes = DENSES[kind]
    text = f"""net (float[N, 3] x) => (float[N, 4] y) {{
        [first] a = MatMul (x, u)
        [layer] c = {layer}
        [relu] d = Relu (c)
        [last] y = MatMul (d, v) }}"""
    width = 6 if "equal" in kind else 5
    return nets.build(text, u=(3, 6), v=(width, 4), **shapes)


@pytest.mark.parametrize("norm", ["l2", "l1", "min"])
@pytest.mark.parametrize("gone", [(), (1, 4)], ids=["whole", "two inputs gone"])
@pytest.mark.parametrize("kind", [*LAYERS, *DENSES])
def test_weight(nets: Any, ask: Any, kind: str, gone: tuple[int, ...], norm: str) -> None:
    """The filter of every output channel, over the input channels that are left."""
    facts = nets.facts(network(nets, kind))
    node = facts.view.nodes["layer"]
    weight = facts.view.array64(node.input[1])
    lane = facts.coupling().lanes["a"]
    group = facts.coupling().group("first")
    # Channels of a group may lie at several places (grouped convolutions keep groups even).
    left_out = {group.channels[i] for i in gone if i < group.width}
    missing = {at for at, c in enumerate(lane.classes.tolist()) if c in left_out}
    removed = {"first": tuple(i for i in gone if i < group.width)} if gone else {}
    found = CRITERIA["weight"].score(ask(facts, removed, norm=norm))["layer"]
    expected = [
        slow_norm(FILTERS[node.op_type](weight, node, channel, missing), norm)
        for channel in range(len(found))
    ]
    assert len(found) == (facts.shape(node.output[0])[1])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)
    assert bool(gone) == bool(missing)


def test_the_weight_of_a_quantised_layer_is_what_it_stands_for(nets: Any, ask: Any) -> None:
    """Behind DequantizeLinear, per axis: (q - zero) scale."""
    text = """net (float[N, 3, 4, 5] x) => (float[N, 2, 4, 5] y) {
        [read] w = DequantizeLinear <axis = 0> (q, scale, zero)
        [layer] a = Conv <kernel_shape = [1, 1]> (x, w)
        [last] y = Conv <kernel_shape = [1, 1]> (a, v) }"""
    generator = np.random.default_rng(2)
    q = generator.integers(-127, 128, (4, 3, 1, 1)).astype(np.int8)
    scale = np.float32([0.5, 0.01, 2.0, 0.125])
    zero = np.int8([3, -7, 0, 11])
    model = nets.build(text, q=q, scale=scale, zero=zero, v=(2, 4, 1, 1))
    found = CRITERIA["weight"].score(ask(nets.facts(model), norm="l1"))["layer"]
    expected = [
        float(scale[o]) * sum(abs(int(q[o, i, 0, 0]) - int(zero[o])) for i in range(3))
        for o in range(4)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_random(nets: Any, ask: Any) -> None:
    """The same for the same seed, whatever the weights; other numbers for every layer and seed."""
    one = CRITERIA["random"].score(ask(nets.facts(network(nets, "Conv, equal extents")), seed=7))
    other = nets.facts(network(nets, "Conv, equal extents"))
    for tensor in other.model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor) + 1
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    again = CRITERIA["random"].score(ask(other, seed=7))
    third = CRITERIA["random"].score(ask(other, seed=8))
    assert set(one) == {"first", "layer"}
    for layer, scores in one.items():
        assert np.array_equal(scores, again[layer])
        assert not np.isin(scores, third[layer]).any()
        assert ((scores >= 0) & (scores < 1)).all()
    assert not np.isin(one["first"], one["layer"]).any()
