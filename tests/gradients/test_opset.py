"""Raising the opset keeps names, weights and, above all, what is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcompress.errors import GradientError
from onnxcompress.gradients.opset import LOWEST, raised

node = helper.make_node
# A few float32 operators in another order.
ROUNDED = 1e-6


def _same(oracle: Any, case: Any) -> onnx.ModelProto:
    """What the raised model computes is what the original did."""
    before = case.model.SerializeToString()
    result = raised(case.model)
    assert case.model.SerializeToString() == before
    for one, other in zip(
        oracle.run(case.model, case.feeds), oracle.run(result, case.feeds), strict=True
    ):
        scale = float(np.abs(one).max())
        np.testing.assert_allclose(other, one, rtol=0, atol=ROUNDED * scale)
    return result


@pytest.mark.parametrize("opset", [18, 21, 26])
def test_newer_models_are_only_copied(oracle: Any, opset: int) -> None:
    case = oracle.operator("Relu", [(2, 3)], opset=opset)
    result = raised(case.model)
    assert result == case.model
    assert result is not case.model


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 16, 17])
def test_a_network_computes_the_same(oracle: Any, opset: int) -> None:
    weights = {
        "w": oracle.draw("smooth", (40, 4, 3, 3), seed=1),
        "b": oracle.draw("smooth", (40,), seed=2),
        "w1": oracle.draw("smooth", (40, 5), seed=3),
        "b1": oracle.draw("smooth", (5,), seed=4),
        **{f"n{i}": oracle.draw("positive", (40,), seed=5 + i) for i in range(4)},
    }
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"], name="first", pads=[1, 0, 1, 1]),
        node("BatchNormalization", ["a", *(f"n{i}" for i in range(4))], ["n"], name="norm"),
        node("Relu", ["n"], ["r"], name="relu"),
        node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["p"], ["g"], name="mean"),
        node("Flatten", ["g"], ["f"], name="flat"),
        node("Gemm", ["f", "w1", "b1"], ["d"], name="dense"),
        node("Softmax", ["d"], ["y"], name="end", axis=1),
    ]
    case = oracle.graph(
        nodes, {"x": oracle.draw("smooth", (2, 4, 6, 5))}, ["y"], weights, opset=opset
    )
    result = _same(oracle, case)
    assert result.opset_import[0].version == LOWEST
    names = {name for one in case.model.graph.node for name in one.output}
    assert names <= {name for one in result.graph.node for name in one.output}
    assert [i.name for i in result.graph.input] == ["x"]
    # The large weight is that of the original, and not taken for an input.
    held = {tensor.name: tensor for tensor in result.graph.initializer}
    assert held["w"] == next(t for t in case.model.graph.initializer if t.name == "w")
    assert not any(one.op_type == "Constant" for one in result.graph.node)


X = (2, 3, 4, 5)
OLD: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "Slice 9": ("Slice", [X], {"opset": 9, "starts": [1, 0], "ends": [4, -2], "axes": [2, 3]}),
    "Clip 6": ("Clip", [X], {"opset": 9, "min": -1.0, "max": 2.0}),
    "Pad 2": ("Pad", [X], {"opset": 9, "pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 2.0}),
    "Squeeze 1": ("Squeeze", [(2, 1, 3)], {"opset": 9, "axes": [1]}),
    "Unsqueeze 1": ("Unsqueeze", [X], {"opset": 9, "axes": [0, 5]}),
    "ReduceMean 1": ("ReduceMean", [X], {"opset": 9, "axes": [2, 3], "keepdims": 0}),
    "ReduceSum 1": ("ReduceSum", [X], {"opset": 9, "axes": [1]}),
    "ReduceL2 13": ("ReduceL2", [X], {"opset": 13, "axes": [1]}),
    "Softmax 1": ("Softmax", [X], {"opset": 9, "axis": 1}),
    "Softmax 1, default": ("Softmax", [X], {"opset": 9}),
    "LogSoftmax 11": ("LogSoftmax", [X], {"opset": 11, "axis": 2}),
    "Upsample 9, nearest": ("Upsample", [X, np.array([1, 1, 2, 3], np.float32)], {"opset": 9}),
    "Upsample 9, linear": (
        "Upsample",
        [X, np.array([1, 1, 2, 3], np.float32)],
        {"opset": 9, "mode": "linear"},
    ),
    "Upsample 7, linear": (
        "Upsample",
        [X],
        {"opset": 8, "mode": "linear", "scales": [1.0, 1.0, 2.0, 1.5]},
    ),
    "Resize 10, linear": (
        "Resize",
        [X, np.array([1, 1, 0.5, 1.6], np.float32)],
        {"opset": 10, "mode": "linear"},
    ),
    "Resize 10, larger": ("Resize", [X, np.array([1, 1, 1.3, 1.6], np.float32)], {"opset": 10}),
    "Resize 10, smaller": ("Resize", [X, np.array([1, 1, 0.7, 0.6], np.float32)], {"opset": 10}),
    "Resize 11, by sizes": (
        "Resize",
        [X, np.zeros(0, np.float32), np.zeros(0, np.float32), np.array([2, 3, 7, 6])],
        {"opset": 11, "mode": "cubic", "coordinate_transformation_mode": "align_corners"},
    ),
    "AveragePool 7": (
        "AveragePool",
        [X],
        {"opset": 9, "kernel_shape": [2, 3], "pads": [1, 1, 0, 1]},
    ),
    "HardSwish 14": ("HardSwish", [X], {"opset": 14}),
    "PRelu 7": ("PRelu", [X, [3, 1, 1]], {"opset": 8}),
    "Dropout 7": ("Dropout", [X], {"opset": 9, "ratio": 0.3}),
    "DepthToSpace 1": ("DepthToSpace", [(1, 8, 2, 3)], {"opset": 9, "blocksize": 2}),
    "TopK-free ArgMax 1": ("ArgMax", [X], {"opset": 9, "axis": 1}),
}


@pytest.mark.parametrize("label", OLD)
def test_operators_compute_the_same(oracle: Any, label: str) -> None:
    _same(oracle, oracle.operator(*OLD[label], draw="distinct"))


def test_what_cannot_be_raised_is_refused(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no adapter\nfor it")

    case = oracle.operator("Relu", [(2, 3)], opset=11)
    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    with pytest.raises(GradientError, match=r"raised from opset 11 to 18.*: no adapter for it$"):
        raised(case.model)


def test_a_tensor_that_gets_lost_is_refused(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = oracle.operator("Relu", [(2, 3)], opset=11)
    other = oracle.operator("Relu", [(2, 3)], opset=18, outputs=["yes"]).model
    monkeypatch.setattr(onnx.version_converter, "convert_version", lambda *_: other)
    with pytest.raises(GradientError, match=r"from 11 to 18 loses 'y'"):
        raised(case.model)


def test_nearest_neighbours_that_grow_and_shrink_are_refused(oracle: Any) -> None:
    # Up to opset 10 every axis has a rounding of its own; since then there is one for all.
    scales = np.array([1, 1, 0.7, 1.6], np.float32)
    case = oracle.operator("Resize", [X, scales], opset=10)
    with pytest.raises(GradientError, match="grows and shrinks"):
        raised(case.model)
