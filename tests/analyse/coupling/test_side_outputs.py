"""Outputs and sizes that are read besides the data: followed, or the channels stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto


def _chain(s: Any, extents: Any) -> tuple[str, str]:
    """Input, 'first', Relu: the input and the tensor behind the Relu."""
    x = s.input(extents.image)
    return x, s.add("Relu", s.conv(x, extents.source, extents.inner, name="first"), name="relu")


@pytest.mark.parametrize("seen", ["first_out", "relu_out"])
def test_intermediate_output(sketch: Any, pruning: Any, extents: Any, seen: str) -> None:
    s = sketch()
    _, a = _chain(s, extents)
    b = s.conv(a, extents.inner, 5, name="second")
    y = s.conv(s.add("Relu", b), 5, extents.outer, name="third")
    pruning.check(
        s.model(y, seen),
        widths={"second": 5},
        refused={"first": f"output '{seen}'", "third": f"output '{y}'"},
    )


def test_batch_norm_statistics_as_an_output(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    _, a = _chain(s, extents)
    mean = s.add("GlobalAveragePool", a)
    y = s.conv(a, c, extents.outer, name="second")
    pruning.check(s.model(y, mean), widths={}, refused={"first": f"output '{mean}'"})


@pytest.mark.parametrize("use", ["output", "factor"])
def test_mask_of_a_dropout(sketch: Any, pruning: Any, extents: Any, use: str) -> None:
    # The mask has the shape of the data: it loses channels with it, or both keep them.
    s, c = sketch(), extents.inner
    _, a = _chain(s, extents)
    b, mask = s.add("Dropout", a, name="drop", outputs=2)
    if use == "factor":
        b = s.add("Mul", b, s.add("Cast", mask, to=TensorProto.FLOAT), name="factor")
    y = s.conv(b, c, extents.outer, name="second")
    if use == "output":
        pruning.check(s.model(y, mask), widths={}, refused={"first": "'drop"})
        return
    model = s.model(y)
    case = pruning.case(model)
    if case.widths:
        pruning.check(model, widths={"first": c})
    else:
        pruning.check(model, widths={}, refused={"first": "Dropout 'drop'"})


@pytest.mark.parametrize("use", ["output", "factor"])
@pytest.mark.parametrize("which", [1, 2])
def test_statistics_of_a_layer_norm(
    sketch: Any, pruning: Any, extents: Any, use: str, which: int
) -> None:
    # Mean and deviation have one number per channel where only space is normalised.
    s, c = sketch(), extents.inner
    _, a = _chain(s, extents)
    scale = s.whole([extents.height, extents.width], low=1, high=2)
    outputs = s.add("LayerNormalization", a, scale, name="norm", axis=2, outputs=3)
    b = s.add("Mul", a, outputs[0])
    if use == "factor":
        b = s.add("Mul", b, outputs[which], name="factor")
    y = s.conv(b, c, extents.outer, name="second")
    if use == "output":
        pruning.check(s.model(y, outputs[which]), widths={}, refused={"first": "'norm"})
        return
    model = s.model(y)
    case = pruning.case(model)
    if case.widths:
        pruning.check(model, widths={"first": c}, tolerance=2.0**-14)
    else:
        pruning.check(model, widths={}, refused={"first": "'"})


def test_shape_as_an_output(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner
    _, a = _chain(s, extents)
    y = s.conv(a, c, extents.outer, name="second")
    shape = s.add("Shape", a, name="shape")
    pruning.check(s.model(y, shape), widths={}, refused={"first": "'shape"})


@pytest.mark.parametrize("operator", ["Shape", "Size"])
def test_number_of_channels_as_a_factor(
    sketch: Any, pruning: Any, extents: Any, operator: str
) -> None:
    # As attention divides by the root of its width: what is computed changes with the width.
    s, c = sketch(), extents.inner
    _, a = _chain(s, extents)
    count = s.add(operator, a, name="count")
    if operator == "Shape":
        count = s.add("Gather", count, s.constant(1, dtype=np.int64))
    b = s.add("Mul", a, s.add("Cast", count, to=TensorProto.FLOAT), name="factor")
    y = s.conv(b, c, extents.outer, name="second")
    reason = "Mul 'factor'" if operator == "Shape" else "'count"
    pruning.check(s.model(y), widths={}, refused={"first": reason})


def test_extent_of_space_as_a_factor(sketch: Any, pruning: Any, extents: Any) -> None:
    # Height and width do not change with the channels.
    s, c = sketch(), extents.inner
    _, a = _chain(s, extents)
    extent = s.add("Gather", s.add("Shape", a), s.constant(2, dtype=np.int64))
    b = s.add("Mul", a, s.add("Cast", extent, to=TensorProto.FLOAT))
    y = s.conv(b, c, extents.outer, name="second")
    pruning.check(s.model(y), widths={"first": c})


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean", "ReduceMax"])
def test_reduction_to_one_number(sketch: Any, pruning: Any, extents: Any, operator: str) -> None:
    s, c = sketch(13), extents.inner
    _, a = _chain(s, extents)
    y = s.conv(a, c, extents.outer, name="second")
    total = s.add(operator, a, name="total", keepdims=0)
    pruning.check(s.model(y, total), widths={}, refused={"first": "'total"})
