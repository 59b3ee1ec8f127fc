"""The same gradients from CUDA's kernels: first of all those of unusual geometry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import ProviderError
from onnxcompress.runtime import Execution

UNEVEN = {"strides": [2, 3], "dilations": [2, 1], "pads": [1, 0, 2, 1]}
CASES = {
    "Conv, stride 1": ("Conv", [(2, 4, 7, 6), [6, 2, 3, 2]], {"group": 2, "pads": [2, 0, 1, 1]}),
    "Conv, uneven": ("Conv", [(2, 4, 9, 8), [6, 4, 3, 2]], UNEVEN),
    "Conv, uneven groups": ("Conv", [(2, 4, 9, 8), [6, 2, 3, 2]], {**UNEVEN, "group": 2}),
    "Conv, depthwise": ("Conv", [(2, 4, 9, 8), [4, 1, 3, 3]], {"strides": [2, 2], "group": 4}),
    "ConvTranspose, uneven": ("ConvTranspose", [(2, 4, 5, 4), [4, 3, 3, 2]], UNEVEN),
    "Gemm": ("Gemm", [(3, 5), [5, 4], [4]], {}),
    "MatMul": ("MatMul", [(2, 3, 5), (2, 5, 4)], {}),
    "MaxPool": (
        "MaxPool",
        [(2, 3, 7, 8)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4},
    ),
    "AveragePool": (
        "AveragePool",
        [(2, 3, 8, 8)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    ),
    "Resize": (
        "Resize",
        [(1, 2, 3, 4), None, np.array([1, 1, 2, 2], np.float32)],
        {"mode": "nearest"},
    ),
    "Slice": (
        "Slice",
        [(2, 7, 4), np.array([6]), np.array([0]), np.array([1]), np.array([-2])],
        {},
    ),
}


@pytest.mark.gpu
@pytest.mark.parametrize("label", CASES)
def test_gradients_are_those_of_the_cpu(oracle: Any, label: str) -> None:
    operator, operands, attributes = CASES[label]
    case = oracle.operator(operator, operands, attributes, draw="whole")
    try:
        found = oracle.gradients(case, Execution(("cuda", "cpu")))
    except ProviderError as error:
        pytest.skip(f"no session on CUDA here: {error}")
    expected = oracle.gradients(case)
    assert set(found) == set(expected)
    # Small whole numbers are exact even in TF32.
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
