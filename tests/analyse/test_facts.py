"""Facts: what a pass may read, and that it may read nothing it did not declare."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnxcompress.analyse.facts import Facts, Need, Unsupported, analyse
from onnxcompress.errors import ModelError, PassError
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.infer import with_value_info
from onnxcompress.graph.spec import ConvSpec, DenseSpec
from onnxcompress.graph.view import GraphView


@pytest.fixture
def model(kit):
    """Two Convs, one of them with a computed kernel, a Gemm, two MatMuls, and a foreign Conv."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv", strides=[2, 1]),
        helper.make_node("Abs", ["k"], ["k2"], name="abs"),
        helper.make_node("Conv", ["a", "k2"], ["b"], name="dynamic"),
        helper.make_node("Flatten", ["b"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "v"], ["g"], name="gemm"),
        helper.make_node("MatMul", ["g", "u"], ["m"], name="dense"),
        helper.make_node("Transpose", ["m"], ["mt"], name="transpose"),
        helper.make_node("MatMul", ["m", "mt"], ["y"], name="gram"),
    ]
    constants = {
        "w": kit.whole((4, 3, 2, 2), seed=1),
        "v": kit.whole((24, 5), seed=2),
        "u": kit.whole((5, 7), seed=3),
    }
    inputs = [kit.value("x", ("n", 3, 6, 5)), kit.value("k", (2, 4, 1, 1))]
    return with_value_info(kit.model(nodes, inputs, [kit.value("y", ("n", "n"))], constants))


SIZES = {"x": (2, 3, 6, 5), "k": (2, 4, 1, 1)}


@pytest.fixture
def facts(model):
    return analyse(model, SIZES, excluded=frozenset({"gemm"}))


def test_layers_in_order_of_execution(facts):
    convs = list(facts.convs())
    assert [c.node for c in convs] == ["conv", "dynamic"]
    assert isinstance(convs[0], ConvSpec)
    assert convs[1] == Unsupported(
        "dynamic", "the weight 'k2' is computed or fed at run time, not a constant"
    )
    denses = list(facts.denses())
    assert [d.node for d in denses] == ["gemm", "dense", "gram"]
    assert [type(d) for d in denses] == [DenseSpec, DenseSpec, Unsupported]


def test_layers_of_other_domains_are_none(kit):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="c", domain="elsewhere"),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="m", domain="elsewhere"),
    ]
    constants = {"w": kit.whole((3, 3), seed=1)}
    shape = (3, 3)
    model = kit.model(
        nodes,
        [kit.value("x", shape)],
        [kit.value("y", shape)],
        constants,
        domains={"elsewhere": 1},
    )
    model.graph.value_info.append(kit.value("a", shape))
    facts = Facts(GraphView(model), {"x": shape})
    assert list(facts.convs()) == []
    assert list(facts.denses()) == []


def test_shapes_and_costs(facts):
    # (6 - 2) // 2 + 1 = 3 by 5 - 2 + 1 = 4.
    assert facts.shape("a") == (2, 4, 3, 4)
    assert facts.shapes()["f"] == (2, 24)
    assert facts.macs("conv") == 2 * 4 * 12 * 12
    assert facts.cost("gemm") == Cost(2 * 24 * 5, 120, 480)
    assert facts.cost("abs") == Cost()
    macs = 1152 + 2 * 2 * 12 * 4 + 240 + 2 * 5 * 7 + 2 * 2 * 7
    assert facts.total() == Cost(macs, 48 + 120 + 35, 4 * 203)
    assert facts.excluded == {"gemm"}
    assert facts.sizes == SIZES


def test_unknown_tensor(facts):
    with pytest.raises(ModelError, match="'nowhere' cannot be inferred"):
        facts.shape("nowhere")


NEEDING_SHAPES = {
    "shape": lambda f: f.shape("a"),
    "shapes": lambda f: f.shapes(),
    "macs": lambda f: f.macs("conv"),
    "cost": lambda f: f.cost("conv"),
    "total": lambda f: f.total(),
}


@pytest.mark.parametrize("read", NEEDING_SHAPES.values(), ids=NEEDING_SHAPES)
def test_undeclared_needs_raise(facts, read):
    with pytest.raises(PassError, match=r"SHAPES.*`needs`") as caught:
        read(facts.restricted(frozenset()))
    assert caught.value.exit_code == 3
    # Declared, or not restricted at all, it is there; and restricting changed nothing behind.
    assert read(facts.restricted(frozenset({Need.SHAPES}))) == read(facts)


def test_structure_is_free_to_read(facts):
    nothing = facts.restricted(frozenset())
    assert list(nothing.convs()) == list(facts.convs())
    assert list(nothing.denses()) == list(facts.denses())
    assert nothing.model is facts.model
    np.testing.assert_array_equal(nothing.view.array("w"), facts.view.array("w"))


def test_restricting_twice_does_not_widen(facts):
    once = facts.restricted(frozenset())
    with pytest.raises(PassError):
        once.shapes()
    facts.restricted(frozenset({Need.SHAPES})).shapes()
    with pytest.raises(PassError):
        once.shapes()


def test_sizes_that_contradict_the_graph(model):
    with pytest.raises(ModelError):
        analyse(model, {"x": (2, 3, 7, 9), "k": (2, 4, 1, 1)})


@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_that_inference_cannot_follow_are_observed(kit, batch):
    """The target shape goes through floating point, which shape inference does not follow."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], name="shape"),
        helper.make_node("Cast", ["s"], ["f"], name="float", to=1),
        helper.make_node("Mul", ["f", "factor"], ["g"], name="mul"),
        helper.make_node("Cast", ["g"], ["t"], name="int", to=7),
        helper.make_node("Reshape", ["x", "t"], ["r"], name="reshape"),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="dense"),
    ]
    constants = {"factor": np.array([2, 0.5], np.float32), "w": kit.whole((4, 5), seed=1)}
    outputs = [kit.value("y", (None, None))]
    model = with_value_info(kit.model(nodes, [kit.value("x", ("n", 8))], outputs, constants))
    before = model.SerializeToString()
    facts = analyse(model, {"x": (batch, 8)})
    assert facts.shape("r") == (2 * batch, 4)
    assert facts.shape("y") == (2 * batch, 5)
    assert facts.macs("dense") == 2 * batch * 4 * 5
    assert model.SerializeToString() == before
