"""Criteria against their definitions, written out channel by channel; where activations are read.

Computations in float64 agree to rounding (1e-12); activations of float32 networks are compared with
those of another float32 session on other batches, so their sums differ by float32 rounding (1e-5).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import UsageError
from onnxcompress.plan.saliency.criteria import CRITERIA
from onnxcompress.plan.saliency.normalise import normalised
from onnxcompress.plan.saliency.question import Question
from onnxcompress.plan.saliency.taps import activation_of
from onnxcompress_passes.channel_ranking import channel_scores

Array = np.ndarray


def ask(facts: Facts, removed: dict[str, tuple[int, ...]] | None = None, **how: Any) -> Question:
    norm, seed = how.get("norm", "l2"), how.get("seed", 0)
    return Question(facts, facts.coupling(), removed or {}, norm, seed)


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
def test_weight(nets: Any, kind: str, gone: tuple[int, ...], norm: str) -> None:
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


def test_the_weight_of_a_quantised_layer_is_what_it_stands_for(nets: Any) -> None:
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


# Activations are read behind normalisation and activation function. `tensor` is where.
TAPS: dict[str, tuple[str, str]] = {
    "nothing behind": ("", "a"),
    "ReLU": ("[n] c = Relu (a)", "c"),
    "BatchNormalization and ReLU": (
        "[n] b = BatchNormalization (a, s, t, m, q)  [r] c = Relu (b)", "c"),
    "Clip": ("[n] c = Clip (a, low, high)", "c"),
    "bias and ReLU": ("[n] b = Add (a, line)  [r] c = Relu (b)", "c"),
    "bias in front": ("[n] b = Add (line, a)  [r] c = Relu (b)", "c"),
    "scaled": ("[n] b = Mul (a, line)  [r] c = LeakyRelu <alpha = 0.1> (b)", "c"),
    "PRelu": ("[n] c = PRelu (a, line)", "c"),
    "pooled": ("[n] b = Relu (a)  [p] c = MaxPool <kernel_shape = [2, 2]> (b)", "b"),
    "Add of two": ("[other] o = Conv <kernel_shape = [1, 1]> (x, z)  [n] b = Add (a, o)"
                   "  [r] c = Relu (b)", "a"),
    "read twice": (
        "[n] b = Relu (a)  [r] c = Tanh (b)  [side] side = Conv <kernel_shape = [1, 1]> (b, v)",
        "b"),
}  # fmt: skip


def tapped(nets: Any, chain: str) -> onnx.ModelProto:
    last = "c" if " c = " in chain else "a"
    side = ", float[N, 4, 6, 7] side" if "side" in chain else ""
    text = f"""net (float[N, 3, 6, 7] x) => (float[N, 4, H, W] y{side}) {{
        [layer] a = Conv <kernel_shape = [1, 1]> (x, w, b0)
        {chain}
        [last] y = Conv <kernel_shape = [1, 1]> ({last}, v) }}"""
    positive = np.float32([0.5, 1.5, 0.25, 2.0, 1.0])
    return nets.build(
        text,
        w=(5, 3, 1, 1),
        z=(5, 3, 1, 1),
        v=(4, 5, 1, 1),
        b0=np.float32([0.3, -0.4, 0.1, 1.0, -1.0]),
        s=positive,
        t=np.float32([0.1, -0.2, 0.3, 0.0, -0.5]),
        m=np.float32([0.2, 0.0, -0.1, 0.4, 0.1]),
        q=positive[::-1].copy(),
        line=np.float32([0.4, -0.6, 0.2, 1.2, -0.1]).reshape(1, 5, 1, 1),
        low=np.float32(0.0),
        high=np.float32(0.7),
    )


@pytest.mark.parametrize(("chain", "tensor"), TAPS.values(), ids=TAPS.keys())
def test_where_activations_are_read(nets: Any, chain: str, tensor: str) -> None:
    facts = nets.facts(tapped(nets, chain))
    assert activation_of(facts.view, facts.coupling(), "layer") == tensor


@pytest.mark.parametrize("kind", ["BatchNormalization and ReLU", "Add of two", "Clip"])
@pytest.mark.parametrize("criterion", ["activation-mean", "activation-std", "apoz"])
def test_activations(nets: Any, tap: Callable[..., Array], kind: str, criterion: str) -> None:
    """35 samples are three batches, the last one short."""
    chain, tensor = TAPS[kind]
    model = tapped(nets, chain)
    feeds = nets.samples(model, 35)
    facts = nets.facts(model, feeds)
    found = CRITERIA[criterion].score(ask(facts))["layer"]
    values = tap(model, tensor, feeds)
    expected = []
    for channel in range(5):
        seen = [float(v) for v in values[:, channel].ravel()]
        mean = sum(seen) / len(seen)
        expected.append(
            {
                "activation-mean": mean,
                "activation-std": (sum((v - mean) ** 2 for v in seen) / len(seen)) ** 0.5,
                "apoz": sum(v > 0 for v in seen) / len(seen),
            }[criterion]
        )
    assert len(set(expected)) > 1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("criterion", ["activation-mean", "activation-std", "apoz"])
def test_activations_of_what_is_left(nets: Any, tap: Callable[..., Array], criterion: str) -> None:
    """Once 'first' lost channels, 'layer' is scored on what it makes from the others."""
    model = network(nets, "Conv")
    feeds = nets.samples(model, 9)
    facts = nets.facts(model, feeds)
    whole = CRITERIA[criterion].score(ask(facts))
    found = CRITERIA[criterion].score(ask(facts, {"first": (0, 3)}))
    # Filters of zeros (there is no bias) make channels of zeros.
    masked = onnx.ModelProto()
    masked.CopyFrom(model)
    for tensor in masked.graph.initializer:
        if tensor.name == "u":
            weight = onnx.numpy_helper.to_array(tensor).copy()
            weight[[0, 3]] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, "u"))
    values = tap(masked, "c", feeds)
    expected = {
        "activation-mean": values.mean(axis=(0, 2, 3)),
        "activation-std": values.std(axis=(0, 2, 3)),
        "apoz": (values > 0).mean(axis=(0, 2, 3)),
    }[criterion]
    np.testing.assert_allclose(found["layer"], expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found["layer"], whole["layer"], rtol=1e-3)
    assert (found["first"][[0, 3]] == 0).all()


@pytest.mark.parametrize("criterion", ["activation-mean", "activation-std", "apoz"])
def test_activations_need_data(nets: Any, criterion: str) -> None:
    with pytest.raises(UsageError, match="--data"):
        CRITERIA[criterion].score(ask(nets.facts(network(nets, "Conv"))))


def test_random(nets: Any) -> None:
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


@pytest.mark.parametrize("values", [[3.0, -1.0, 2.0, 0.5], [2.0, 2.0], [0.0, 0.0, 0.0], [5.0]])
def test_normalised(values: list[float]) -> None:
    line = np.array(values)
    low, high = min(values), max(values)
    span = high - low
    absolute, euclid = sum(abs(v) for v in values), sum(v * v for v in values) ** 0.5
    expected = {
        "none": values,
        "minmax": [(v - low) / span if span else 0.0 for v in values],
        "l1": [v / absolute if absolute else 0.0 for v in values],
        "l2": [v / euclid if euclid else 0.0 for v in values],
    }
    for how, line_expected in expected.items():
        np.testing.assert_allclose(normalised(line, how), line_expected, rtol=1e-14, atol=0)
    assert line.tolist() == values


TIED = """net (float[N, 3, 4, 5] x) => (float[N, 2, 4, 5] y) {
    [stem] a = Conv <kernel_shape = [1, 1]> (x, u)
    [one] b = Conv <kernel_shape = [1, 1]> (a, w)
    [sum] c = Add (a, b)
    [wide] d = Conv <kernel_shape = [1, 1]> (c, z)
    [halves] e, f = Split <axis = 1> (d, sizes)
    [both] g = Mul (e, f)
    [last] y = Conv <kernel_shape = [1, 1]> (g, v) }"""


@pytest.fixture
def tied(nets: Any) -> Facts:
    """'stem' and 'one' share channels; channel i of 'wide' goes with channel i + 3."""
    made = nets.facts(
        nets.build(
            TIED,
            u=(4, 3, 1, 1),
            w=(4, 4, 1, 1),
            z=(6, 4, 1, 1),
            v=(2, 3, 1, 1),
            sizes=np.array([3, 3]),
        )
    )
    assert {g.name: g.producers for g in made.coupling().groups} == {
        "stem": ("stem", "one"),
        "wide": ("wide",),
    }
    assert [g.width for g in made.coupling().groups] == [4, 3]
    return made


@pytest.mark.parametrize("normalise", ["none", "l1", "l2", "minmax"])
@pytest.mark.parametrize("combine", ["mean", "sum", "max"])
def test_combined(tied: Facts, normalise: str, combine: str) -> None:
    """Layer by layer normalised; then over layers, in which several positions count once."""
    raw = {
        "stem": np.array([1.0, 5.0, -2.0, 3.0]),
        "one": np.array([40.0, 10.0, 20.0, 90.0]),
        "wide": np.array([1.0, 2.0, 8.0, 7.0, 5.0, 4.0]),
    }
    found = channel_scores(ask(tied), lambda _: raw, normalise, combine)
    line = {layer: normalised(scores, normalise) for layer, scores in raw.items()}
    voices = {
        "stem": [[line["stem"][i], line["one"][i]] for i in range(4)],
        "wide": [[(line["wide"][i] + line["wide"][i + 3]) / 2] for i in range(3)],
    }
    together = {"mean": lambda v: sum(v) / len(v), "sum": sum, "max": max}[combine]
    assert set(found) == {"stem", "wide"}
    for group, each in voices.items():
        np.testing.assert_allclose(found[group], [together(v) for v in each], rtol=1e-14)


def test_which_layer_weighs_more_is_settled_by_the_normalisation(tied: Facts) -> None:
    raw = {
        "stem": np.array([1.0, 2.0, 3.0, 4.0]),
        "one": 1e6 * np.array([4.0, 3.0, 2.0, 1.0]),
        "wide": np.ones(6),
    }
    plain = channel_scores(ask(tied), lambda _: raw, "none", "mean")["stem"]
    assert all(a > b for a, b in pairwise(plain.tolist()))
    even = channel_scores(ask(tied), lambda _: raw, "l1", "sum")["stem"]
    np.testing.assert_allclose(even, [0.5] * 4, rtol=1e-14)
