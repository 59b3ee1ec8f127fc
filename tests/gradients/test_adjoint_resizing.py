"""Resize against differences of ONNX Runtime's own kernels, whatever their rounding rules."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import GradientError
from onnxcompress.gradients.adjoints.separable import SEPARABLE

IMAGE, CUBE = (2, 3, 5, 4), (3, 3, 3, 3)
COORDINATES = [
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
]
ROUNDING = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
# Weights are rounded once, and differences of numbers up to 3 with a dozen of them summed.
ROUNDED = 2e-6

# Either scales for the two last axes, or their new extents.
UP_AND_DOWN: dict[str, tuple[tuple[int, ...], str, tuple[float, ...]]] = {
    "twice": (IMAGE, "scales", (2.0, 2.0)),
    "up by halves": (IMAGE, "scales", (1.5, 2.5)),
    "down": (IMAGE, "scales", (0.5, 0.75)),
    "up and down": (IMAGE, "scales", (0.6, 1.3)),
    "sizes": (IMAGE, "sizes", (7, 3)),
    "sizes, equal": (CUBE, "sizes", (5, 5)),
    "equal, twice": (CUBE, "scales", (2.0, 2.0)),
    "one axis stays": (IMAGE, "sizes", (5, 9)),
    "to a single row": (IMAGE, "sizes", (1, 2)),
}


def _resize(oracle: Any, label: str, attributes: dict[str, Any], **how: Any) -> Any:
    shape, kind, values = UP_AND_DOWN[label]
    if kind == "scales":
        extra = [None, np.array([1.0, 1.0, *values], np.float32)]
    else:
        extra = [None, None, np.array([*shape[:2], *values], np.int64)]
    return oracle.operator("Resize", [shape, *extra], attributes, **how)


def test_every_operator_has_cases() -> None:
    assert {"Resize"} == set(SEPARABLE)


@pytest.mark.parametrize("label", UP_AND_DOWN)
@pytest.mark.parametrize(("coordinates", "rounding"), list(product(COORDINATES, ROUNDING)))
def test_nearest(oracle: Any, label: str, coordinates: str, rounding: str) -> None:
    attributes = {
        "mode": "nearest",
        "coordinate_transformation_mode": coordinates,
        "nearest_mode": rounding,
    }
    oracle.exact(_resize(oracle, label, attributes))


@pytest.mark.parametrize("label", UP_AND_DOWN)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_interpolation(oracle: Any, label: str, mode: str, coordinates: str) -> None:
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    oracle.exact(_resize(oracle, label, attributes), tolerance=ROUNDED)


@pytest.mark.parametrize("label", ["down", "up and down", "sizes", "sizes, equal"])
@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "cubic", "cubic_coeff_a": -0.5},
        {"mode": "cubic", "exclude_outside": 1},
        {"mode": "linear", "antialias": 1},
        {"mode": "cubic", "antialias": 1},
    ],
    ids=str,
)
def test_further_attributes(oracle: Any, label: str, attributes: dict[str, Any]) -> None:
    oracle.exact(_resize(oracle, label, attributes), tolerance=ROUNDED)


SHAPES: list[tuple[tuple[int, ...], str, list[float]]] = [
    ((2, 3, 5), "linear", [1.0, 1.0, 1.6]),
    ((2, 3, 5), "nearest", [1.0, 1.0, 2.0]),
    ((5, 4), "linear", [0.6, 2.0]),
    ((5, 4), "cubic", [2.0, 1.5]),
    ((1, 2, 3, 2, 4), "linear", [1.0, 1.0, 2.0, 1.5, 0.5]),
    ((1, 2, 3, 2, 4), "nearest", [1.0, 1.0, 2.0, 1.5, 0.5]),
    ((3, 3, 3, 3, 3), "nearest", [1.0, 1.0, 2.0, 2.0, 2.0]),
    ((2, 3, 4), "nearest", [2.0, 2.0, 2.0]),
    ((2, 3, 4, 5), "nearest", [1.0, 2.0, 1.0, 1.0]),
]


@pytest.mark.parametrize(("shape", "mode", "scales"), SHAPES)
def test_other_ranks(oracle: Any, shape: Any, mode: str, scales: list[float]) -> None:
    operands = [shape, None, np.array(scales, np.float32)]
    oracle.exact(oracle.operator("Resize", operands, {"mode": mode}), tolerance=ROUNDED)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    ("axes", "scales", "sizes"),
    [
        ([2, 3], [1.5, 2.0], None),
        ([3, 2], [1.5, 2.0], None),
        ([-1, -2], [1.5, 2.0], None),
        ([3], [2.0], None),
        ([2, 3], None, [7, 3]),
        ([3, 2], None, [7, 3]),
        ([-2], None, [8]),
    ],
)
def test_axes(oracle: Any, mode: str, axes: Any, scales: Any, sizes: Any) -> None:
    extra = [None if scales is None else np.array(scales, np.float32)]
    if sizes is not None:
        extra.append(np.array(sizes, np.int64))
    case = oracle.operator("Resize", [IMAGE, None, *extra], {"mode": mode, "axes": axes})
    oracle.exact(case, tolerance=ROUNDED)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("width", [1.2, 2.0])
def test_same_extent_by_another_scale(oracle: Any, mode: str, width: float) -> None:
    # 5 * 1.1 is cut to 5 rows, which lie elsewhere than those of the input unless nothing at all
    # changes its extent, in which case ONNX Runtime copies.
    scales = np.array([1.0, 1.0, 1.1, width], np.float32)
    case = oracle.operator("Resize", [IMAGE, None, scales], {"mode": mode})
    assert case.cotangents["y"].shape == (*IMAGE[:3], int(IMAGE[3] * width))
    oracle.exact(case, tolerance=ROUNDED)


@pytest.mark.parametrize(
    "attributes",
    [
        {"coordinate_transformation_mode": "tf_crop_and_resize"},
        {"keep_aspect_ratio_policy": "not_larger"},
    ],
    ids=str,
)
def test_refused(oracle: Any, attributes: dict[str, Any]) -> None:
    region = np.array([0.0, 0.0, 0.1, 0.1, 1.0, 1.0, 0.9, 0.9], np.float32)
    sizes = np.array([2, 3, 7, 8], np.int64)
    if "keep_aspect_ratio_policy" in attributes:
        attributes = {**attributes, "axes": [2, 3]}
        sizes = sizes[2:]
    case = oracle.operator("Resize", [IMAGE, region, None, sizes], attributes)
    with pytest.raises(GradientError, match="Resize 'node'"):
        oracle.gradients(case)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [11, 13, 18, 19, 26])
def test_opsets(oracle: Any, mode: str, opset: int) -> None:
    # The region had to be named before opset 13.
    region = np.zeros(0, np.float32) if opset < 13 else None
    operands = [IMAGE, region, np.array([1.0, 1.0, 0.6, 1.3], np.float32)]
    case = oracle.operator("Resize", operands, {"mode": mode}, opset=opset)
    oracle.exact(case, tolerance=ROUNDED)


@pytest.mark.parametrize("scales", [(2.0, 3.0), (1.5, 2.5), (1.0, 1.7)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("operator", "opset"), [("Resize", 10), ("Upsample", 9)])
def test_older_forms(
    oracle: Any, operator: str, opset: int, mode: str, scales: tuple[float, float]
) -> None:
    # Before opset 11 coordinates are asymmetric, and rounded down.
    given = np.array([1.0, 1.0, *scales], np.float32)
    case = oracle.operator(operator, [IMAGE, given], {"mode": mode}, opset=opset)
    oracle.exact(case, tolerance=ROUNDED)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_half_precision(oracle: Any, mode: str) -> None:
    # Twice as many rows: weights are quarters, and everything is exact.
    oracle.exact(_resize(oracle, "twice", {"mode": mode}, dtype=np.float16))
