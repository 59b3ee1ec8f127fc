"""Representative sizes: what the user gave, else what the data has, else batch 1; or a refusal."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcompress.analyse.sizes import (
    InputSpec,
    input_specs,
    parse_shape,
    random_feeds,
    representative_sizes,
    shape_text,
)
from onnxcompress.errors import ModelError, UsageError


def _model(kit, *inputs, constants=None):
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    return kit.model(nodes, list(inputs), [kit.value("y", inputs[0:1] and [None])], constants)


@pytest.fixture
def dynamic(kit):
    return _model(kit, kit.value("x", ("n", 3, "height", None)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:1,3,224,224", ("x", (1, 3, 224, 224))),
        ("x:5", ("x", (5,))),
        ("x:1x3x224x224", ("x", (1, 3, 224, 224))),
        ("serving_default_x:0:2,7", ("serving_default_x:0", (2, 7))),
        ("x: 1, 3", ("x", (1, 3))),
    ],
)
def test_shape_option(text, expected):
    assert parse_shape(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "x:",
        ":1,2",
        "1,2",
        "x:1,,2",
        "x:0,3",
        "x:-1,3",
        "x:1.5,3",
        "x:a",
        "x:1,3,",
        "x;1,3",
    ],
)
def test_shape_option_that_is_not_understood(text):
    with pytest.raises(UsageError, match="not understood: give NAME:D0,D1") as caught:
        parse_shape(text)
    assert f"'{text}'" in str(caught.value)
    assert caught.value.exit_code == 2


def test_static_sizes_need_nothing(kit):
    model = _model(kit, kit.value("x", (2, 3)), kit.value("z", ()))
    assert representative_sizes(model) == {"x": (2, 3), "z": ()}


def test_dynamic_batch_is_one_unless_said_otherwise(kit):
    model = _model(kit, kit.value("x", ("n", 3)), kit.value("z", (None, 5)))
    assert representative_sizes(model) == {"x": (1, 3), "z": (1, 5)}
    assert representative_sizes(model, batch=4) == {"x": (4, 3), "z": (4, 5)}
    given = {"z": (2, 5)}
    assert representative_sizes(model, given, batch=4) == {"x": (4, 3), "z": (2, 5)}


def test_batch_does_not_change_a_fixed_one(kit):
    assert representative_sizes(_model(kit, kit.value("x", (2, 3))), batch=4) == {"x": (2, 3)}


def test_data_decides_other_dynamic_sizes(dynamic):
    seen = {"x": (64, 3, 32, 48)}
    assert representative_sizes(dynamic, seen=seen) == {"x": (1, 3, 32, 48)}
    assert representative_sizes(dynamic, {"x": (2, 3, 7, 9)}, seen=seen) == {"x": (2, 3, 7, 9)}


def test_dynamic_sizes_that_nobody_knows(dynamic):
    with pytest.raises(UsageError, match=r"\[n,3,height,\?\].*--shape x:\?,3,\?,\?"):
        representative_sizes(dynamic)


def test_data_of_another_rank_does_not_decide(dynamic):
    with pytest.raises(UsageError, match="dynamic sizes"):
        representative_sizes(dynamic, seen={"x": (3, 32, 48)})


@pytest.mark.parametrize("given", [(1, 4, 8, 8), (1, 3, 8), (1, 3, 8, 8, 8), ()])
def test_given_size_that_contradicts_the_model(dynamic, given):
    with pytest.raises(UsageError, match=r"does not fit the input's shape \[n,3,height,\?\]"):
        representative_sizes(dynamic, {"x": given})


@pytest.mark.parametrize("given", [(0, 3, 8, 8), (-1, 3, 8, 8), (1, 3, -8, -8)])
def test_given_size_below_one(dynamic, given):
    """The Python interface takes sizes that no --shape option has looked at."""
    with pytest.raises(UsageError):
        representative_sizes(dynamic, {"x": given})


def test_given_name_that_is_no_input(dynamic):
    with pytest.raises(UsageError, match="--shape names 'q', but the inputs are x"):
        representative_sizes(dynamic, {"q": (1,)})


@pytest.mark.parametrize(
    ("shape", "given"),
    [((2**40, 2**40), None), ((2**16, 2**15 + 1), None), (("n", 2**20), (2**20, 2**20))],
)
def test_absurd_sizes(kit, shape, given):
    model = _model(kit, kit.value("x", shape))
    # What the model itself demands is its own fault, not the user's.
    with pytest.raises(UsageError if given else ModelError, match="absurd"):
        representative_sizes(model, {"x": given} if given else None)


def test_the_largest_sensible_size(kit):
    model = _model(kit, kit.value("x", (2**16, 2**15)))
    assert representative_sizes(model) == {"x": (2**16, 2**15)}


def test_input_specs(kit):
    model = _model(
        kit,
        kit.value("x", ("n", 3, 0, -1), TensorProto.FLOAT16),
        kit.value("w", (3,)),
        kit.value("ids", (None, 7), TensorProto.INT64),
        constants={"w": np.ones(3, np.float32)},
    )
    specs = input_specs(model)
    assert specs == (
        InputSpec("x", np.dtype(np.float16), ("n", 3, None, None)),
        InputSpec("ids", np.dtype(np.int64), (None, 7)),
    )
    assert [specs[0].fixed(axis) for axis in range(4)] == [None, 3, None, None]


def test_input_that_is_no_tensor(kit):
    model = _model(kit, kit.value("x", (2,)))
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    model.graph.input.append(sequence)
    with pytest.raises(ModelError, match="'s' is not a tensor of a known type"):
        input_specs(model)


def test_shape_text():
    assert shape_text([]) == "[]"
    assert shape_text(("n", 3, None)) == "[n,3,?]"


def test_random_feeds(kit):
    model = _model(
        kit,
        kit.value("x", ("n", 400)),
        kit.value("half", (5, 7), TensorProto.FLOAT16),
        kit.value("ids", (3, 200), TensorProto.INT32),
        kit.value("mask", (600,), TensorProto.BOOL),
    )
    sizes = {"x": (50, 400), "half": (5, 7), "ids": (3, 200), "mask": (600,)}
    feeds = random_feeds(model, sizes, seed=3)
    assert {name: (v.shape, v.dtype) for name, v in feeds.items()} == {
        "x": ((50, 400), np.float32),
        "half": ((5, 7), np.float16),
        "ids": ((3, 200), np.int32),
        "mask": ((600,), np.bool_),
    }
    # 20,000 standard normals: the mean is within 5 standard errors (0.0071 each) of 0.
    assert abs(feeds["x"].mean()) < 0.036
    assert abs(feeds["x"].std() - 1) < 0.025
    assert set(np.unique(feeds["ids"])) == {0, 1}
    again, other = random_feeds(model, sizes, seed=3), random_feeds(model, sizes, seed=4)
    for name in feeds:
        np.testing.assert_array_equal(again[name], feeds[name])
    assert not np.array_equal(other["x"], feeds["x"])
