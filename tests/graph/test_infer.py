"""Shape inference on the skeleton: fresh, at given sizes, or whatever the sizes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcompress.errors import ModelError
from onnxcompress.graph.infer import shapes_at, static_shapes, with_value_info


@pytest.fixture
def model(kit):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv", strides=[2, 1]),
        helper.make_node("Shape", ["a"], ["s"], name="shape"),
        helper.make_node("Gather", ["s", "zero"], ["n"], name="gather"),
        helper.make_node("Concat", ["n", "rest"], ["target"], name="concat", axis=0),
        helper.make_node("Reshape", ["a", "target"], ["y"], name="reshape"),
    ]
    constants = {
        "w": kit.whole((40, 3, 3, 4), seed=1),
        "zero": np.array([0]),
        "rest": np.array([-1]),
    }
    inputs = [kit.value("x", ("n", 3, 9, "width"))]
    return kit.model(nodes, inputs, [kit.value("y", ("n", None))], constants)


def test_shapes_at_given_sizes(model):
    before = model.SerializeToString()
    shapes = shapes_at(model, {"x": (2, 3, 9, 11)})
    # (9 - 3) // 2 + 1 = 4 and 11 - 4 + 1 = 8; 40 * 4 * 8 = 1280, through shape arithmetic.
    assert (shapes["x"], shapes["a"], shapes["y"]) == ((2, 3, 9, 11), (2, 40, 4, 8), (2, 1280))
    assert model.SerializeToString() == before


def test_other_sizes_give_other_shapes(model):
    assert shapes_at(model, {"x": (5, 3, 9, 4)})["y"] == (5, 160)


def test_declared_output_and_stale_value_info_do_not_stand_in_the_way(kit, model):
    model.graph.value_info.append(kit.value("a", (7, 7, 7, 7)))
    for declared in (("n", "m"), (1, 640)):
        model.graph.output[0].CopyFrom(kit.value("y", declared))
        shapes = shapes_at(model, {"x": (2, 3, 9, 11)})
        assert (shapes["a"], shapes["y"]) == ((2, 40, 4, 8), (2, 1280))


def test_sizes_that_contradict_the_graph(kit):
    nodes = [helper.make_node("Add", ["x", "k"], ["y"], name="add")]
    inputs, outputs = [kit.value("x", (None, None))], [kit.value("y", (None, None))]
    model = kit.model(nodes, inputs, outputs, {"k": np.ones((2, 3), np.float32)})
    assert shapes_at(model, {"x": (2, 3)})["y"] == (2, 3)
    with pytest.raises(ModelError, match="shape inference fails") as caught:
        shapes_at(model, {"x": (2, 4)})
    assert "\n" not in str(caught.value)


def test_static_shapes_are_those_without_symbols(kit, model):
    shapes = static_shapes(model)
    assert "a" not in shapes
    assert shapes["s"] == (4,)
    model.graph.input[0].CopyFrom(kit.value("x", (2, 3, 9, 11)))
    assert static_shapes(model)["a"] == (2, 40, 4, 8)


def test_value_info_is_replaced_in_place(kit, model):
    model.graph.value_info.append(kit.value("a", (7, 7, 7, 7)))
    model.graph.value_info.append(kit.value("gone", (1,)))
    assert with_value_info(model) is model
    names = [value.name for value in model.graph.value_info]
    assert sorted(names) == ["a", "n", "s", "target"]
    (a,) = [v for v in model.graph.value_info if v.name == "a"]
    dims = [d.dim_value or d.dim_param for d in a.type.tensor_type.shape.dim]
    assert dims[:3] == ["n", 40, 4]
    assert a.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    # The large weight is an input of the skeleton, and must not turn up as a value.
    assert "w" not in names
    assert len(model.graph.initializer) == 3
