"""A scale and a bias per channel against lines fitted to the rows themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

Array = np.ndarray


def line(now: Array, target: Array) -> tuple[Array, Array]:
    """Slope and offset per channel, by numpy.polyfit."""
    pairs = [np.polyfit(x, y, 1) for x, y in zip(now.T, target.T, strict=True)]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def noisy(nets: Any, values: Array, *, seed: int = 3, size: float = 0.3) -> Array:
    noise = np.random.default_rng(seed).standard_normal(values.shape)
    return (values * 1.5 + size * noise).astype(values.dtype)


@pytest.mark.parametrize(("width", "bias"), [(5, True), (5, False), (3, True)])
def test_a_line_per_channel(nets: Any, bench: Any, tap: Any, width: int, *, bias: bool) -> None:
    """What BatchNormalization's recalibration would do: y is fitted by a * answer + b."""
    extra = ", b" if bias else ""
    constants: dict[str, Any] = {"w": (width, 3, 3, 3)} | ({"b": (width,)} if bias else {})
    model = nets.build(
        f"""net (float[N, 3, 4, 5] x) => (float[N, {width}, 2, 3] y) {{
        [c] a = Conv (x, w{extra}) [r] y = Sigmoid (a) }}""",
        **constants,
    )
    feeds = nets.samples(model, 150)
    weight = bench.constant(model, "c", 1).astype(np.float32)
    result = bench.variant(model, w=noisy(nets, weight))
    found = bench.repaired(model, result, feeds, method="scale")
    (mended,) = found.mended
    assert mended.method == "scale"
    assert mended.after < mended.before
    now, target = (bench.rows(tap(m, "a", feeds)) for m in (result, model))
    slope, offset = line(now, target)
    old = bench.constant(model, "c", 2) if bias else np.zeros(width)
    np.testing.assert_allclose(
        bench.constant(found.model, "c", 1),
        bench.constant(result, "c", 1) * slope[:, None, None, None],
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        bench.constant(found.model, "c", 2), slope * old + offset, rtol=1e-4, atol=1e-5
    )
    # The residual is that of the lines, position by position.
    after = bench.rows(tap(found.model, "a", feeds))
    np.testing.assert_allclose(after, now * slope + offset, atol=1e-4)


@pytest.mark.parametrize("method", ["scale", "refit"])
@pytest.mark.parametrize(
    ("group", "shape"), [(1, (4, 5, 3, 3)), (2, (4, 3, 3, 2)), (4, (4, 2, 2, 3)), (2, (4, 4, 4, 4))]
)
def test_transposed_convolutions(
    nets: Any, bench: Any, tap: Any, method: str, group: int, shape: tuple[int, ...]
) -> None:
    """Their weight is [in, out / group, ...]: output channels are numbered group by group."""
    outputs = shape[1] * group
    model = nets.build(
        f"""net (float[N, 4, 3, 4] x) => (float[N, {outputs}, h, v] y) {{
        [up] a = ConvTranspose <strides = [2, 2], group = {group}> (x, w, b) [r] y = Tanh (a) }}""",
        w=shape,
        b=(outputs,),
    )
    feeds = nets.samples(model, 60)
    # Every output channel is off by a factor and a shift of its own: that can be undone exactly.
    by = np.linspace(0.5, 2.0, outputs)
    weight, bias = (bench.constant(model, "up", at) for at in (1, 2))
    rows = np.repeat(by.reshape(group, -1), shape[0] // group, axis=0)
    result = bench.variant(
        model,
        w=(weight * rows[..., None, None]).astype(np.float32),
        b=(bias + np.arange(outputs)).astype(np.float32),
    )
    found = bench.repaired(model, result, feeds, method=method)
    assert [m.method for m in found.mended] == ["scale"]
    np.testing.assert_allclose(bench.constant(found.model, "up", 1), weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bench.constant(found.model, "up", 2), bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_dense_layers(nets: Any, bench: Any, transposed: int, beta: float) -> None:
    model = nets.build(
        f"""net (float[N, 6] x) => (float[N, 4] y) {{
        [fc] a = Gemm <transB = {transposed}, alpha = 2.0, beta = {beta}> (x, w, b)
        [r] y = Tanh (a) }}""",
        w=(4, 6) if transposed else (6, 4),
        b=(4,),
    )
    feeds = nets.samples(model, 200)
    weight, bias = (bench.constant(model, "fc", at) for at in (1, 2))
    by = np.array([0.5, 1.5, -1.0, 3.0])
    wide = by[:, None] if transposed else by[None]
    result = bench.variant(
        model, w=(weight * wide).astype(np.float32), b=(bias - 1).astype(np.float32)
    )
    found = bench.repaired(model, result, feeds, method="scale")
    np.testing.assert_allclose(bench.constant(found.model, "fc", 1), weight, atol=1e-5)
    np.testing.assert_allclose(bench.constant(found.model, "fc", 2), bias, atol=1e-5)


@pytest.mark.parametrize("method", ["scale", "refit"])
def test_later_layers_read_what_was_rescaled(nets: Any, bench: Any, kit: Any, method: str) -> None:
    """Only the first layer is off: once it is put right, there is nothing left to do behind it."""
    model = nets.build(
        """net (float[N, 4, 3, 4] x) => (float[N, 2, 3, 4] y) {
        [up] a = ConvTranspose (x, w1, b1) [r1] b = Relu (a)
        [mid] c = ConvTranspose (b, w2) [r2] d = Relu (c) [last] y = Conv (d, w3) }""",
        w1=(4, 5, 1, 1),
        b1=(5,),
        w2=(5, 3, 1, 1),
        w3=(2, 3, 1, 1),
    )
    feeds = nets.samples(model, 100)
    weight, bias = (bench.constant(model, "up", at) for at in (1, 2))
    result = bench.variant(
        model, w1=(3 * weight).astype(np.float32), b1=(3 * bias).astype(np.float32)
    )
    found = bench.repaired(model, result, feeds, method=method)
    assert [(m.node, m.method) for m in found.mended] == [
        ("up", "scale"),
        ("mid", "kept"),
        ("last", "kept"),
    ]
    (expected,), (repaired,) = kit.run(model, feeds), kit.run(found.model, feeds)
    np.testing.assert_allclose(repaired, expected, atol=1e-5)


def test_what_has_no_scale_of_its_own(nets: Any, bench: Any) -> None:
    """MatMul holds no bias: it stays, and is said to stay. Dead channels keep their scale."""
    model = nets.build(
        """net (float[N, 6] x) => (float[N, 4] y) {
        [one] a = MatMul (x, w1) [r] b = Relu (a) [two] y = MatMul (b, w2) }""",
        w1=(6, 5),
        w2=(5, 4),
    )
    feeds = nets.samples(model, 50)
    noise = noisy(nets, bench.constant(model, "one", 1).astype(np.float32))
    found = bench.repaired(model, bench.variant(model, w1=noise), feeds, method="scale")
    assert [m.method for m in found.mended] == ["kept", "kept"]
    assert all(m.before > 0 for m in found.mended)
    np.testing.assert_array_equal(bench.constant(found.model, "one", 1), noise.astype(np.float64))


def test_dead_channels_keep_their_scale(nets: Any, bench: Any) -> None:
    model = nets.build(
        """net (float[N, 3, 4, 5] x) => (float[N, 4, 4, 5] y) {
        [c] a = Conv (x, w, b) [r] y = Sigmoid (a) }""",
        w=(4, 3, 1, 1),
        b=(4,),
    )
    feeds = nets.samples(model, 100)
    weight = bench.constant(model, "c", 1).astype(np.float32)
    dead = 2 * weight
    dead[2] = 0.0
    found = bench.repaired(model, bench.variant(model, w=dead), feeds, method="scale")
    repaired = bench.constant(found.model, "c", 1)
    np.testing.assert_allclose(repaired[[0, 1, 3]], weight[[0, 1, 3]], rtol=1e-5)
    assert not repaired[2].any()
    bias = bench.constant(model, "c", 2)
    mean = np.einsum("chw,nhwp->c", weight[:, :, 0], feeds["x"].reshape(100, 3, 1, 20)) / 2000
    assert bench.constant(found.model, "c", 2)[2] == pytest.approx(bias[2] + mean[2], abs=1e-5)


def test_the_type_of_half_precision_weights_stays(nets: Any, bench: Any) -> None:
    model = nets.build(
        """net (float16[N, 3, 4, 5] x) => (float16[N, 4, 4, 5] y) {
        [c] a = ConvTranspose (x, w) [r] y = Sigmoid (a) }""",
        w=np.random.default_rng(1).standard_normal((3, 4, 1, 1)).astype(np.float16),
    )
    feeds = {"x": np.random.default_rng(2).standard_normal((80, 3, 4, 5)).astype(np.float16)}
    weight = bench.constant(model, "c", 1)
    found = bench.repaired(model, bench.variant(model, w=(2 * weight).astype(np.float16)), feeds)
    types = {t.data_type for t in found.model.graph.initializer}
    assert types == {onnx.TensorProto.FLOAT16}
    np.testing.assert_allclose(bench.constant(found.model, "c", 1), weight, rtol=2e-2, atol=2e-3)
