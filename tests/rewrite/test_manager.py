"""Clone, apply, judge, keep or roll back: what passes do wrong never reaches the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.errors import PassError
from onnxcompress.graph.editor import PROVENANCE_KEY, SOURCE_KEY, Editor
from onnxcompress.rewrite.manager import Rewritten, stray_node

Act = Callable[[str, Editor], None]
CarryOut = Callable[..., Rewritten]


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


def test_applied(model: onnx.ModelProto, carry_out: CarryOut, halve: Act) -> None:
    result = carry_out(model, {"a": halve, "c": halve})
    assert names(result.model) == ["a_half", "a_twice", "b", "c_half", "c_twice", "d"]
    assert [c.site.node for c in result.applied] == ["a", "c"]
    assert result.rolled_back == ()
    found, given = arrays(result.model), arrays(model)
    assert set(found) == {"a_half", "a_two", "wb", "c_half", "c_two", "wd"}
    assert np.array_equal(found["c_half"], given["wc"] / 2)
    assert np.array_equal(found["wb"], given["wb"])
    made = {
        node.name: {entry.key: entry.value for entry in node.metadata_props}
        for node in result.model.graph.node
    }
    for name, source in (("a_half", "a"), ("c_twice", "c")):
        assert made[name] == {PROVENANCE_KEY: "acting", SOURCE_KEY: source}
    assert made["b"] == {}
    assert [(e.action, e.node, e.author) for e in result.journal] == [
        ("replace", "a", "acting"),
        ("replace", "c", "acting"),
    ]
    onnx.checker.check_model(result.model, full_check=True)


def test_nothing_chosen(model: onnx.ModelProto, carry_out: CarryOut) -> None:
    result = carry_out(model, {})
    assert names(result.model) == names(model)
    assert (result.applied, result.rolled_back, result.journal) == ((), (), ())


def fail_half_way(node: str, edit: Editor) -> None:
    edit.set_attributes(edit.node(node), {"dilations": [1, 1]})
    raise ValueError("out of ideas")


def meddle(_node: str, edit: Editor) -> None:
    """Changes an attribute of another node."""
    edit.set_attributes(edit.node("d"), {"group": 1})


def remove(_node: str, edit: Editor) -> None:
    victim = edit.node("b")
    edit.bypass(victim, victim.inputs[0])


def rewire(_node: str, edit: Editor) -> None:
    reader = edit.node("d")
    edit.set_input(reader, 1, edit.copy_constant(reader.inputs[1]))


def zero(_node: str, edit: Editor) -> None:
    """Overwrites the weights that another node reads; no node changes."""
    constant = edit.node("d").inputs[1]
    constant.values = np.zeros(constant.shape, np.float32)


def lose(_node: str, edit: Editor) -> None:
    edit.node("zebra")


BAD: dict[str, tuple[Act, str]] = {
    "raises half-way": (fail_half_way, "out of ideas"),
    "changes an attribute": (meddle, "'d'"),
    "removes a node": (remove, "'b'"),
    "rewires a node": (rewire, "'d'"),
    "overwrites weights": (zero, "'d'"),
    "no such node": (lose, "zebra"),
}


@pytest.mark.parametrize(("act", "reason"), BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("order", ["bad first", "bad last"])
def test_rolled_back(
    model: onnx.ModelProto, carry_out: CarryOut, halve: Act, act: Act, reason: str, order: str
) -> None:
    """Only the culprit goes; what remains is what the others make by themselves."""
    acts = {"c": act, "a": halve} if order == "bad first" else {"a": halve, "c": act}
    result = carry_out(model, acts)
    assert [c.site.node for c in result.applied] == ["a"]
    (refusal,) = result.rolled_back
    assert (refusal.pass_name, refusal.node) == ("acting", "c")
    assert refusal.reason.startswith("rolled back")
    assert reason in refusal.reason
    alone = carry_out(model, {"a": halve})
    assert result.model.SerializeToString(deterministic=True) == alone.model.SerializeToString(
        deterministic=True
    )
    assert result.journal == alone.journal


@pytest.mark.parametrize(("act", "reason"), BAD.values(), ids=BAD.keys())
def test_strict(
    model: onnx.ModelProto, carry_out: CarryOut, halve: Act, act: Act, reason: str
) -> None:
    with pytest.raises(PassError) as caught:
        carry_out(model, {"a": halve, "c": act}, strict=True)
    message = str(caught.value)
    for word in ("'acting'", "'c'", reason):
        assert word in message
    assert "\n" not in message


def test_all_rolled_back(model: onnx.ModelProto, carry_out: CarryOut) -> None:
    result = carry_out(model, {"a": fail_half_way, "b": meddle, "c": fail_half_way})
    assert result.applied == ()
    assert {refusal.node for refusal in result.rolled_back} == {"a", "b", "c"}
    assert names(result.model) == names(model)


@pytest.mark.parametrize("act", [meddle, rewire, remove, zero])
def test_what_is_announced_may_change(
    model: onnx.ModelProto, carry_out: CarryOut, act: Act
) -> None:
    result = carry_out(model, {"c": act}, c=("b", "c", "d"))
    assert result.rolled_back == ()
    assert [c.site.node for c in result.applied] == ["c"]


def test_an_interrupt_is_no_fault_of_a_pass(model: onnx.ModelProto, carry_out: CarryOut) -> None:
    def interrupted(_node: str, _edit: Editor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(model, {"c": interrupted})


def test_a_message_of_several_lines_becomes_one(
    model: onnx.ModelProto, carry_out: CarryOut
) -> None:
    def wordy(_node: str, _edit: Editor) -> None:
        raise ValueError("one\ntwo")

    (refusal,) = carry_out(model, {"c": wordy}).rolled_back
    assert "\n" not in refusal.reason


def test_stray_nodes(model: onnx.ModelProto, candidate: Callable[..., Any]) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    assert stray_node(model, changed, []) is None
    changed.graph.node[2].input[1] = "wd"
    assert stray_node(model, changed, []) == "c"
    assert stray_node(model, changed, [candidate("b")]) == "c"
    assert stray_node(model, changed, [candidate("b", ("b", "c"))]) is None
    del changed.graph.node[1]
    assert stray_node(model, changed, [candidate("c")]) == "b"
