"""What a layer reads at its positions, against explicit loops; and the identity it must satisfy.

E|conv(x, A)|^2 = tr(A R A') with R the average of patches. Inputs and weights are small whole
numbers, so that what ONNX Runtime answers in float32 is exact: only the float64 sums round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.linear import LinearLayer, linear_layer
from onnxcompress.calibrate.patches import (
    Positions,
    answers_at,
    patches_at,
    resolved_pads,
    spatial_extents,
)
from onnxcompress.errors import ModelError
from onnxcompress.graph.spec import ConvSpec
from onnxcompress.graph.view import GraphView

Array = np.ndarray


@dataclass(frozen=True)
class Case:
    """A convolution: attributes as text, extents, and what the loops go by (pads at the begin)."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    attributes: str = ""
    strides: tuple[int, ...] = ()
    begins: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1


# Moments of fewer rows than 1.5 per feature are drawn in; as many samples are always enough here.
MANY = 100

# Extents of all axes differ: samples 2, channels 6, sizes 8 and 9, answers 4, kernel 3 x 2.
X, W = (2, 6, 8, 9), (4, 6, 3, 2)
# All extents are 4.
E = (4, 4, 4, 4)
CASES = {
    "plain": Case(X, W),
    "plain, equal": Case(E, E),
    "strided": Case(X, W, "strides = [2, 3]", (2, 3)),
    "strided, equal": Case(E, E, "strides = [2, 2], pads = [2, 1, 1, 2]", (2, 2), (2, 1)),
    "padded": Case(X, W, "pads = [1, 0, 2, 3]", begins=(1, 0)),
    "padded, equal": Case(E, E, "pads = [3, 0, 1, 2]", begins=(3, 0)),
    "dilated": Case(X, W, "dilations = [2, 2]", dilations=(2, 2)),
    "dilated, equal": Case(E, E, "dilations = [2, 1], pads = [2, 1, 3, 0]", (), (2, 1), (2, 1)),
    "everything": Case(
        X, W, "strides = [2, 1], pads = [0, 2, 1, 3], dilations = [1, 3]", (2, 1), (0, 2), (1, 3)
    ),
    "grouped": Case(X, (4, 3, 3, 2), "group = 2, pads = [1, 0, 0, 1]", begins=(1, 0), group=2),
    "grouped, equal": Case(E, (4, 2, 4, 4), "group = 2", group=2),
    "depthwise": Case(X, (6, 1, 3, 2), "group = 6, strides = [1, 2]", (1, 2), group=6),
    "depthwise, two each": Case(E, (8, 1, 4, 4), "group = 4", group=4),
    "pointwise, strided": Case(X, (5, 6, 1, 1), "strides = [2, 3]", (2, 3)),
    "pointwise, padded": Case(
        X, (5, 6, 1, 1), "strides = [2, 2], pads = [1, 0, 0, 3]", (2, 2), (1, 0)
    ),
    # 8 -> 4: 3 * 2 + 3 - 8 = 1 zero; 9 -> 5: 4 * 2 + 2 - 9 = 1 zero.
    "same upper": Case(X, W, 'auto_pad = "SAME_UPPER", strides = [2, 2]', (2, 2), (0, 0)),
    "same lower": Case(X, W, 'auto_pad = "SAME_LOWER", strides = [2, 2]', (2, 2), (1, 1)),
    "same upper, equal": Case(E, E, 'auto_pad = "SAME_UPPER"', begins=(1, 1)),
    "same lower, equal": Case(E, E, 'auto_pad = "SAME_LOWER"', begins=(2, 2)),
    "valid": Case(X, W, 'auto_pad = "VALID", strides = [3, 2]', (3, 2)),
    "one axis": Case(
        (2, 3, 11), (5, 3, 4), "strides = [3], pads = [2, 1], dilations = [2]", (3,), (2,), (2,)
    ),
    "three axes": Case(
        (2, 3, 4, 5, 6),
        (7, 3, 2, 1, 3),
        "strides = [1, 2, 3], pads = [1, 0, 2, 0, 1, 1]",
        (1, 2, 3),
        (1, 0, 2),
    ),
}


def convolution(nets: Any, kit: Any, case: Case) -> onnx.ModelProto:
    axes = [f"p{at}" for at in range(len(case.w) - 2)]
    attributes = f"<{case.attributes}>" if case.attributes else ""
    shape = ", ".join(map(str, case.x[1:]))
    made: onnx.ModelProto = nets.build(
        f"""net (float[N, {shape}] x) => (float[N, {", ".join([str(case.w[0]), *axes])}] y) {{
        [layer] y = Conv {attributes} (x, w) }}""",
        w=kit.whole(case.w, seed=2),
    )
    return made


def layer_of(model: onnx.ModelProto) -> LinearLayer:
    view = GraphView(model)
    return linear_layer(view.nodes["layer"], view)


def looped(case: Case, x: Array, extents: tuple[int, ...]) -> Array:
    """Patches [rows, groups, features], every number looked up by itself."""
    kernel, axes = case.w[2:], len(case.w) - 2
    strides, dilations = case.strides or (1,) * axes, case.dilations or (1,) * axes
    begins = case.begins or (0,) * axes
    width = case.w[1]
    found = np.zeros((len(x) * int(np.prod(extents)), case.group, width * int(np.prod(kernel))))
    places = product(range(len(x)), *map(range, extents))
    for row, (n, *at) in enumerate(places):
        for group in range(case.group):
            taps = product(range(width), *map(range, kernel))
            for column, (channel, *tap) in enumerate(taps):
                place = [
                    p * s - b + t * d
                    for p, s, b, t, d in zip(at, strides, begins, tap, dilations, strict=True)
                ]
                if all(0 <= p < size for p, size in zip(place, x.shape[2:], strict=True)):
                    found[row, group, column] = x[(n, group * width + channel, *place)]
    return found


@pytest.mark.parametrize("name", CASES)
def test_patches_equal_those_of_loops(nets: Any, kit: Any, name: str) -> None:
    case = CASES[name]
    model = convolution(nets, kit, case)
    layer = layer_of(model)
    x = kit.whole(case.x, seed=3)
    (y,) = kit.run(model, {"x": x})
    extents = spatial_extents(layer, y.shape)
    assert extents == y.shape[2:]
    at = Positions.draw(extents, len(x), 10**6, np.random.default_rng(0))
    patches = patches_at(layer, x, at)
    np.testing.assert_array_equal(patches, looped(case, x, extents))
    # The rows of answers belong to the rows of patches.
    matrices = layer.matrices(GraphView(model).array("w"))
    expected = np.einsum("ghd,rgd->rgh", matrices, patches).reshape(len(patches), -1)
    np.testing.assert_array_equal(answers_at(layer, y, at), expected)


@pytest.mark.parametrize("name", CASES)
def test_energy_of_answers_equals_the_trace(nets: Any, kit: Any, name: str) -> None:
    """E|conv(x, A)|^2 = tr(A R A'), and the error of A itself is nothing."""
    case = CASES[name]
    model = convolution(nets, kit, case)
    x = kit.whole((MANY, *case.x[1:]), seed=4)
    moments = nets.facts(model, {"x": x}).moments()(["layer"])["layer"]
    (y,) = kit.run(model, {"x": x})
    positions = y.size // y.shape[1]
    assert moments.rows == positions
    layer = layer_of(model)
    matrices = layer.matrices(GraphView(model).array("w"))
    energy = float(np.square(y.astype(np.float64)).sum()) / positions
    assert energy > 0
    trace = sum(float(np.trace(a @ r @ a.T)) for a, r in zip(matrices, moments.gram, strict=True))
    assert trace == pytest.approx(energy, rel=1e-9)
    assert moments.energy.sum() == pytest.approx(energy, rel=1e-9)
    other = kit.whole(case.w, seed=8)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(other, "w"))
    (z,) = kit.run(model, {"x": x})
    error = float(np.square(y.astype(np.float64) - z).sum()) / positions
    zeros = np.zeros(matrices.shape[:2])
    assert moments.error(layer.matrices(other), zeros) == pytest.approx(error, rel=1e-9)
    assert moments.error(matrices, zeros) == pytest.approx(0.0, abs=1e-9 * energy)


def whole_rows(read: Array, answered: Array) -> tuple[Array, Array]:
    """What a dense layer reads and answers, [rows, features] each, in float64."""
    return (
        read.reshape(-1, read.shape[-1]).astype(float),
        answered.reshape(-1, answered.shape[-1]).astype(float),
    )


@pytest.mark.parametrize(
    ("call", "x", "w"),
    [
        ("MatMul (x, w)", (3, 5), (5, 4)),
        ("MatMul (x, w)", (3, 7, 5), (5, 4)),
        ("MatMul (x, w)", (4, 4, 4), (4, 4)),
        ("MatMul (x, w)", (3, 2, 7, 5), (5, 4)),
        ("Gemm (x, w)", (3, 5), (5, 4)),
        ("Gemm <transB = 1> (x, w)", (3, 5), (4, 5)),
        ("Gemm <transB = 1, alpha = 0.5> (x, w)", (4, 4), (4, 4)),
    ],
)
def test_dense_layers(
    nets: Any, kit: Any, call: str, x: tuple[int, ...], w: tuple[int, ...]
) -> None:
    axes = [f"t{at}" for at in range(len(x) - 2)]
    inputs = ", ".join(["N", *map(str, x[1:])])
    outputs = ", ".join(["N", *axes, "4"])
    model = nets.build(
        f"net (float[{inputs}] x) => (float[{outputs}] y) {{ [layer] y = {call} }}",
        w=kit.whole(w, seed=2),
    )
    layer, values = layer_of(model), kit.whole(x, seed=3)
    (y,) = kit.run(model, {"x": values})
    rows, answers = whole_rows(values, y)
    extents = spatial_extents(layer, y.shape)
    at = Positions.draw(extents, len(values), 10**6, np.random.default_rng(0))
    np.testing.assert_array_equal(patches_at(layer, values, at)[:, 0], rows)
    np.testing.assert_array_equal(answers_at(layer, y, at), answers)
    values = kit.whole((MANY, *x[1:]), seed=4)
    moments = nets.facts(model, {"x": values}).moments()(["layer"])["layer"]
    rows, answers = whole_rows(values, kit.run(model, {"x": values})[0])
    np.testing.assert_allclose(moments.gram[0], rows.T @ rows / len(rows), atol=1e-12)
    np.testing.assert_allclose(moments.cross[0], answers.T @ rows / len(rows), atol=1e-12)
    matrix = layer.matrices(GraphView(model).array("w"))[0]
    trace = float(np.trace(matrix @ moments.gram[0] @ matrix.T))
    assert trace == pytest.approx(float(np.square(answers).sum()) / len(rows), rel=1e-9)


@pytest.mark.parametrize(("extents", "wanted"), [((5, 7), 6), ((4, 4), 4), ((9,), 8), ((30,), 1)])
def test_positions_are_drawn_per_sample_without_repetition(
    extents: tuple[int, ...], wanted: int
) -> None:
    at = Positions.draw(extents, 40, wanted, np.random.default_rng(1))
    np.testing.assert_array_equal(at.sample, np.repeat(np.arange(40), wanted))
    rows = set(zip(at.sample.tolist(), *(p.tolist() for p in at.place), strict=True))
    assert len(rows) == 40 * wanted
    for place, extent in zip(at.place, extents, strict=True):
        # Every index turns up: 40 draws of `wanted` out of at most 35 miss one with chance 1e-3.
        assert set(place.tolist()) == set(range(extent)) or wanted == 1
    of_one = {frozenset(r[1:] for r in rows if r[0] == n) for n in range(40)}
    assert len(of_one) > 5, "samples do not share their positions"
    again = Positions.draw(extents, 40, wanted, np.random.default_rng(1))
    other = Positions.draw(extents, 40, wanted, np.random.default_rng(2))
    for one, two in zip(at.place, again.place, strict=True):
        np.testing.assert_array_equal(one, two)
    assert any((a != b).any() for a, b in zip(at.place, other.place, strict=True))


def test_all_positions_where_more_are_wanted() -> None:
    at = Positions.draw((2, 3), 2, 6, np.random.default_rng(1))
    expected = [(n, i, j) for n in range(2) for i in range(2) for j in range(3)]
    assert list(zip(at.sample.tolist(), *(p.tolist() for p in at.place), strict=True)) == expected
    flat = Positions.draw((), 3, 1, np.random.default_rng(1))
    assert flat.place == ()
    assert flat.sample.tolist() == [0, 1, 2]


def test_unknown_padding_is_refused(nets: Any, kit: Any) -> None:
    spec = layer_of(convolution(nets, kit, CASES["plain"])).spec
    assert isinstance(spec, ConvSpec)
    with pytest.raises(ModelError, match="auto_pad 'ODD' of 'layer'"):
        resolved_pads(replace(spec, auto_pad="ODD"), (8, 9))
