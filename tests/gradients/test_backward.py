"""The walk: sums over readers, what stops a gradient, what is refused and how it is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.errors import GradientError
from onnxcompress.gradients.adjoints.arithmetic import ARITHMETIC
from onnxcompress.gradients.adjoints.layers import LAYERS
from onnxcompress.gradients.adjoints.movement import MOVEMENT
from onnxcompress.gradients.adjoints.normalising import NORMALISING
from onnxcompress.gradients.adjoints.pooling import POOLING
from onnxcompress.gradients.adjoints.reducing import REDUCING
from onnxcompress.gradients.adjoints.separable import SEPARABLE
from onnxcompress.gradients.adjoints.table import ADJOINTS, PIECEWISE_CONSTANT
from onnxcompress.gradients.adjoints.unary import UNARY
from onnxcompress.gradients.backward import backward
from onnxcompress.gradients.emitter import Emitter
from onnxcompress.gradients.known import know

FAMILIES = [
    *(LAYERS, UNARY, ARITHMETIC, MOVEMENT),
    *(POOLING, SEPARABLE, REDUCING, NORMALISING),
]
node = helper.make_node


def test_the_table_is_made_of_the_families_that_have_tests() -> None:
    # Every family's own tests fail where one of its operators has no case.
    names = [name for family in FAMILIES for name in family]
    assert sorted(names) == sorted(ADJOINTS)
    assert not PIECEWISE_CONSTANT.intersection(ADJOINTS)
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert known.issuperset({*ADJOINTS, *PIECEWISE_CONSTANT})


def test_every_reader_adds_its_gradient(oracle: Any) -> None:
    nodes = [
        node("Neg", ["x"], ["a"], name="a"),
        node("Mul", ["a", "c"], ["b"], name="b"),
        node("Add", ["a", "b"], ["d"], name="d"),
        node("Mul", ["d", "a"], ["y0"], name="e"),
        node("Transpose", ["a"], ["y1"], name="f", perm=[1, 0]),
        node("MatMul", ["a", "y1"], ["y2"], name="g"),
    ]
    constants = {"c": oracle.draw("whole", (3,), seed=1)}
    x = {"x": oracle.draw("whole", (2, 3))}
    oracle.exact(oracle.graph(nodes, x, ["y0", "y1", "y2"], constants))


def test_an_output_that_is_read_on(oracle: Any) -> None:
    nodes = [node("Neg", ["x"], ["y0"], name="a"), node("Mul", ["y0", "y0"], ["y1"], name="b")]
    oracle.exact(oracle.graph(nodes, {"x": oracle.draw("whole", (2, 3))}, ["y0", "y1"]))


def test_an_input_that_is_wanted_between_others(oracle: Any) -> None:
    # Of a tensor in the middle and one in front of it, both gradients are whole.
    nodes = [
        node("Mul", ["x", "c"], ["a"], name="a"),
        node("Mul", ["a", "a"], ["b"], name="b"),
        node("Add", ["b", "a"], ["y"], name="c"),
    ]
    c = np.float32(3.0)
    case = oracle.graph(nodes, {"x": oracle.draw("whole", (2, 3))}, ["y"], {"c": c})
    found = _gradients(oracle, case, ["x", "a"])
    a = case.feeds["x"] * c
    np.testing.assert_array_equal(found["a"], case.cotangents["y"] * (2 * a + 1))
    np.testing.assert_array_equal(found["x"], c * found["a"])


def test_outputs_that_nobody_reads(oracle: Any) -> None:
    nodes = [
        node("Neg", ["x"], ["a"], name="a"),
        node("Tan", ["a"], ["unread"], name="b"),
        node("Mul", ["a", "a"], ["y"], name="c"),
    ]
    oracle.exact(oracle.graph(nodes, {"x": oracle.draw("whole", (2, 3))}, ["y"]))


def test_what_the_loss_does_not_depend_on_has_no_gradient(oracle: Any) -> None:
    nodes = [node("Neg", ["x"], ["a"], name="a"), node("Neg", ["z"], ["y"], name="b")]
    feeds = {"x": oracle.draw("whole", (2, 3)), "z": oracle.draw("whole", (2, 3))}
    case = oracle.graph(nodes, feeds, ["y"])
    assert set(oracle.gradients(case)) == {"z"}


@pytest.mark.parametrize("kind", ["Floor", "Ceil", "Round", "Sign"])
def test_steps_have_no_slope(oracle: Any, kind: str) -> None:
    nodes = [node(kind, ["x"], ["a"], name="a"), node("Mul", ["a", "x"], ["y"], name="b")]
    x = {"x": oracle.draw("distinct", (2, 3)) + np.float32(0.25)}
    oracle.exact(oracle.graph(nodes, x, ["y"]), step=0.125)


def test_whole_numbers_and_conditions_have_no_slope(oracle: Any) -> None:
    nodes = [
        node("Cast", ["x"], ["whole"], name="a", to=TensorProto.INT64),
        node("Cast", ["whole"], ["back"], name="b", to=TensorProto.FLOAT),
        node("ArgMax", ["x"], ["at"], name="c", axis=1),
        node("Cast", ["at"], ["index"], name="d", to=TensorProto.FLOAT),
        node("Greater", ["x", "index"], ["mask"], name="e"),
        node("Cast", ["mask"], ["ones"], name="f", to=TensorProto.FLOAT),
        node("Mul", ["x", "back"], ["p"], name="g"),
        node("Mul", ["p", "ones"], ["q"], name="h"),
        node("Where", ["mask", "q", "x"], ["y"], name="i"),
    ]
    x = {"x": oracle.draw("distinct", (2, 3)) + np.float32(0.125)}
    oracle.exact(oracle.graph(nodes, x, ["y"]), step=2.0**-4)


def test_all_that_is_missing_is_named(oracle: Any) -> None:
    nodes = [
        node("Sinh", ["x"], ["a"], name="first"),
        node("Relu", ["a"], ["b"], name="relu"),
        node("Tan", ["b"], ["c"], name="second"),
        node("Add", ["c", "a"], ["y"], name="sum"),
    ]
    case = oracle.graph(nodes, {"x": oracle.draw("smooth", (2, 3))}, ["y"])
    with pytest.raises(GradientError) as caught:
        oracle.gradients(case)
    assert str(caught.value) == "no gradient is known of Sinh 'first', Tan 'second'"


def test_what_is_in_front_of_a_refusal_is_named_as_well(oracle: Any) -> None:
    nodes = [
        node("Sinh", ["x"], ["a"], name="first"),
        node("Pow", ["c", "a"], ["y"], name="power"),
    ]
    x = {"x": oracle.draw("smooth", (2, 3))}
    case = oracle.graph(nodes, x, ["y"], {"c": np.float32(2.0)})
    with pytest.raises(GradientError, match=r"Sinh 'first'.*Pow 'power'"):
        oracle.gradients(case)


def test_nodes_without_a_name_are_each_counted(oracle: Any) -> None:
    nodes = [node("Sinh", ["x"], ["a"]), node("Tan", ["a"], ["y"])]
    case = oracle.graph(nodes, {"x": oracle.draw("smooth", (2, 3))}, ["y"])
    with pytest.raises(GradientError, match=r"Sinh.*Tan"):
        oracle.gradients(case)


def test_of_many_that_are_missing_the_first_four_are_named(oracle: Any) -> None:
    nodes = [node("Tan", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(6)]
    case = oracle.graph(nodes, {"t0": oracle.draw("positive", (2, 3)) / 8}, ["t6"])
    with pytest.raises(GradientError, match=r"of Tan 'n0',.*'n1',.*'n2',.*'n3' and 2 more$"):
        oracle.gradients(case)


def test_what_is_missing_beside_the_way_does_not_matter(oracle: Any) -> None:
    # In front of the wanted tensor, and where no loss is.
    nodes = [
        node("Sinh", ["x"], ["a"], name="front"),
        node("Mul", ["a", "a"], ["y"], name="square"),
        node("Tan", ["a"], ["side"], name="side"),
    ]
    case = oracle.graph(nodes, {"x": oracle.draw("smooth", (2, 3))}, ["y"])
    found = _gradients(oracle, case, ["a"])
    expected = 2 * np.sinh(case.feeds["x"]) * case.cotangents["y"]
    np.testing.assert_allclose(found["a"], expected, rtol=1e-5)


def test_operators_of_other_domains_are_not_known(oracle: Any, kit: Any) -> None:
    # Relu of another domain is another operator; ONNX Runtime's own QuickGelu is one that runs.
    nodes = [
        node("QuickGelu", ["x"], ["a"], name="gelu", domain="com.microsoft"),
        node("Neg", ["a"], ["y"], name="neg"),
    ]
    value = kit.value("x", (2, 3)), kit.value("y", (2, 3))
    model = kit.model(nodes, value[:1], value[1:], domains={"com.microsoft": 1}, opset=21)
    case = oracle.seeded(model, {"x": oracle.draw("smooth", (2, 3))})
    with pytest.raises(GradientError, match=r"of com\.microsoft\.QuickGelu 'gelu'$"):
        oracle.gradients(case)


def _branch(name: str, read: str) -> onnx.GraphProto:
    made = node("Neg", [read], [f"{name}_out"], name=f"{name}_node")
    output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, (2, 3))
    return helper.make_graph([made], name, [], [output])


@pytest.mark.parametrize("nested", [False, True])
def test_tensors_read_in_a_subgraph_are_refused(oracle: Any, *, nested: bool) -> None:
    branch = _branch("then", "a")
    if nested:
        inner = node("If", ["c"], ["then_out"], then_branch=branch, else_branch=_branch("e", "a"))
        output = helper.make_tensor_value_info("then_out", TensorProto.FLOAT, (2, 3))
        branch = helper.make_graph([inner], "outer", [], [output])
    nodes = [
        node("Neg", ["x"], ["a"], name="neg"),
        node("If", ["c"], ["b"], name="if", then_branch=branch, else_branch=_branch("f", "k")),
        node("Add", ["a", "b"], ["y"], name="sum"),
    ]
    constants = {"c": np.array(True), "k": np.ones((2, 3), np.float32)}
    case = oracle.graph(nodes, {"x": oracle.draw("smooth", (2, 3))}, ["y"], constants)
    with pytest.raises(GradientError, match=r"If 'if' .it reads channels in a subgraph"):
        oracle.gradients(case)


def test_subgraphs_that_read_nothing_wanted(oracle: Any) -> None:
    branches = {"then_branch": _branch("then", "k"), "else_branch": _branch("else", "k")}
    nodes = [
        node("Mul", ["x", "x"], ["a"], name="neg"),
        node("If", ["c"], ["b"], name="if", **branches),
        node("Mul", ["a", "b"], ["y"], name="product"),
    ]
    constants = {"c": np.array(True), "k": oracle.draw("whole", (2, 3), seed=1)}
    oracle.exact(oracle.graph(nodes, {"x": oracle.draw("whole", (2, 3))}, ["y"], constants))


def _gradients(oracle: Any, case: Any, wanted: list[str]) -> dict[str, np.ndarray]:
    """Gradients in inner tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(case.model)
    known = know(copy, {name: values.shape for name, values in case.feeds.items()})
    emit = Emitter(copy.graph)
    seeds = {
        name: emit.input("v", known.types[name], v.shape) for name, v in case.cotangents.items()
    }
    found = backward(known, emit, seeds, wanted)
    del copy.graph.output[:], copy.graph.value_info[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=found[name]) for name in wanted)
    feeds = case.feeds | {seeds[name]: v for name, v in case.cotangents.items()}
    return dict(zip(wanted, oracle.run(copy, feeds), strict=True))
