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

# Behind the last layer stands an operator without an adjoint, before the answer.
OPAQUE = """net (float[N, 3, 4, 5] x) => (float[N, 2] y) {{
    [one] a = Conv <kernel_shape = [1, 1]> (x, w1, b1)
    [r1] b = Relu (a)
    [two] c = Conv <kernel_shape = [1, 1]> (b, w2)
    [mean] d = GlobalAveragePool (c)
    [flat] e = Flatten (d)
    {node} }}"""
NODES = {
    "Einsum": '[odd] y = Einsum <equation = "nk->nk"> (e)',
    "Hardmax": "[odd] y = Hardmax (e)",
    "com.microsoft.QuickGelu": "[odd] y = com.microsoft.QuickGelu (e)",
}


def opaque(nets: Any, node: str) -> Facts:
    text = OPAQUE.format(node=node)
    model = nets.build(text, w1=(4, 3, 1, 1), b1=(4,), w2=(2, 4, 1, 1))
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    made: Facts = nets.facts(model, nets.samples(model, 20))
    return made


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
        scores(criterion, ask(opaque(nets, node)))
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
    found = scores(criterion, ask(opaque(nets, node)))
    assert {layer: line.shape for layer, line in found.items()} == {"one": (4,)}


def test_several_operators_are_named(nets: Any, ask: Any) -> None:
    node = '[odd] p = Einsum <equation = "nk->nk"> (e)  [even] y = Hardmax (p)'
    with pytest.raises(GradientError, match=r"Einsum 'odd', Hardmax 'even'; these criteria"):
        scores("taylor", ask(opaque(nets, node)))


def test_off_the_way(nets: Any, ask: Any) -> None:
    """An operator in front of every layer is on nobody's way to the loss."""
    text = """net (float[N, 3, 4, 5] x) => (float[N, 2] y) {
        [odd] z = Einsum <equation = "nchw->nchw"> (x)
        [one] a = Conv <kernel_shape = [1, 1]> (z, w1)
        [r1] b = Relu (a)
        [two] c = Conv <kernel_shape = [1, 1]> (b, w2)
        [mean] d = GlobalAveragePool (c)
        [flat] y = Flatten (d) }"""
    model = nets.build(text, w1=(4, 3, 1, 1), w2=(2, 4, 1, 1))
    facts = nets.facts(model, nets.samples(model, 20))
    for criterion in CRITERIA:
        assert list(scores(criterion, ask(facts))) == ["one"]


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c not in {"weight", "random"}])
def test_data_is_needed(nets: Any, ask: Any, criterion: str) -> None:
    """Nothing else is said about it, least of all that gradients are missing."""
    facts = nets.facts(opaque(nets, NODES["Einsum"]).model)
    with pytest.raises(UsageError, match="--data") as caught:
        scores(criterion, ask(facts))
    assert not isinstance(caught.value, GradientError)
