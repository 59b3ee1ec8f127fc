"""Operations per channel: VGG-16's as published, others counted one by one; and eq. 12."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.graph.infer import with_value_info
from onnxcompress.plan.saliency.criteria import CRITERIA
from onnxcompress.plan.saliency.flops import mflops_per_channel
from onnxcompress.plan.saliency.normalise import normalised
from onnxcompress_passes.channel_ranking import Ranking, channel_scores, removal_sequence

VGG16 = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]


def vgg16() -> onnx.ModelProto:
    """VGG-16 at 224x224, its weights zeros of eight bits: nobody runs it."""
    lines, weights, tensor, width = [], {"scale": np.float32(1), "zero": np.int8(0)}, "x", 3

    def weight(name: str, shape: tuple[int, ...]) -> str:
        weights[f"{name}_q"] = np.zeros(shape, np.int8)
        lines.append(f"{name}_w = DequantizeLinear ({name}_q, scale, zero)")
        return f"{name}_w"

    for at, wider in enumerate(VGG16):
        if wider:
            w = weight(f"conv{at}", (wider, width, 3, 3))
            lines.append(f"[conv{at}] c{at} = Conv <pads = [1, 1, 1, 1]> ({tensor}, {w})")
            lines.append(f"t{at} = Relu (c{at})")
            width = wider
        else:
            pool = "MaxPool <kernel_shape = [2, 2], strides = [2, 2]>"
            lines.append(f"t{at} = {pool} ({tensor})")
        tensor = f"t{at}"
    lines.append(f"flat = Flatten ({tensor})")
    tensor, width = "flat", 512 * 7 * 7
    for name, wider in (("fc6", 4096), ("fc7", 4096), ("fc8", 1000)):
        w = weight(name, (wider, width))
        lines.append(f"[{name}] {name}_y = Gemm <transB = 1> ({tensor}, {w})")
        lines.append(f"{name}_z = Relu ({name}_y)")
        tensor, width = f"{name}_z", wider
    text = '<ir_version: 8, opset_import: ["" : 17]> vgg16 (float[1, 3, 224, 224] x) '
    text += f"=> (float[1, 1000] {tensor}) {{ {' '.join(lines)} }}"
    model = onnx.parser.parse_model(text)
    for name, values in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    return with_value_info(model)


def test_vgg16(ask: Any) -> None:
    """The list of section 2.2 (2016), by its own formula; totals in 10^9."""
    facts = analyse(vgg16(), {"x": (1, 3, 224, 224)})
    question = ask(facts)
    convs = [layer for layer in question.layers if layer.startswith("conv")]
    each = [mflops_per_channel(question, layer) for layer in convs]
    assert [round(found, 1) for found in each] == [
        2.8, 57.9, 14.5, 28.9, 7.2, 14.5, 14.5, 3.6, 7.2, 7.2, 1.8, 1.8, 1.8,
    ]  # fmt: skip
    assert sum(width for width in VGG16) == 4224
    convolutions = sum(f * w for f, w in zip(each, filter(None, VGG16), strict=True)) / 1e3
    dense = sum(4096 * mflops_per_channel(question, layer) for layer in ("fc6", "fc7")) / 1e3
    # What answers is no layer with channels that may go.
    dense += 1000 * (2 * 4096 - 1) / 1e9
    assert "fc8" not in question.layers
    assert round(convolutions, 2) == 30.72
    assert round(dense, 3) == 0.247
    assert round(convolutions + dense, 3) == 30.968


def transposed(taken: int, made: int, kernel: tuple[int, int], inputs: int) -> int:
    """Every element that comes in is multiplied into every place of the kernel."""
    return 2 * (taken * kernel[0] * kernel[1] * inputs + made)


def convolved(made: int, kernel: tuple[int, int], inputs: int) -> int:
    """2 H W (Cin K^2 + 1)."""
    return 2 * made * (inputs * kernel[0] * kernel[1] + 1)


# Layer 'layer' reads [6, 7, 5]: its node, its weight, and the operations of one channel.
COUNTED: dict[str, tuple[str, tuple[int, ...], int]] = {
    "padded": ("Conv <pads = [1, 0, 1, 2]>", (8, 6, 3, 2), convolved(7 * 6, (3, 2), 6)),
    "strided": ("Conv <strides = [2, 3]>", (8, 6, 3, 2), convolved(3 * 2, (3, 2), 6)),
    "dilated": ("Conv <dilations = [3, 2]>", (8, 6, 3, 2), convolved(1 * 3, (3, 2), 6)),
    "grouped": ("Conv <group = 2>", (8, 3, 1, 2), convolved(7 * 4, (1, 2), 3)),
    "depthwise": ("Conv <group = 6>", (6, 1, 3, 3), convolved(5 * 3, (3, 3), 1)),
    "transposed": ("ConvTranspose <strides = [2, 3]>", (6, 8, 3, 2),
                   transposed(7 * 5, 15 * 14, (3, 2), 6)),
    "transposed, grouped": ("ConvTranspose <group = 2>", (6, 4, 2, 2),
                            transposed(7 * 5, 8 * 6, (2, 2), 3)),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("node", "weight", "count"), COUNTED.values(), ids=COUNTED.keys())
def test_convolutions(
    nets: Any, ask: Any, node: str, weight: tuple[int, ...], count: int, batch: int
) -> None:
    """Per sample, whatever the batch."""
    text = f"""net (float[N, 3, 7, 5] x) => (float[N, 4, H, W] y) {{
        [first] a = Conv (x, u)
        [layer] b = {node} (a, w)
        [last] y = Conv (b, v) }}"""
    groups = 2 if "group = 2" in node else 1
    width = weight[1] * groups if "Transpose" in node else weight[0]
    model = nets.build(text, u=(6, 3, 1, 1), w=weight, v=(4, width, 1, 1))
    question = ask(nets.facts(model, sizes={"x": (batch, 3, 7, 5)}))
    assert mflops_per_channel(question, "layer") == pytest.approx(count / 1e6, rel=1e-12)


@pytest.mark.parametrize("node", ["MatMul (x, w)", "Gemm (x, w, b)"])
def test_dense_layers(nets: Any, ask: Any, node: str) -> None:
    """2 I - 1 for every output."""
    text = (
        f"net (float[N, 9] x) => (float[N, 4] y) {{ [layer] a = {node} [last] y = MatMul (a, v) }}"
    )
    model = nets.build(text, w=(9, 5), b=(5,), v=(5, 4))
    question = ask(nets.facts(model, sizes={"x": (3, 9)}))
    assert mflops_per_channel(question, "layer") == pytest.approx(17e-6, rel=1e-12)


def test_dense_layers_at_many_places(nets: Any, ask: Any) -> None:
    """A channel of seven tokens is seven outputs."""
    text = """net (float[N, 7, 9] x) => (float[N, 7, 4] y) {
        [layer] a = MatMul (x, w)
        [last] y = MatMul (a, v) }"""
    question = ask(nets.facts(nets.build(text, w=(9, 5), v=(5, 4))))
    assert mflops_per_channel(question, "layer") == pytest.approx(7 * 17e-6, rel=1e-12)


# 'wide' costs 2 * 4 * 4 * (3 * 9 + 1) = 896 operations per channel, 'narrow' 2 * 4 * 4 * (6 + 1).
TWO = """net (float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) {
    [wide] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    [r1] b = Relu (a)
    [narrow] c = Conv (b, w2)
    [r2] d = Relu (c)
    [last] y = Conv (d, w3) }"""
COSTS = {"wide": 896e-6, "narrow": 224e-6}


@pytest.fixture(scope="module")
def two(nets: Any) -> Facts:
    made: Facts = nets.facts(
        nets.build(TWO, seed=2, w1=(6, 3, 3, 3), w2=(5, 6, 1, 1), w3=(2, 5, 1, 1))
    )
    return made


@pytest.mark.parametrize("gone", [{}, {"wide": (1, 4)}], ids=["whole", "some gone"])
@pytest.mark.parametrize("strength", [0.0, 1.0, 300.0])
def test_taken_off_normalised_scores(
    ask: Any, two: Facts, strength: float, gone: dict[str, tuple[int, ...]]
) -> None:
    """Theta - lambda Theta_flops (2016, eq. 12), Theta normalised before."""
    question = ask(two, gone)
    raw = CRITERIA["weight"].score(question)
    found = channel_scores(question, CRITERIA["weight"].score, "l2", "mean", strength)
    for layer, cost in COSTS.items():
        assert mflops_per_channel(question, layer) == pytest.approx(cost, rel=1e-12)
        left = [c for c in range(len(raw[layer])) if c not in gone.get(layer, ())]
        expected = normalised(raw[layer][left], "l2") - strength * cost
        np.testing.assert_allclose(found[layer][left], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("per_step", [0, 2])
def test_dear_channels_go_first(ask: Any, two: Facts, per_step: int) -> None:
    """Weak regularisation changes nothing, strong one empties the dear layer first."""

    def order(flops: float) -> list[tuple[str, int]]:
        how = Ranking("weight", "l2", "l2", "mean", "global", per_step, 0, flops)
        return list(removal_sequence(two, two.coupling(), how))

    plain, dear = order(0.0), order(1e4)
    assert order(1e-9) == plain
    assert [layer for layer, _ in dear] == ["wide"] * 5 + ["narrow"] * 4
    assert [layer for layer, _ in plain] != [layer for layer, _ in dear]
    assert sorted(plain) == sorted(dear)
    if per_step:
        return
    scores = channel_scores(ask(two), CRITERIA["weight"].score, "l2", "mean", 150.0)
    ranked = sorted((s, layer, c) for layer in COSTS for c, s in enumerate(scores[layer].tolist()))
    kept = {(layer, int(np.argmax(scores[layer]))) for layer in COSTS}
    assert order(150.0) == [(layer, c) for _, layer, c in ranked if (layer, c) not in kept]
