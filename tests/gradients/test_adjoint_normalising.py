"""Normalisations and softmax against differences in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxcompress.errors import GradientError
from onnxcompress.gradients.adjoints.normalising import NORMALISING

Cases = dict[str, tuple[list[Any], dict[str, Any]]]
IMAGE, CUBE = (2, 4, 3, 5), (3, 3, 3, 3)


def _spread(count: int) -> np.ndarray:
    """Variances."""
    return np.linspace(0.5, 2.0, count, dtype=np.float32)


CASES: dict[str, Cases] = {
    "BatchNormalization": {
        "distinct": ([IMAGE, [4], [4], [4], _spread(4)], {}),
        "equal": ([CUBE, [3], [3], [3], _spread(3)], {"epsilon": 0.3}),
        "1-D": ([(2, 3, 5), [3], [3], [3], _spread(3)], {}),
        "vectors": ([(2, 3), [3], [3], [3], _spread(3)], {}),
        "3-D": ([(1, 2, 2, 3, 1), [2], [2], [2], _spread(2)], {}),
    },
    "InstanceNormalization": {
        "distinct": ([IMAGE, [4], [4]], {}),
        "equal": ([CUBE, [3], [3]], {"epsilon": 0.3}),
        "1-D": ([(2, 3, 5), [3], [3]], {}),
        "3-D": ([(1, 2, 2, 3, 2), [2], [2]], {}),
    },
    "LayerNormalization": {
        "distinct": ([IMAGE, [5], [5]], {}),
        "equal": ([CUBE, [3], [3]], {"epsilon": 0.3}),
        "three axes": ([IMAGE, [4, 3, 5], [4, 3, 5]], {"axis": 1}),
        "negative axis": ([IMAGE, [3, 5]], {"axis": -2}),
        "equal, two axes": ([CUBE, [3, 3], [3, 3]], {"axis": 2}),
    },
    "GroupNormalization": {
        "distinct": ([IMAGE, [4], [4]], {"num_groups": 2}),
        "equal": ([CUBE, [3], [3]], {"num_groups": 3, "epsilon": 0.3}),
        "one group": ([(2, 6, 5), [6], [6]], {"num_groups": 1}),
        "unequal": ([(2, 6, 2, 3), [6], [6]], {"num_groups": 3}),
    },
    # ONNX Runtime has odd sizes only.
    "LRN": {
        "distinct": ([(2, 7, 2, 3)], {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 1.5}),
        "equal": ([CUBE], {"size": 3, "alpha": 0.5}),
        "wide": ([(2, 7, 2, 2)], {"size": 5, "alpha": 0.7}),
        "wider than the channels": ([(1, 3, 2, 2)], {"size": 9, "alpha": 0.7}),
        "of itself": ([(1, 3, 2, 2)], {"size": 1, "alpha": 0.7, "beta": 0.5}),
        "default": ([(1, 3, 2, 2)], {"size": 3}),
    },
    **{
        operator: {
            "distinct": ([IMAGE], {"axis": 1}),
            "equal": ([CUBE], {"axis": 2}),
            "default": ([IMAGE], {}),
            "negative": ([IMAGE], {"axis": -2}),
            "batch": ([IMAGE], {"axis": 0}),
            "scores": ([(2, 5)], {"axis": 1}),
        }
        for operator in ("Softmax", "LogSoftmax")
    },
}
ALL = [(operator, label) for operator, cases in CASES.items() for label in cases]
SINCE = {"GroupNormalization": 21, "LayerNormalization": 17}


def _standardised(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    centred = x - x.mean(axes, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(axes, keepdims=True) + epsilon))


def _lrn(x: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    size, count = given["size"], x.shape[1]
    squares = np.zeros_like(x)
    for c in range(count):
        first, last = c - (size - 1) // 2, c + size // 2
        squares[:, c] = (x[:, max(first, 0) : min(last, count - 1) + 1] ** 2).sum(axis=1)
    inner = given.get("bias", 1.0) + given.get("alpha", 1e-4) / size * squares
    return np.asarray(x / inner ** given.get("beta", 0.75))


def _flat_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """As before opset 13: over everything from an axis on."""
    rows = x.reshape(int(np.prod(x.shape[:axis])), -1)
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    return np.asarray((powers / powers.sum(axis=1, keepdims=True)).reshape(x.shape))


def _definition(case: Any) -> Any:
    """What the reference evaluator gets wrong, does in float32, or has no old opset of."""
    node, graph = case.model.graph.node[0], case.model.graph
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    weights = [numpy_helper.to_array(t).astype(np.float64) for t in graph.initializer]
    epsilon = given.get("epsilon", 1e-5)

    def per_channel(values: np.ndarray, rank: int) -> np.ndarray:
        return values.reshape(-1, *[1] * (rank - 2))

    def run(feeds: Any) -> list[np.ndarray]:
        x = feeds["x0"]
        scaled = [per_channel(w, x.ndim) for w in weights]
        match node.op_type:
            case "BatchNormalization":
                scale, bias, mean, variance = scaled
                return [(x - mean) / np.sqrt(variance + epsilon) * scale + bias]
            case "GroupNormalization":
                grouped = x.reshape(len(x), given["num_groups"], -1)
                return [
                    _standardised(grouped, (2,), epsilon).reshape(x.shape) * scaled[0] + scaled[1]
                ]
            case "LRN":
                return [_lrn(x, given)]
            case "Softmax":
                return [_flat_softmax(x, given["axis"])]
        return [np.log(_flat_softmax(x, given["axis"]))]

    return run


DEFINED = {"BatchNormalization", "GroupNormalization", "LRN"}


def _check(oracle: Any, case: Any) -> None:
    node = case.model.graph.node[0]
    old = "Softmax" in node.op_type and case.model.opset_import[0].version < 13
    oracle.smooth(case, forward=_definition(case) if old or node.op_type in DEFINED else None)


def test_every_operator_has_cases() -> None:
    assert set(CASES) == set(NORMALISING)


@pytest.mark.parametrize(("operator", "label"), ALL)
def test_gradients(oracle: Any, operator: str, label: str) -> None:
    _check(oracle, oracle.operator(operator, *CASES[operator][label], draw="smooth"))


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("opset", [9, 11])
def test_softmax_of_everything_behind_an_axis(
    oracle: Any, operator: str, axis: int, opset: int
) -> None:
    case = oracle.operator(operator, [IMAGE], {"axis": axis}, opset=opset, draw="smooth")
    _check(oracle, case)


def test_softmax_of_large_scores_does_not_overflow(oracle: Any) -> None:
    case = oracle.operator("Softmax", [(2, 4)], {"axis": 1})
    case.feeds["x0"][:] = [[500.0, 499.0, -500.0, 498.5], [-300.0, -301.0, -300.5, -700.0]]
    oracle.smooth(oracle.seeded(case.model, case.feeds))


@pytest.mark.parametrize("operator", ["InstanceNormalization", "LayerNormalization"])
def test_constant_planes_have_finite_gradients(oracle: Any, operator: str) -> None:
    operands = [[3], [3]] if operator == "InstanceNormalization" else [[4]]
    case = oracle.operator(operator, [(2, 3, 4), *operands])
    case.feeds["x0"][...] = 2.0
    found = oracle.gradients(case)["x0"]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=2), 0, atol=1e-3 * np.abs(found).max())


def test_further_outputs_that_the_loss_depends_on_are_refused(oracle: Any) -> None:
    case = oracle.operator(
        "LayerNormalization", [(2, 3, 4), [4], [4]], outputs=["y", "y_mean"], draw="smooth"
    )
    with pytest.raises(GradientError, match="LayerNormalization 'node'"):
        oracle.gradients(case)


def test_batch_statistics_are_refused(oracle: Any) -> None:
    case = oracle.operator(
        "BatchNormalization",
        [(2, 3, 4), [3], [3], [3], _spread(3)],
        {"training_mode": 1},
        outputs=["y", "mean", "variance"],
        draw="smooth",
    )
    with pytest.raises(GradientError, match=r"BatchNormalization 'node' .it is in training mode"):
        oracle.gradients(case)


def test_group_scales_are_refused(oracle: Any) -> None:
    operands = [(2, 6, 3), [2], [2]]
    case = oracle.operator("GroupNormalization", operands, {"num_groups": 2}, opset=18)
    with pytest.raises(GradientError, match=r"GroupNormalization 'node' .its scale is per group"):
        oracle.gradients(case)


@pytest.mark.parametrize(
    ("operator", "opset"),
    [(o, v) for o in CASES for v in (9, 13, 15, 17, 18, 21, 26) if v >= SINCE.get(o, 0)],
)
def test_opsets(oracle: Any, operator: str, opset: int) -> None:
    case = oracle.operator(operator, *CASES[operator]["distinct"], opset=opset, draw="smooth")
    _check(oracle, case)


@pytest.mark.parametrize("operator", CASES)
def test_half_precision(oracle: Any, operator: str) -> None:
    # A dozen operators in a row round to float16 each, some of them sums of as many terms.
    half = oracle.operator(operator, *CASES[operator]["distinct"], draw="smooth", dtype=np.float16)
    full = oracle.operator(operator, *CASES[operator]["distinct"], draw="smooth")
    full.feeds["x0"][...] = half.feeds["x0"]
    full.cotangents["y"][...] = half.cotangents["y"]
    found, expected = oracle.gradients(half)["x0"], oracle.gradients(full)["x0"]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=0, atol=24 * 2.0**-11 * np.abs(expected).max())
