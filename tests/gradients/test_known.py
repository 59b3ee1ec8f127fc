"""Values that only sizes decide, and graphs whose geometry is computed from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcompress.errors import GradientError
from onnxcompress.gradients.known import know

node = helper.make_node
BOX = (2, 3, 4)


def test_a_shape_that_is_computed(oracle: Any) -> None:
    # As exporters write x.view(x.size(0), -1).
    nodes = [
        node("Mul", ["x", "x"], ["a"], name="a"),
        node("Shape", ["a"], ["shape"], name="b"),
        node("Gather", ["shape", "zero"], ["batch"], name="c", axis=0),
        node("Concat", ["batch", "rest"], ["target"], name="d", axis=0),
        node("Reshape", ["a", "target"], ["b"], name="e"),
        node("Mul", ["b", "factor"], ["y"], name="f"),
    ]
    constants = {
        "zero": np.array([0], np.int64),
        "rest": np.array([-1], np.int64),
        "factor": oracle.draw("whole", (12,), seed=2),
    }
    case = oracle.graph(nodes, {"x": oracle.draw("whole", BOX)}, ["y"], constants)
    oracle.exact(case)
    known = know(case.model, {"x": BOX})
    assert known.value("target").tolist() == [2, -1]
    assert known.value("rest").tolist() == [-1]
    assert (known.shapes["y"], known.types["y"]) == ((2, 12), TensorProto.FLOAT)
    with pytest.raises(GradientError, match="tensor 'a' is computed at run time"):
        known.value("a")


def test_bounds_that_are_computed(oracle: Any) -> None:
    # The first half of the channels: end = size(1) / 2.
    nodes = [
        node("Mul", ["x", "x"], ["a"], name="a"),
        node("Shape", ["a"], ["shape"], name="b"),
        node("Gather", ["shape", "one"], ["width"], name="c", axis=0),
        node("Div", ["width", "two"], ["half"], name="d"),
        node("Slice", ["a", "zero", "half", "one"], ["left"], name="e"),
        node("Slice", ["a", "half", "width", "one", "one"], ["right"], name="f"),
        node("Mul", ["left", "right"], ["y"], name="g"),
    ]
    constants = {k: np.array([v], np.int64) for k, v in (("zero", 0), ("one", 1), ("two", 2))}
    oracle.exact(oracle.graph(nodes, {"x": oracle.draw("whole", (2, 6, 3))}, ["y"], constants))


def test_scales_that_are_computed(oracle: Any) -> None:
    # As exporters write interpolate(a, size=b.shape[2:]): the scales are a quotient of sizes, and
    # no gradient goes through them.
    nodes = [
        node("Mul", ["x", "x"], ["a"], name="a"),
        node("Shape", ["a"], ["shape"], name="b"),
        node("Cast", ["shape"], ["extents"], name="c", to=TensorProto.FLOAT),
        node("Div", ["wide", "extents"], ["scales"], name="d"),
        node("Resize", ["a", "", "scales"], ["y"], name="e", mode="nearest"),
    ]
    constants = {"wide": np.array([1, 2, 6, 4], np.float32)}
    oracle.exact(oracle.graph(nodes, {"x": oracle.draw("whole", (1, 2, 3, 2))}, ["y"], constants))


@pytest.mark.parametrize("kind", ["Pow", "Mul"])
def test_numbers_computed_from_sizes_take_no_gradient(oracle: Any, kind: str) -> None:
    nodes = [
        node("Neg", ["x"], ["a"], name="a"),
        node("Size", ["a"], ["size"], name="b"),
        node("Cast", ["size"], ["count"], name="c", to=TensorProto.FLOAT),
        node("Div", ["count", "three"], ["factor"], name="d"),
        node(kind, ["a", "factor"], ["y"], name="e"),
    ]
    constants = {"three": np.float32(3.0)}
    oracle.exact(oracle.graph(nodes, {"x": oracle.draw("whole", (2, 3))}, ["y"], constants))


def test_random_numbers_are_no_constants(oracle: Any) -> None:
    nodes = [
        node("RandomUniform", [], ["noise"], name="a", shape=[3]),
        node("Mul", ["x", "noise"], ["y"], name="b"),
    ]
    case = oracle.graph(nodes, {"x": oracle.draw("whole", (2, 3))}, ["y"])
    known = know(case.model, {"x": (2, 3)})
    with pytest.raises(GradientError, match="'noise' is computed at run time"):
        known.value("noise")


def test_types_of_what_inference_leaves_open(oracle: Any) -> None:
    nodes = [
        node("NonZero", ["x"], ["at"], name="a"),
        node("Transpose", ["at"], ["rows"], name="b"),
        node("Mul", ["x", "x"], ["y"], name="c"),
    ]
    case = oracle.graph(nodes, {"x": np.ones((2, 3), np.float32)}, ["y", "rows"])
    known = know(case.model, {"x": (2, 3)})
    assert known.types["rows"] == TensorProto.INT64
    assert len(known.shapes["rows"]) == 2
    assert known.dtype("x") == np.float32
