"""Layers that mix a few kernels: as two convolutions, for every geometry."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.facts import analyse
from onnxcompress.graph.view import GraphView
from onnxcompress.plan.contract import Site
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.runtime import Execution, open_session
from onnxcompress_passes.dsl.dsl import Dsl
from onnxcompress_passes.dsl.edges import lines_of, spread

GEOMETRIES = {
    "plain": "pads = [1, 1, 1, 1]",
    "strided": "strides = [2, 1], pads = [1, 0, 0, 1]",
    "dilated": "dilations = [2, 1], pads = [2, 1, 2, 1]",
    "lopsided": "strides = [2, 2], pads = [2, 0, 1, 1]",
}


def network(geometry: str) -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 4, 9, 11] x) => (float[N, 6, A, B] y) {{
        [conv] y = Conv <kernel_shape = [3, 3], {geometry}> (x, w, b) }}"""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(1)
    for name, shape in {"w": (6, 4, 3, 3), "b": (6,)}.items():
        values = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model


def run(model: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(2).standard_normal((2, 4, 9, 11)).astype(np.float32)
    with open_session(model, Execution(threads=1)) as session:
        return np.asarray(session.run({"x": x})[0])


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("count", [9, 3])
def test_two_convolutions_compute_the_mixed_kernels(geometry: str, count: int) -> None:
    """Against the original layer with the weights that the atoms mix to."""
    model = network(geometry)
    owner: Dsl = Dsl(shared="atoms", count=str(count))
    facts = analyse(model, {"x": (1, 4, 9, 11)})
    (candidate,) = owner.candidates(Site("dsl", "conv"), facts)
    result = rewrite(model, [candidate], {"dsl": owner}, strict=True).model
    view = GraphView(result)
    filters, mixture = (
        view.array64(view.nodes[name].input[1]) for name in ("conv_atoms", "conv_mixture")
    )
    assert filters.shape == (4 * count, 1, 3, 3)
    mixed = np.einsum(
        "ock,ckij->ocij", mixture.reshape(6, 4, count), filters.reshape(4, count, 3, 3)
    )
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(mixed.astype(np.float32), "w"))
    expected, close = run(whole), 1e-6 * np.abs(run(whole)).max()
    np.testing.assert_allclose(run(result), expected, rtol=0, atol=close)
    if count == 9:
        np.testing.assert_allclose(run(result), run(model), rtol=0, atol=close)


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("along", [2, 3])
def test_split_edges_compute_the_kernels(geometry: str, along: int) -> None:
    """A layer whose kernels are edge filters already: the split is exact."""
    model = network(geometry)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    alike = np.broadcast_to(weight.mean(axis=along, keepdims=True), weight.shape)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(alike), "w"))
    owner: Dsl = Dsl(shared="edges")
    (candidate,) = owner.candidates(Site("dsl", "conv"), analyse(model, {"x": (1, 4, 9, 11)}))
    assert candidate.damage == pytest.approx(0.0, abs=1e-12)
    assert candidate.setting.edges == {2: "vertical", 3: "horizontal"}[along]
    result = rewrite(model, [candidate], {"dsl": owner}, strict=True).model
    assert [n.op_type for n in result.graph.node] == ["Conv", "Conv"]
    close = 1e-6 * np.abs(run(model)).max()
    np.testing.assert_allclose(run(result), run(model), rtol=0, atol=close)


def test_fitted_edges_are_the_best_in_the_metric_of_the_data() -> None:
    generator = np.random.default_rng(4)
    weight, rows = generator.standard_normal((5, 3, 9)), generator.standard_normal((200, 27))
    metric = rows.T @ rows / len(rows)
    for orientation in ("vertical", "horizontal"):
        lines = lines_of(weight, 3, orientation, metric)
        kernels = spread(lines, orientation)
        missed = ((kernels - weight).reshape(5, -1) @ metric).reshape(5, 3, 3, 3)
        slope = missed.sum(axis=2 if orientation == "vertical" else 3)
        # Damping moves the optimum by about a thousandth.
        assert np.abs(slope).max() < 5e-3 * np.abs(missed).max()


def test_fewer_atoms_cost_less_and_err_more() -> None:
    facts = analyse(network(GEOMETRIES["plain"]), {"x": (1, 4, 9, 11)})
    offers: Any = Dsl(shared="atoms").candidates(Site("dsl", "conv"), facts)
    assert [c.setting.atoms for c in offers] == list(range(9, 0, -1))
    assert [c.damage for c in offers] == sorted(c.damage for c in offers)
    assert offers[0].damage == 0.0
    # One atom on four channels of 9 x 11 positions, and a mixture of them for six outputs.
    assert offers[-1].after.macs == (4 * 9 + 4 * 6) * 99
