"""Ablation against whole networks with a mask behind every tap, run by ONNX Runtime as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

import onnxcompress.calibrate.ablation as module

TAPS = {"x": 1, "a": 1, "b": 1, "d": 1, "e": 1, "f": 1, "g": 1, "i": 1, "p": 1}
# Alone, side by side, one behind the other, in the order of the network and in another one.
ABLATIONS: list[dict[str, tuple[int, ...]]] = [
    {"i": (1,)},
    {"a": (0,)},
    {"b": (1,)},
    {"x": (2,)},
    {"b": (0, 2)},
    {"d": (1,)},
    {"g": (2,), "f": (0,)},
    {"e": (2,)},
    {"a": (0,), "e": (1,)},
    {"f": (1,)},
    {"f": (1,), "g": (0,)},
    {"b": (1,), "d": (1,), "i": (0, 5)},
    {"g": (0, 1, 2)},
    {"b": (1,)},
    {"d": (0,), "b": (2,)},
    {"p": (4,)},
    {"x": (0,), "p": (3,)},
]
# Of mean losses, that float32 logits up to about 20 decide.
CLOSE = 2e-5


def run(
    truth: Any, kit: Any, model: onnx.ModelProto, feeds: Any, masks: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """What the whole network answers with masks behind tensors, or on masked inputs."""
    fed = dict(feeds)
    for name in fed.keys() & masks.keys():
        fed[name] = fed[name] * masks[name]
    inner = {name: values for name, values in masks.items() if name not in fed}
    copy = truth.stepped(model, tuple(inner))
    found = kit.run(copy, {**fed, **{f"by_{name}": values for name, values in inner.items()}})
    return dict(zip((output.name for output in copy.graph.output), found, strict=True))


def masks_of(
    ablation: Mapping[str, Sequence[int]], taps: Mapping[str, int], shapes: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    found = {}
    for tap, channels in ablation.items():
        line = [extent if a == taps[tap] else 1 for a, extent in enumerate(shapes[tap])]
        mask = np.ones(line, np.float32)
        mask.swapaxes(0, taps[tap])[list(channels)] = 0.0
        found[tap] = mask
    return found


def assert_ablations(
    truth: Any,
    kit: Any,
    measured: Any,
    ending: str = "logits",
    *,
    variant: onnx.ModelProto | None = None,
    ablations: Sequence[Mapping[str, tuple[int, ...]]] = ABLATIONS,
    taps: Mapping[str, int] = TAPS,
    count: int | None = None,
) -> None:
    found = measured.sensitivity.ablate(taps, ablations, variant)
    original, order = measured.sensitivity.model, measured.order[:count]
    model = variant or original
    feeds = {name: values[order] for name, values in measured.samples.arrays.items()}
    classes = run(truth, kit, original, feeds, {})["y"].reshape(len(order), -1).argmax(axis=1)
    if measured.samples.labels is not None:
        classes = measured.samples.labels[order]
    losses = truth.losses(ending, classes)
    base = losses(run(truth, kit, model, feeds, {}))
    also = onnx.ModelProto()
    also.CopyFrom(model)
    del also.graph.output[:]
    also.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps)
    shapes = dict(zip(taps, (v.shape for v in kit.run(also, feeds)), strict=True))
    expected = [
        (losses(run(truth, kit, model, feeds, masks_of(a, taps, shapes))) - base).mean()
        for a in ablations
    ]
    assert found.dtype == np.float64
    assert np.abs(expected).max() > 100 * CLOSE
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("ending", ["logits", "softmax", "log", "made", "pixels", "pixels softmax"])
@pytest.mark.parametrize("known", [True, False], ids=["labels", "own classes"])
def test_whole_networks(truth: Any, nets: Any, kit: Any, ending: str, *, known: bool) -> None:
    model = truth.classifier(nets, ending)
    labels = np.arange(7) if known else None
    assert_ablations(truth, kit, truth.measured(model, nets.samples(model, 7), labels), ending)


def test_equal_extents(truth: Any, nets: Any, kit: Any) -> None:
    model = truth.classifier(nets, equal=True)
    assert_ablations(truth, kit, truth.measured(model, nets.samples(model, 3)))


@pytest.mark.parametrize(
    ("batch", "count", "limit", "taken"),
    [(1, 4, 99, 4), (3, 8, 99, 6), (3, 8, 5, 3), (3, 8, 2, 3), ("N", 8, 5, 5), ("N", 3, 1, 1)],
)
def test_fixed_batches_and_limits(
    truth: Any, nets: Any, kit: Any, batch: Any, count: int, limit: int, taken: int
) -> None:
    """The first of the samples that gradients are taken of, which are in random order."""
    model = truth.classifier(nets, batch=batch)
    measured = truth.measured(model, nets.samples(model, count), np.arange(count), ablated=limit)
    if batch == "N":
        assert_ablations(truth, kit, measured, count=taken)
        return
    # The network itself can only be run on whole batches.
    free = truth.classifier(nets)
    found = measured.sensitivity.ablate(TAPS, ABLATIONS)
    order = measured.order[:taken]
    feeds = {name: values[order] for name, values in measured.samples.arrays.items()}
    other = truth.measured(free, feeds, np.arange(count)[order])
    assert_ablations(truth, kit, other)
    np.testing.assert_allclose(found, other.sensitivity.ablate(TAPS, ABLATIONS), atol=CLOSE)


@pytest.mark.parametrize("known", [True, False], ids=["labels", "own classes"])
def test_a_variant_is_held_to_the_answers_of_the_network_itself(
    truth: Any, nets: Any, kit: Any, *, known: bool
) -> None:
    model = truth.classifier(nets)
    variant = truth.changed(model, size=0.2)
    measured = truth.measured(model, nets.samples(model, 6), np.arange(6) if known else None)
    before = [model.SerializeToString(), variant.SerializeToString()]
    assert_ablations(truth, kit, measured, variant=variant)
    assert_ablations(truth, kit, measured)
    assert [model.SerializeToString(), variant.SerializeToString()] == before


@pytest.mark.parametrize("taps", [("a",), ("a", "c")], ids=["in front", "both"])
def test_shapes_computed_from_the_input(truth: Any, nets: Any, kit: Any, taps: Any) -> None:
    """Integers that the whole network computes; the last batch is filled up."""
    text = """net (float[N, 4, 4, 5] x) => (float[N, 6] y) {
        [first] a = Conv <pads=[1, 1, 1, 1]> (x, w0)
        [sizes] s = Shape (x)
        [some] n = Gather (s, first)
        [both] t = Concat <axis=0> (n, rest)
        [relu] b = Relu (a)
        [lines] l = Reshape (b, t)
        [mean] m = ReduceMean <axes=[2], keepdims=0> (l)
        [whole] r = Reshape (b, s)
        [second] c = Conv (r, w1)
        [pool] p = GlobalMaxPool (c)
        [flat] q = Flatten (p)
        [sum] o = Add (m, q)
        [dense] y = MatMul (o, w2) }"""
    integers = {"first": np.array([0]), "rest": np.array([4, 20])}
    model = nets.build(text, w0=(4, 4, 3, 3), w1=(4, 4, 1, 1), w2=(4, 6), **integers)
    measured = truth.measured(model, nets.samples(model, 5), np.arange(5))
    ablations = [dict.fromkeys(taps, (channel,)) for channel in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BATCH", 2)
        assert_ablations(truth, kit, measured, ablations=ablations, taps={"a": 1, "c": 1})


def test_two_softmaxes(truth: Any, nets: Any, kit: Any) -> None:
    """What stands in front of the last one are probabilities, and still its logits."""
    text = """net (float[N, 3, 4, 5] x) => (float[N, 6] y) {
        [first] a = Conv (x, w0)
        [pool] p = GlobalMaxPool (a)
        [flat] q = Flatten (p)
        [dense] z = MatMul (q, w2)
        [once] s = Softmax (z)
        [twice] y = Softmax (s) }"""
    model = nets.build(text, w0=(4, 3, 1, 1), w2=(4, 6))
    measured = truth.measured(model, nets.samples(model, 6), np.arange(6))
    ablations = [{"a": (channel,)} for channel in range(4)]
    assert_ablations(truth, kit, measured, "softmax", ablations=ablations, taps={"a": 1})


@pytest.mark.parametrize("taps", [("b",), ("b", "c")], ids=["alone", "together"])
def test_behind_an_operator_that_onnx_does_not_know(
    truth: Any, nets: Any, kit: Any, taps: Any
) -> None:
    """No gradient goes through it, but channels behind it can be ablated."""
    node, value = onnx.helper.make_node, kit.value
    nodes = [
        node("Conv", ["x", "w0"], ["a"], name="first"),
        node("Gelu", ["a"], ["g"], name="gelu", domain="com.microsoft"),
        node("Conv", ["g", "w1"], ["b"], name="second"),
        node("Relu", ["b"], ["c"], name="relu"),
        node("GlobalAveragePool", ["c"], ["p"], name="pool"),
        node("Flatten", ["p"], ["q"], name="flat"),
        node("MatMul", ["q", "w2"], ["y"], name="dense"),
    ]
    generator = np.random.default_rng(1)
    shapes = {"w0": (4, 3, 1, 1), "w1": (5, 4, 1, 1), "w2": (5, 6)}
    constants = {k: generator.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    sides = [value("x", ["N", 3, 4, 5])], [value("y", ["N", 6])]
    model = kit.model(nodes, *sides, constants, domains={"com.microsoft": 1})
    measured = truth.measured(model, nets.samples(model, 5), np.arange(5))
    ablations = [dict.fromkeys(taps, (channel,)) for channel in range(5)]
    assert_ablations(truth, kit, measured, ablations=ablations, taps={"b": 1, "c": 1})


@pytest.mark.parametrize("more", [{}, {"e": (2,)}], ids=["alone", "with a mask"])
@pytest.mark.parametrize("fault", ["not put back", "another channel"])
def test_the_comparison_sees_faults(
    truth: Any, nets: Any, kit: Any, monkeypatch: pytest.MonkeyPatch, fault: str, more: Any
) -> None:
    along = module._along
    if fault == "another channel":
        monkeypatch.setattr(module, "_along", lambda axis, chosen: along(axis, [0 for _ in chosen]))
    else:
        # What is looked up the last time, to put channels back, is another channel.
        calls, turn = iter(range(10**6)), 2 + len(more)
        monkeypatch.setattr(
            module,
            "_along",
            lambda axis, chosen: along(axis, [-1] if next(calls) % turn == turn - 1 else chosen),
        )
    model = truth.classifier(nets)
    measured = truth.measured(model, nets.samples(model, 5))
    ablations = [{"b": (channel,), **more} for channel in range(4)]
    with pytest.raises(AssertionError):
        assert_ablations(truth, kit, measured, ablations=ablations)
