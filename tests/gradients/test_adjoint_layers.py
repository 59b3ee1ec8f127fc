"""Convolutions and matrix products against exact differences, every geometry by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import GradientError
from onnxcompress.gradients.adjoints.layers import LAYERS

# Operands are a tuple (data of that shape), a list (a whole constant) or None.
Cases = dict[str, tuple[list[Any], dict[str, Any]]]
IMAGE = (2, 3, 7, 5)
CUBE = (3, 3, 3, 3)

CONV: Cases = {
    "distinct": ([IMAGE, [4, 3, 3, 2], [4]], {}),
    "equal": ([CUBE, [3, 3, 3, 3], [3]], {"pads": [1, 1, 1, 1]}),
    "1-D": ([(2, 3, 9), [4, 3, 3]], {"strides": [2], "pads": [1, 0]}),
    "3-D": ([(1, 2, 4, 5, 3), [3, 2, 2, 3, 1]], {"strides": [1, 2, 1], "pads": [0, 1, 0, 1, 0, 1]}),
    "pointwise": ([IMAGE, [4, 3, 1, 1]], {}),
    "pointwise, strides skip rows": ([IMAGE, [4, 3, 1, 1]], {"strides": [3, 2]}),
    "stride 2, nothing left over": ([IMAGE, [4, 3, 3, 3]], {"strides": [2, 2]}),
    "stride 2, a row left over": ([(2, 3, 6, 7), [4, 3, 3, 2]], {"strides": [2, 2]}),
    "stride 3, two rows left over": ([(2, 3, 8, 7), [4, 3, 3, 3]], {"strides": [3, 3]}),
    "strides of one and three": ([(2, 3, 8, 5), [4, 3, 3, 2]], {"strides": [1, 3]}),
    "asymmetric pads": ([IMAGE, [4, 3, 3, 3]], {"pads": [0, 2, 1, 1]}),
    "asymmetric pads, stride 2": (
        [IMAGE, [4, 3, 3, 3]],
        {"pads": [0, 2, 1, 1], "strides": [2, 2]},
    ),
    "pads beyond the kernel": ([(2, 3, 3, 4), [4, 3, 2, 1]], {"pads": [3, 1, 2, 0]}),
    "pads beyond the kernel, stride 2": (
        [(2, 3, 3, 4), [4, 3, 2, 1]],
        {"pads": [3, 1, 2, 2], "strides": [2, 2]},
    ),
    "dilation": ([IMAGE, [4, 3, 3, 2]], {"dilations": [2, 3], "pads": [1, 2, 3, 0]}),
    "dilation, stride 3": (
        [(2, 3, 9, 8), [4, 3, 3, 2]],
        {"dilations": [2, 3], "strides": [3, 2], "pads": [1, 0, 2, 1]},
    ),
    "groups": ([(2, 6, 4, 5), [4, 3, 3, 2]], {"group": 2, "pads": [1, 0, 0, 1]}),
    "groups, stride 2": ([(2, 6, 4, 5), [4, 3, 3, 2]], {"group": 2, "strides": [2, 2]}),
    "depthwise": ([(2, 3, 4, 5), [3, 1, 3, 3]], {"group": 3, "pads": [1, 1, 1, 1]}),
    "depthwise, two each": ([(2, 3, 4, 5), [6, 1, 3, 2]], {"group": 3}),
    "depthwise, two each, stride 3": (
        [(2, 3, 7, 5), [6, 1, 3, 2]],
        {"group": 3, "strides": [3, 3]},
    ),
    "valid": ([IMAGE, [4, 3, 3, 2]], {"auto_pad": "VALID"}),
    **{
        f"{mode}, stride {stride}": (
            [IMAGE, [4, 3, 4, 2]],
            {"auto_pad": mode, "strides": [stride, stride]},
        )
        for mode in ("SAME_UPPER", "SAME_LOWER")
        for stride in (1, 2, 3)
    },
    "same, stride beyond the kernel": (
        [IMAGE, [4, 3, 1, 2]],
        {"auto_pad": "SAME_UPPER", "strides": [3, 3]},
    ),
}

CONV_TRANSPOSE: Cases = {
    "distinct": ([(2, 3, 4, 5), [3, 4, 3, 2], [4]], {}),
    "equal": ([CUBE, [3, 3, 3, 3], [3]], {"pads": [1, 1, 1, 1]}),
    "1-D": ([(2, 3, 4), [3, 2, 3]], {"strides": [3], "pads": [1, 0]}),
    "3-D": ([(1, 2, 2, 3, 2), [2, 3, 2, 3, 1]], {"strides": [2, 1, 1], "pads": [0, 1, 0, 0, 1, 0]}),
    "stride 2": ([(2, 3, 4, 3), [3, 4, 3, 3]], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "stride 3 beyond the kernel": ([(2, 3, 3, 2), [3, 4, 2, 1]], {"strides": [3, 3]}),
    "asymmetric pads": ([(2, 3, 4, 3), [3, 4, 3, 3]], {"pads": [0, 2, 1, 1], "strides": [1, 2]}),
    "dilation": ([(2, 3, 3, 4), [3, 2, 3, 2]], {"dilations": [2, 3], "strides": [2, 1]}),
    "groups": ([(2, 4, 3, 2), [4, 3, 2, 3]], {"group": 2, "strides": [2, 1]}),
    "depthwise": ([(2, 3, 3, 2), [3, 1, 3, 3]], {"group": 3, "strides": [2, 2]}),
    "output padding": (
        [(2, 3, 3, 4), [3, 4, 3, 3]],
        {"strides": [2, 3], "pads": [1, 1, 1, 1], "output_padding": [1, 2]},
    ),
    "output padding as large as a window": (
        [(2, 3, 3, 2), [3, 2, 1, 2]],
        {"strides": [3, 3], "output_padding": [2, 2]},
    ),
    "output shape with output padding": (
        [(2, 3, 4, 3), [3, 2, 4, 3]],
        {"strides": [2, 2], "output_shape": [8, 6], "output_padding": [1, 1]},
    ),
    **{
        f"output shape, {mode}": (
            [(2, 3, 4, 3), [3, 2, 4, 3]],
            {"strides": [2, 2], "output_shape": shape, "auto_pad": mode},
        )
        for mode, shape in (("NOTSET", [7, 6]), ("SAME_UPPER", [9, 6]), ("SAME_LOWER", [9, 6]))
    },
    **{
        f"{mode}, stride {stride}": (
            [(2, 3, 4, 3), [3, 2, 4, 3]],
            {"strides": [stride, stride], "auto_pad": mode},
        )
        for mode in ("SAME_UPPER", "SAME_LOWER")
        for stride in (1, 2, 3)
    },
    "valid": ([(2, 3, 4, 3), [3, 2, 4, 3]], {"strides": [2, 1], "auto_pad": "VALID"}),
}

SHAPES = {(0, 0): ((2, 3), (3, 4)), (0, 1): ((2, 3), (4, 3)), (1, 0): ((3, 2), (3, 4))}
SHAPES[1, 1] = ((3, 2), (4, 3))
GEMM: Cases = {
    **{
        f"transposed {a}{b}, {kind}": (
            [left if kind != "right" else list(left), list(right) if kind == "left" else right],
            {"transA": a, "transB": b, "alpha": 2.0},
        )
        for (a, b), (left, right) in SHAPES.items()
        for kind in ("left", "right", "both")
    },
    "equal": ([(3, 3), [3, 3], [3]], {}),
    **{
        f"bias {shape}": ([(2, 3), [3, 4], shape], {"alpha": 0.5, "beta": -2.0})
        for shape in ((4,), (2, 4), (2, 1), (1, 4), (1,), ())
    },
}

MATMUL: Cases = {
    **{
        f"{left} by {right}, {kind}": (
            [left if kind != "right" else list(left), right if kind != "left" else list(right)],
            {},
        )
        for left, right in (
            ((2, 3), (3, 4)),
            ((3, 3), (3, 3)),
            ((3,), (3, 4)),
            ((2, 3), (3,)),
            ((3,), (3,)),
            ((3,), (2, 3, 4)),
            ((2, 4, 3), (3,)),
            ((5, 2, 3), (3, 4)),
            ((2, 3), (5, 3, 4)),
            ((5, 1, 2, 3), (4, 3, 2)),
            ((1, 2, 3), (4, 3, 2)),
        )
        for kind in ("left", "right", "both")
    },
}

CASES = {"Conv": CONV, "ConvTranspose": CONV_TRANSPOSE, "Gemm": GEMM, "MatMul": MATMUL}
FIRST = {operator: next(iter(cases)) for operator, cases in CASES.items()}
ALL = [(operator, label) for operator, cases in CASES.items() for label in cases]


@pytest.mark.parametrize(("operator", "label"), ALL)
def test_gradient_is_exact(oracle: Any, operator: str, label: str) -> None:
    operands, attributes = CASES[operator][label]
    oracle.exact(oracle.operator(operator, operands, attributes))


def test_every_operator_has_cases() -> None:
    assert set(CASES) == set(LAYERS)


@pytest.mark.parametrize("operator", CASES)
@pytest.mark.parametrize("opset", [9, 13, 18, 26])
def test_opsets(oracle: Any, operator: str, opset: int) -> None:
    # Gemm's C has to be there before opset 11.
    operands, attributes = CASES[operator]["equal" if operator == "Gemm" else FIRST[operator]]
    oracle.exact(oracle.operator(operator, operands, attributes, opset=opset))


@pytest.mark.parametrize(
    ("operator", "dtype"),
    # ONNX Runtime has no convolutions in float64.
    [*((o, np.float16) for o in CASES), ("Gemm", np.float64), ("MatMul", np.float64)],
)
def test_element_types(oracle: Any, operator: str, dtype: Any) -> None:
    operands, attributes = CASES[operator][FIRST[operator]]
    oracle.exact(oracle.operator(operator, operands, attributes, dtype=dtype))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_weight_made_at_run_time_takes_no_gradient(oracle: Any, operator: str, stride: int) -> None:
    case = oracle.operator(operator, [(1, 2, 4, 3), (2, 2, 2, 2)], {"strides": [stride] * 2})
    with pytest.raises(GradientError, match=r"'node'.*input 1"):
        oracle.gradients(case)


def test_same_pads_with_output_padding_are_refused(oracle: Any) -> None:
    # What ONNX's inference says of the size is not what ONNX Runtime makes.
    attributes = {"strides": [2, 2], "output_padding": [1, 1], "auto_pad": "SAME_UPPER"}
    case = oracle.operator("ConvTranspose", [(2, 3, 4, 3), [3, 2, 4, 3]], attributes)
    with pytest.raises(GradientError, match="SAME_UPPER with output_padding"):
        oracle.gradients(case)
