"""The key of a timing: everything that decides latency, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcompress.graph.extract import structure_key


def _key(model):
    return json.dumps(structure_key(model), sort_keys=True)


def _layer(
    kit,
    *,
    names="a",
    seed=1,
    x=(2, 3, 6, 5),
    weight=(4, 3, 2, 3),
    dtype=np.float32,
    op="Relu",
    wire=(0, 1),
    **attributes,
):
    t = {key: f"{names}{key}" for key in ("x", "r", "w", "b", "s", "t", "y")}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    operands = [t["s"], t["r"]]
    nodes = [
        helper.make_node(
            "Conv", [t["x"], t["w"], t["b"]], [t["s"]], name=f"{names}conv", **attributes
        ),
        helper.make_node("Add", [operands[i] for i in wire], [t["t"]], name=f"{names}add"),
        helper.make_node(op, [t["t"]], [t["y"]], name=f"{names}last"),
    ]
    constants = {
        t["w"]: kit.whole(weight, seed=seed, dtype=dtype),
        t["b"]: kit.whole((weight[0],), seed=seed, dtype=dtype),
    }
    rest = (x[0], weight[0], x[2] - weight[2] + 1, x[3] - weight[3] + 1)
    inputs = [kit.value(t["x"], x, kind), kit.value(t["r"], rest, kind)]
    return kit.model(nodes, inputs, [kit.value(t["y"], rest, kind)], constants)


@pytest.fixture
def base(kit):
    return _key(_layer(kit))


def test_names_do_not_count(kit, base):
    assert _key(_layer(kit, names="other/")) == base


def test_values_do_not_count(kit, base):
    assert _key(_layer(kit, seed=9)) == base


def test_doc_strings_and_stamps_do_not_count(kit, base):
    model = _layer(kit)
    model.graph.node[0].doc_string = "words"
    model.graph.node[0].metadata_props.add(key="a", value="b")
    model.producer_name = "someone"
    assert _key(model) == base


def test_order_of_initializers_and_attributes_does_not_count(kit):
    model = _layer(kit, pads=[0, 0, 0, 0], strides=[1, 1])
    other = _layer(kit, pads=[0, 0, 0, 0], strides=[1, 1])
    for field in (other.graph.initializer, other.graph.node[0].attribute):
        items = list(field)[::-1]
        del field[:]
        field.extend(items)
    assert other != model
    assert _key(other) == _key(model)


CHANGES = {
    "attribute": {"dilations": [1, 1]},
    "another value of it": {"pads": [1, 0, 0, 0]},
    "batch": {"x": (3, 3, 6, 5)},
    "height": {"x": (2, 3, 7, 5)},
    "channels": {"weight": (5, 3, 2, 3)},
    "kernel": {"weight": (4, 3, 3, 3)},
    "type": {"dtype": np.float16},
    "operator": {"op": "Sigmoid"},
    "wiring": {"wire": (1, 0)},
    "read twice": {"wire": (0, 0)},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_counts(kit, base, change):
    assert _key(_layer(kit, **change)) != base


def test_pads_by_value(kit):
    keys = {_key(_layer(kit, pads=[0, 0, 0, n])) for n in range(4)}
    assert len(keys) == 4


def test_text_attributes(kit):
    keys = {_key(_layer(kit, auto_pad=mode)) for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")}
    assert len(keys) == 3


def test_shape_of_a_constant_that_is_read_by_a_later_node(kit):
    def layer(shape):
        nodes = [
            helper.make_node("Relu", ["x"], ["a"], name="relu"),
            helper.make_node("Add", ["a", "k"], ["y"], name="add"),
        ]
        outputs = [kit.value("y", (2, 3))]
        return kit.model(
            nodes, [kit.value("x", (2, 3))], outputs, {"k": np.ones(shape, np.float32)}
        )

    keys = {_key(layer(shape)) for shape in ((1,), (3,), (1, 3), (2, 3))}
    assert len(keys) == 4


def test_domain(kit, base):
    model = _layer(kit)
    model.graph.node[2].domain = "com.microsoft"
    assert _key(model) != base


def test_omitted_inputs(kit):
    def clip(inputs):
        nodes = [helper.make_node("Clip", inputs, ["y"], name="clip")]
        constants = {"k": np.array(1, np.float32)}
        return kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))], constants)

    assert _key(clip(["x", "k"])) != _key(clip(["x", "", "k"]))


def test_it_is_plain_json(kit):
    key = structure_key(_layer(kit, strides=[1, 1], auto_pad="VALID"))
    assert json.loads(json.dumps(key)) == key
    assert key[0][0] == [TensorProto.FLOAT, [2, 3, 6, 5]]
