"""Every criterion by name; what is refused, and what is offered instead."""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import GradientError, ModelError, UsageError
from onnxcompress.plan.saliency.criteria import CRITERIA, scores

GRADIENTS = ["obd", "taylor", "taylor-gate"]
OTHERS = [name for name in CRITERIA if name not in GRADIENTS]

OPAQUE = """net (float[N, 3, 4, 5] x) => (float[N, 2] y) {{
    {first}
    [one] a = Conv <kernel_shape = [1, 1]> ({z}, w1, b1)
    [r1] b = Relu (a)
    [pool] c = MaxPool <kernel_shape = [2, 2]> (b)
    [two] d = Conv <kernel_shape = [1, 1]> (c, w2)
    [mean] e = GlobalAveragePool (d)
    [flat] f = Flatten (e)
    {last} }}"""
# Operators without an adjoint between every layer that is scored and the answer.
NODES = {
    "Einsum": '[odd] g = Einsum <equation = "nk->nk"> (f)',
    "Hardmax": "[odd] g = Hardmax (f)",
    "com.microsoft.QuickGelu": "[odd] g = Elu (f)",
}


def opaque(nets: Any, *, first: str = "", last: str) -> Facts:
    """A network with odd operators in front of all layers, or behind them; Elu becomes QuickGelu.

    Whose output ONNX's shape inference knows nothing about.
    """
    text = OPAQUE.format(first=first, z="z" if first else "x", last=last)
    model = nets.build(text, w1=(4, 3, 1, 1), b1=(4,), w2=(2, 4, 1, 1), w3=(2, 2))
    for node in model.graph.node:
        if node.op_type == "Elu":
            node.op_type, node.domain = "QuickGelu", "com.microsoft"
            model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
            del model.graph.value_info[:]
    made: Facts = nets.facts(model, nets.samples(model, 20))
    return made


def behind(nets: Any, node: str) -> Facts:
    return opaque(nets, last=f"{node}  [last] y = MatMul (g, w3)")


def test_names() -> None:
    assert {name for name, entry in CRITERIA.items() if entry.gradients} == set(GRADIENTS)
    assert set(CRITERIA) == {
        "weight", "activation-mean", "activation-std", "apoz", "mutual-information", "obd",
        "taylor", "taylor-gate", "oracle-abs", "oracle-loss", "random",
    }  # fmt: skip


@pytest.mark.parametrize("criterion", GRADIENTS)
@pytest.mark.parametrize(("operator", "node"), NODES.items())
def test_no_adjoint(nets: Any, ask: Any, operator: str, node: str, criterion: str) -> None:
    """One line: the criterion, the operator, its node, and every criterion that still works."""
    with pytest.raises(GradientError) as caught:
        scores(criterion, ask(behind(nets, node)))
    said = str(caught.value)
    assert said.startswith(f"criterion {criterion} needs gradients, but ")
    assert f"{operator} 'odd'" in said
    assert said.endswith(f"these criteria still work: {', '.join(OTHERS)}")
    assert "\n" not in said
    assert isinstance(caught.value, ModelError)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("criterion", OTHERS)
@pytest.mark.parametrize("node", NODES.values(), ids=NODES.keys())
def test_what_is_offered_works(nets: Any, ask: Any, node: str, criterion: str) -> None:
    found = scores(criterion, ask(behind(nets, node)))
    assert {layer: line.shape for layer, line in found.items()} == {"one": (4,)}


def test_several_operators_are_named(nets: Any, ask: Any) -> None:
    node = '[odd] p = Einsum <equation = "nk->nk"> (f)  [even] g = Hardmax (p)'
    with pytest.raises(GradientError, match=r"Einsum 'odd', Hardmax 'even'; these criteria"):
        scores("taylor", ask(behind(nets, node)))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("operator", ['Einsum <equation = "nchw->nchw"> (x)', "Elu (x)"])
def test_off_the_way(nets: Any, ask: Any, operator: str, criterion: str) -> None:
    """An operator in front of every layer is on nobody's way to the loss."""
    facts = opaque(nets, first=f"[odd] z = {operator}", last="[last] y = MatMul (f, w3)")
    found = scores(criterion, ask(facts))
    assert {layer: line.shape for layer, line in found.items()} == {"one": (4,), "two": (2,)}


@pytest.mark.parametrize("criterion", OTHERS)
def test_an_answer_of_unknown_size(nets: Any, ask: Any, criterion: str) -> None:
    """Shape inference stops in front of the answer, which declares its classes itself."""
    found = scores(criterion, ask(opaque(nets, last="[odd] y = Elu (f)")))
    assert {layer: line.shape for layer, line in found.items()} == {"one": (4,)}


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c not in {"weight", "random"}])
def test_data_is_needed(nets: Any, ask: Any, criterion: str) -> None:
    """Nothing else is said about it, least of all that gradients are missing."""
    facts = nets.facts(behind(nets, NODES["Einsum"]).model)
    with pytest.raises(UsageError, match="--data") as caught:
        scores(criterion, ask(facts))
    assert not isinstance(caught.value, GradientError)
