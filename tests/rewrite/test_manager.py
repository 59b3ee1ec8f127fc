"""Clone, apply, judge, keep or roll back: what passes do wrong never reaches the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from onnxcompress.analyse.facts import Facts, Need
from onnxcompress.errors import PassError
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import PROVENANCE_KEY, SOURCE_KEY, Editor
from onnxcompress.load.canonical import canonicalise
from onnxcompress.plan.contract import Candidate, Pass, Refusal, Site
from onnxcompress.rewrite.manager import Rewritten, rewrite, stray_node

Act = Callable[[str, Editor], None]


@dataclass(frozen=True)
class Nothing:
    """A setting without choices."""


@dataclass(frozen=True)
class Acting(Pass[Nothing]):
    """Does what the test says to the site's node."""

    acts: Any = None

    name: ClassVar[str] = "acting"
    needs: ClassVar[frozenset[Need]] = frozenset()
    setting_type: ClassVar[type] = Nothing

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        yield from ()

    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[Nothing]]:
        return []

    def rewrite(self, candidate: Candidate[Nothing], edit: Editor) -> None:
        self.acts[candidate.site.node](candidate.site.node, edit)


@pytest.fixture
def model() -> onnx.ModelProto:
    """Four 1x1 convolutions in a row, by name and weight: a wa, b wb, c wc, d wd."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    row (float[1, 4, 2, 3] x) => (float[1, 4, 2, 3] y)
    {
      [a] ta = Conv <kernel_shape = [1, 1]> (x, wa)
      [b] tb = Conv <kernel_shape = [1, 1]> (ta, wb)
      [c] tc = Conv <kernel_shape = [1, 1]> (tb, wc)
      [d] y = Conv <kernel_shape = [1, 1]> (tc, wd)
    }
    """
    made = onnx.parser.parse_model(text)
    generator = np.random.default_rng(6)
    for name in ("wa", "wb", "wc", "wd"):
        values = generator.standard_normal((4, 4, 1, 1)).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return canonicalise(made).model


def candidate(node: str, touches: tuple[str, ...] = ()) -> Candidate[Nothing]:
    return Candidate(Site("acting", node), Nothing(), touches or (node,), Cost(), Cost(), 0.0)


def carry_out(
    model: onnx.ModelProto, acts: dict[str, Act], *, strict: bool = False, **touches: Any
) -> Rewritten:
    chosen = [candidate(node, touches.get(node, ())) for node in acts]
    before = model.SerializeToString(deterministic=True)
    try:
        return rewrite(model, chosen, {"acting": Acting(acts)}, strict=strict)
    finally:
        assert model.SerializeToString(deterministic=True) == before


def halve(node: str, edit: Editor) -> None:
    """What a good pass does: a Conv of half the weight, then a Mul by two."""
    old = edit.node(node)
    weight = edit.constant(f"{node}_half", np.asarray(old.inputs[1].values) / np.float32(2))
    two = edit.constant(f"{node}_two", np.float32([2]))
    middle = edit.variable(f"{node}_middle", old.inputs[0])
    first = gs.Node("Conv", f"{node}_half", {"kernel_shape": [1, 1]}, [old.inputs[0], weight],
                    [middle])  # fmt: skip
    edit.replace(old, [first, gs.Node("Mul", f"{node}_twice", {}, [middle, two])])


def fail_half_way(node: str, edit: Editor) -> None:
    halve(node, edit)
    raise ValueError("out of ideas")


def meddle(other: str) -> Act:
    """Does its own node well, and another's attribute as well."""

    def act(node: str, edit: Editor) -> None:
        halve(node, edit)
        edit.set_attributes(edit.node(other), {"group": 1})

    return act


def remove(other: str) -> Act:
    def act(node: str, edit: Editor) -> None:
        halve(node, edit)
        victim = edit.node(other)
        edit.bypass(victim, victim.inputs[0])

    return act


def rewire(other: str) -> Act:
    def act(node: str, edit: Editor) -> None:
        halve(node, edit)
        reader = edit.node(other)
        edit.set_input(reader, 1, edit.copy_constant(reader.inputs[1]))

    return act


def zero(other: str) -> Act:
    """Overwrites the weights that another node reads; no node changes."""

    def act(node: str, edit: Editor) -> None:
        halve(node, edit)
        constant = edit.node(other).inputs[1]
        constant.values = np.zeros(constant.shape, np.float32)

    return act


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


def test_applied(model: onnx.ModelProto) -> None:
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


def test_nothing_chosen(model: onnx.ModelProto) -> None:
    result = carry_out(model, {})
    assert names(result.model) == names(model)
    assert (result.applied, result.rolled_back, result.journal) == ((), (), ())


BAD: dict[str, tuple[Act, str]] = {
    "raises half-way": (fail_half_way, "out of ideas"),
    "changes an attribute": (meddle("d"), "'d'"),
    "removes a node": (remove("b"), "'b'"),
    "rewires a node": (rewire("d"), "'d'"),
    "overwrites weights": (zero("d"), "'d'"),
    "no such node": (lambda _node, edit: halve("zebra", edit), "zebra"),
}


@pytest.mark.parametrize(("act", "reason"), BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("order", ["bad first", "bad last"])
def test_rolled_back(model: onnx.ModelProto, act: Act, reason: str, order: str) -> None:
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
def test_strict(model: onnx.ModelProto, act: Act, reason: str) -> None:
    with pytest.raises(PassError) as caught:
        carry_out(model, {"a": halve, "c": act}, strict=True)
    message = str(caught.value)
    for word in ("'acting'", "'c'", reason):
        assert word in message
    assert "\n" not in message


def test_all_rolled_back(model: onnx.ModelProto) -> None:
    result = carry_out(model, {"a": fail_half_way, "b": meddle("d"), "c": fail_half_way})
    assert result.applied == ()
    assert {refusal.node for refusal in result.rolled_back} == {"a", "b", "c"}
    assert names(result.model) == names(model)


@pytest.mark.parametrize("act", [meddle("d"), rewire("d"), remove("b"), zero("d")])
def test_what_is_announced_may_change(model: onnx.ModelProto, act: Act) -> None:
    result = carry_out(model, {"c": act}, c=("b", "c", "d"))
    assert result.rolled_back == ()
    assert [c.site.node for c in result.applied] == ["c"]


def invalid(node: str, edit: Editor) -> None:
    """An attribute that Conv does not have: the checker refuses the whole model."""
    old = edit.node(node)
    inputs = list(old.inputs)
    edit.replace(old, [gs.Node("Conv", f"{node}_new", {"beta": 1.0}, inputs)])


def misfit(node: str, edit: Editor) -> None:
    """A weight of another rank: shape inference refuses the whole model."""
    old = edit.node(node)
    weight = edit.constant(f"{node}_flat", np.ones((4, 4, 1), np.float32))
    edit.replace(old, [gs.Node("Conv", f"{node}_new", {}, [old.inputs[0], weight])])


@pytest.mark.parametrize("act", [invalid, misfit])
def test_a_rewrite_that_makes_the_model_invalid(model: onnx.ModelProto, act: Act) -> None:
    """Rolled back, or refused with the name of the pass that did it."""
    try:
        result = carry_out(model, {"a": halve, "c": act})
    except PassError as error:
        assert "'acting'" in str(error)
        assert "'c'" in str(error)
        assert "\n" not in str(error)
    else:
        assert [c.site.node for c in result.applied] == ["a"]
        assert [refusal.node for refusal in result.rolled_back] == ["c"]


def test_nodes_with_subgraphs_are_no_strays() -> None:
    """An If elsewhere in the graph comes through unchanged, and nobody is blamed for it."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    row (float[1, 4, 2, 3] x, bool q) => (float[1, 4, 2, 3] y)
    {
      [a] t = Conv <kernel_shape = [1, 1]> (x, wa)
      [choice] y = If (q) <
        then_branch = yes () => (float[1, 4, 2, 3] k) { [left] k = Relu (t) },
        else_branch = no () => (float[1, 4, 2, 3] l) { [right] l = Neg (t) }
      >
    }
    """
    made = onnx.parser.parse_model(text)
    values = np.ones((4, 4, 1, 1), np.float32)
    made.graph.initializer.append(onnx.numpy_helper.from_array(values, "wa"))
    result = carry_out(canonicalise(made).model, {"a": halve})
    assert result.rolled_back == ()
    assert names(result.model) == ["a_half", "a_twice", "choice"]


def test_an_interrupt_is_no_fault_of_a_pass(model: onnx.ModelProto) -> None:
    def interrupted(_node: str, _edit: Editor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(model, {"c": interrupted})


def test_a_message_of_several_lines_becomes_one(model: onnx.ModelProto) -> None:
    def wordy(_node: str, _edit: Editor) -> None:
        raise ValueError("one\ntwo")

    (refusal,) = carry_out(model, {"c": wordy}).rolled_back
    assert "\n" not in refusal.reason


def test_stray_nodes(model: onnx.ModelProto) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    assert stray_node(model, changed, []) is None
    changed.graph.node[2].input[1] = "wd"
    assert stray_node(model, changed, []) == "c"
    assert stray_node(model, changed, [candidate("b")]) == "c"
    assert stray_node(model, changed, [candidate("b", ("b", "c"))]) is None
    del changed.graph.node[1]
    assert stray_node(model, changed, [candidate("c")]) == "b"
