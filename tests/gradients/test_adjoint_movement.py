"""Operators that move elements, against exact differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.errors import GradientError
from onnxcompress.gradients.adjoints.movement import MOVEMENT

Cases = dict[str, tuple[list[Any], dict[str, Any]]]
BOX, CUBE = (2, 5, 4), (3, 3, 3)


def whole(*values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(value: int) -> np.ndarray:
    return np.array(value, np.int64)


SLICE: Cases = {
    "distinct": ([BOX, whole(1, 0), whole(4, 2), whole(1, 2)], {}),
    "equal": ([CUBE, whole(1, 0), whole(3, 2), whole(0, 2)], {}),
    "without axes": ([BOX, whole(1, 2), whole(2, 4)], {}),
    "negative axes": ([BOX, whole(1, 0), whole(4, 2), whole(-2, -1)], {}),
    "negative axes with steps": ([BOX, whole(1, 0), whole(5, 4), whole(-2, -1), whole(2, 3)], {}),
    "negative axis with a step, equal": ([CUBE, whole(0), whole(3), whole(-1), whole(2)], {}),
    "negative bounds": ([BOX, whole(-4, -3), whole(-1, -1), whole(1, 2)], {}),
    "open ends": ([BOX, whole(2, -100), whole(2**62, 2**31), whole(1, 2)], {}),
    "steps": ([BOX, whole(0, 1), whole(5, 4), whole(1, 2), whole(2, 3)], {}),
    "steps and contiguous": ([BOX, whole(1, 1), whole(5, 3), whole(1, 2), whole(3, 1)], {}),
    "backwards": ([BOX, whole(4), whole(0), whole(1), whole(-1)], {}),
    "backwards to the beginning": ([BOX, whole(-1), whole(-(2**62)), whole(1), whole(-2)], {}),
    "backwards beyond both ends": ([BOX, whole(100), whole(-6), whole(1), whole(-1)], {}),
    "backwards, equal": ([CUBE, whole(2, 2), whole(-9, -9), whole(0, 2), whole(-1, -2)], {}),
    "backwards, negative axis": ([BOX, whole(-1), whole(-9), whole(-1), whole(-1)], {}),
}

GATHER: Cases = {
    "distinct": ([BOX, whole(3, 0, 1)], {"axis": 1}),
    "equal": ([CUBE, whole(2, 0, 1)], {"axis": 1}),
    "default axis": ([BOX, whole(1, 0, 1)], {}),
    "negative axis": ([BOX, whole(2, 0)], {"axis": -1}),
    "duplicates": ([BOX, whole(3, 0, 3, 3, 1, 0)], {"axis": 1}),
    "duplicates, equal": ([CUBE, whole(2, 2, 0)], {"axis": -1}),
    "negative indices": ([BOX, whole(-1, -5, 4, 2)], {"axis": 1}),
    "scalar": ([BOX, scalar(2)], {"axis": 1}),
    "negative scalar": ([BOX, scalar(-1)], {"axis": 2}),
    "two axes of indices": ([BOX, whole([3, 0, -2], [1, 1, 4])], {"axis": 1}),
    "two axes of indices, equal": ([CUBE, whole([2, 0, 1], [1, 1, -1], [0, 0, 0])], {"axis": 2}),
    "narrow indices": ([BOX, np.array([3, -1], np.int32)], {"axis": 1}),
}

PADS = whole(0, 1, 2, 1, 3, 0)
PAD: Cases = {
    "distinct": ([BOX, PADS], {}),
    "equal": ([CUBE, PADS], {}),
    "with a value": ([BOX, PADS, np.float32(5.0)], {}),
    "negative": ([BOX, whole(0, -1, 2, 1, -2, -1)], {}),
    "with axes": ([BOX, whole(1, 2, 3, 0), None, whole(1, 2)], {}),
    "with negative axes": ([BOX, whole(1, 2, 3, 0), None, whole(-1, -2)], {}),
    **{
        f"{mode}, {label}": ([shape, pads, *more], {"mode": mode})
        for mode in ("edge", "reflect", "wrap")
        for label, shape, pads, more in (
            ("distinct", BOX, whole(0, 4, 2, 1, 3, 0), []),
            ("equal", CUBE, whole(2, 0, 1, 0, 2, 2), []),
            ("negative axes", BOX, whole(1, 2, 3, 0), [None, whole(-1, -2)]),
        )
    },
    "edge, far beyond": ([BOX, whole(3, 0, 7, 0, 9, 0)], {"mode": "edge"}),
}

OTHERS: dict[str, Cases] = {
    "Concat": {
        "distinct": ([BOX, (2, 1, 4), (2, 3, 4)], {"axis": 1}),
        "equal": ([CUBE, CUBE], {"axis": -1}),
        "with a constant": ([[2, 2, 4], BOX, [2, 1, 4], (2, 1, 4)], {"axis": -2}),
        "of one": ([BOX], {"axis": 0}),
    },
    "DepthToSpace": {
        "distinct": ([(2, 12, 3, 5)], {"blocksize": 2}),
        "columns, then rows": ([(2, 12, 3, 5)], {"blocksize": 2, "mode": "CRD"}),
        "depth first": ([(1, 18, 2, 1)], {"blocksize": 3, "mode": "DCR"}),
        "equal": ([(4, 4, 4, 4)], {"blocksize": 2}),
        "equal, columns first": ([(4, 4, 4, 4)], {"blocksize": 2, "mode": "CRD"}),
    },
    "Expand": {
        "distinct": ([(2, 1, 4), whole(2, 5, 4)], {}),
        "equal": ([(3, 1, 3), whole(3, 3, 3)], {}),
        "new axes": ([(4,), whole(2, 5, 4)], {}),
        "equal, new axis": ([(3, 3), whole(3, 1, 3)], {}),
        "shorter target": ([(2, 1, 4), whole(3, 1)], {}),
        "scalar": ([(), whole(2, 3)], {}),
        "nothing to do": ([BOX, whole(1)], {}),
    },
    "Flatten": {
        "distinct": ([BOX], {}),
        "equal": ([CUBE], {"axis": 2}),
        "from the first axis": ([BOX], {"axis": 0}),
        "from behind": ([BOX], {"axis": -1}),
    },
    "Gather": GATHER,
    "Pad": PAD,
    "Reshape": {
        "distinct": ([BOX, whole(5, 8)], {}),
        "equal": ([CUBE, whole(3, -1)], {}),
        "kept and left open": ([BOX, whole(0, -1, 2)], {}),
        "to a vector": ([BOX, whole(-1)], {}),
    },
    "Slice": SLICE,
    "SpaceToDepth": {
        "distinct": ([(2, 3, 4, 6)], {"blocksize": 2}),
        "equal": ([(4, 4, 4, 4)], {"blocksize": 2}),
        "thirds": ([(1, 2, 3, 6)], {"blocksize": 3}),
    },
    "Squeeze": {
        "distinct": ([(1, 2, 1, 3), whole(0, 2)], {}),
        "equal": ([(1, 1, 1)], {}),
        "negative axis": ([(1, 2, 1, 3), whole(-2)], {}),
    },
    "CumSum": {
        "distinct": ([BOX, np.array(1)], {}),
        "equal": ([CUBE, np.array(-1)], {"reverse": 1}),
        "exclusive": ([BOX, np.array(2)], {"exclusive": 1}),
        "exclusive, reverse": ([BOX, np.array(0)], {"exclusive": 1, "reverse": 1}),
    },
    "Tile": {
        "distinct": ([(2, 3, 1), whole(3, 1, 4)], {}),
        "equal": ([CUBE, whole(3, 3, 3)], {}),
    },
    "Transpose": {
        "distinct": ([BOX], {"perm": [1, 2, 0]}),
        "equal": ([CUBE], {"perm": [2, 0, 1]}),
        "default": ([BOX], {}),
    },
    "Unsqueeze": {
        "distinct": ([BOX, whole(0, 3)], {}),
        "equal": ([CUBE, whole(-1)], {}),
    },
}
ALL = [(operator, label) for operator, cases in OTHERS.items() for label in cases]
FIRST = {operator: next(iter(cases.values())) for operator, cases in OTHERS.items()}


def test_every_operator_has_cases() -> None:
    assert {*OTHERS, "Split"} == set(MOVEMENT)


@pytest.mark.parametrize(("operator", "label"), ALL)
def test_gradient_is_exact(oracle: Any, operator: str, label: str) -> None:
    operands, attributes = OTHERS[operator][label]
    oracle.exact(oracle.operator(operator, operands, attributes))


SPLITS: dict[str, tuple[list[Any], dict[str, Any], list[str]]] = {
    "distinct": ([(2, 6, 4), whole(1, 2, 3)], {"axis": 1}, ["y0", "y1", "y2"]),
    "equal": ([CUBE], {"axis": 1, "num_outputs": 3}, ["y0", "y1", "y2"]),
    "default axis": ([(4, 3), whole(1, 3)], {}, ["y0", "y1"]),
    "an odd one at the end": ([(2, 5), whole(3, 2)], {"axis": -1}, ["y0", "y1"]),
    "the first part is unread": ([(2, 6), whole(1, 2, 3)], {"axis": 1}, ["z", "y0", "y1"]),
    "the last part alone is read": ([(2, 6), whole(1, 2, 3)], {"axis": 1}, ["z", "w", "y"]),
    "uneven": ([(2, 7)], {"axis": 1, "num_outputs": 3}, ["y0", "z", "y1"]),
}


@pytest.mark.parametrize("label", SPLITS)
def test_split(oracle: Any, label: str) -> None:
    operands, attributes, outputs = SPLITS[label]
    oracle.exact(oracle.operator("Split", operands, attributes, outputs=outputs))


def test_slice_of_nothing_has_a_gradient_of_zero(oracle: Any) -> None:
    case = oracle.operator("Slice", [BOX, whole(3), whole(3), whole(1)])
    np.testing.assert_array_equal(oracle.gradients(case)["x0"], np.zeros(BOX, np.float32))


def test_backward_slice_from_before_the_beginning(oracle: Any) -> None:
    # ONNX clamps this start to the first element, where NumPy finds nothing.
    oracle.exact(oracle.operator("Slice", [BOX, whole(-9), whole(-19), whole(1), whole(-1)]))


def test_gather_of_nothing_has_a_gradient_of_zero(oracle: Any) -> None:
    case = oracle.operator("Gather", [BOX, np.zeros(0, np.int64)], {"axis": 1})
    np.testing.assert_array_equal(oracle.gradients(case)["x0"], np.zeros(BOX, np.float32))


@pytest.mark.parametrize(
    ("operator", "operands"),
    [
        ("Gather", [BOX, whole(1, 1)]),
        ("Slice", [(5,), whole(0), whole(1)]),
        ("Tile", [(2, 3), whole(1, 1)]),
        ("Pad", [(2,), whole(1, 1)]),
    ],
)
def test_places_computed_from_data_are_refused(
    oracle: Any, kit: Any, operator: str, operands: list[Any]
) -> None:
    case = oracle.operator(operator, operands)
    graph = case.model.graph
    name = graph.node[0].input[-1]
    tensor = next(t for t in graph.initializer if t.name == name)
    graph.initializer.remove(tensor)
    graph.input.append(kit.value(name, tensor.dims, tensor.data_type))
    case.feeds[name] = np.ones(tuple(tensor.dims), np.int64)
    with pytest.raises(GradientError, match=f"{operator} 'node'.*at run time"):
        oracle.gradients(case)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("operator", FIRST)
def test_element_types(oracle: Any, operator: str, dtype: Any) -> None:
    oracle.exact(oracle.operator(operator, *FIRST[operator], dtype=dtype))


@pytest.mark.parametrize("operator", FIRST)
@pytest.mark.parametrize("opset", [13, 18, 26])
def test_opsets(oracle: Any, operator: str, opset: int) -> None:
    oracle.exact(oracle.operator(operator, *FIRST[operator], opset=opset))


OLD: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Slice", [BOX], {"opset": 9, "starts": [1, 0], "ends": [4, -2], "axes": [1, 2]}),
    ("Pad", [BOX], {"opset": 10, "pads": [0, 1, 2, 1, -1, 0], "value": 2.0}),
    ("Pad", [BOX], {"opset": 10, "pads": [0, 1, 2, 1, 1, 0], "mode": "reflect"}),
    ("Squeeze", [(1, 2, 1, 3)], {"opset": 11, "axes": [0, 2]}),
    ("Unsqueeze", [BOX], {"opset": 11, "axes": [0, 3]}),
    ("DepthToSpace", [(2, 12, 3, 5)], {"opset": 9, "blocksize": 2}),
    ("Concat", [BOX, BOX], {"opset": 9, "axis": 1}),
    ("Gather", [BOX, whole(3, 0, 3)], {"opset": 9, "axis": 1}),
]


@pytest.mark.parametrize("index", range(len(OLD)))
def test_older_forms(oracle: Any, index: int) -> None:
    oracle.exact(oracle.operator(*OLD[index]))


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_older_forms_of_split(oracle: Any, opset: int) -> None:
    sizes = {"split": [1, 2, 3]} if opset < 13 else {}
    operands = [(2, 6)] if opset < 13 else [(2, 6), whole(1, 2, 3)]
    attributes = {"axis": 1, **sizes}
    outputs = ["y0", "z", "y1"]
    oracle.exact(oracle.operator("Split", operands, attributes, opset=opset, outputs=outputs))
