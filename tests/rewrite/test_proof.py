"""The self-check: faults that no shape shows are caught, and only the guilty are rolled back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from onnxcompress.analyse.facts import analyse
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.edits import Absorb
from onnxcompress.graph.infer import with_value_info
from onnxcompress.plan.channels.plan_cuts import plan_cuts
from onnxcompress.plan.contract import Candidate, Pass, Site
from onnxcompress.rewrite.manager import Proof, Rewritten, rewrite
from onnxcompress.rewrite.proof import Bench, prove
from onnxcompress_passes.prune import Prune
from onnxcompress_passes.prune_setting import KeptChannels

Act = Callable[[str, Editor], None]
ONE = 1


def network(dtype: type = np.float32, *, equal: bool = False) -> onnx.ModelProto:
    """'one' and 'three' are read behind ReLU, 'two' behind Sigmoid: what remains of it is 1/2."""
    kind = "float16" if dtype is np.float16 else "float"
    a, b, c = (8, 8, 8) if equal else (6, 9, 7)
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        net ({kind}[N, 3, 5, 6] x) => ({kind}[N, 4, 3, 4] y) {{
        [one] t = Conv <kernel_shape = [1, 1]> (x, w1)
        [r1] u = Relu (t)
        [two] v = Conv <kernel_shape = [3, 3]> (u, w2)
        [r2] w = Sigmoid (v)
        [three] p = Conv <kernel_shape = [1, 1], pads = [0, 0, 0, 0]> (w, w3)
        [r3] q = Relu (p)
        [last] y = Conv <kernel_shape = [1, 1]> (q, w4) }}"""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(3)
    shapes = {"w1": (a, 3, 1, 1), "w2": (b, a, 3, 3), "w3": (c, b, 1, 1), "w4": (4, c, 1, 1)}
    for name, shape in shapes.items():
        values = (generator.standard_normal(shape) / 3).astype(dtype)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return with_value_info(model)


def feeds(model: onnx.ModelProto, batches: Sequence[int] = (4,)) -> list[dict[str, Any]]:
    generator = np.random.default_rng(8)
    kind = model.graph.input[0].type.tensor_type.elem_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    return [{"x": generator.standard_normal((n, 3, 5, 6)).astype(dtype)} for n in batches]


def halves(model: onnx.ModelProto) -> list[Candidate[KeptChannels]]:
    """Half of the channels of all three groups."""
    facts, owner = analyse(model, {"x": (1, 3, 5, 6)}), Prune(channels=0.5)
    sites = [site for site in owner.sites(facts) if isinstance(site, Site)]
    assert [site.node for site in sites] == ["one", "two", "three"]
    return [candidate for site in sites for candidate in owner.candidates(site, facts)]


def proved(
    model: onnx.ModelProto,
    chosen: Sequence[Candidate[Any]],
    owner: Pass[Any] | None = None,
    inputs: list[dict[str, Any]] | None = None,
) -> Rewritten:
    passes = {(owner or Prune()).name: owner or Prune()}
    before = model.SerializeToString(deterministic=True)
    result = prove(
        rewrite(model, chosen, passes), passes, Bench(model, inputs or feeds(model), ONE)
    )
    assert model.SerializeToString(deterministic=True) == before
    return result


def nodes(candidates: Sequence[Candidate[Any]]) -> list[str]:
    return [candidate.site.node for candidate in candidates]


def octets(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("equal", [False, True], ids=["distinct", "equal"])
def test_a_sound_rewrite_is_proved(*, equal: bool) -> None:
    """All groups together; rounding by another order of sums is tolerated, and is reported."""
    model = network(equal=equal)
    plain = rewrite(model, halves(model), {"prune": Prune()})
    result = proved(model, halves(model), inputs=feeds(model, (4, 3)))
    assert nodes(result.applied) == ["one", "two", "three"]
    assert result.rolled_back == ()
    assert octets(result.model) == octets(plain.model)
    (proof,) = result.proofs
    assert (proof.pass_name, proof.samples) == ("prune", 7)
    assert 0.0 < proof.error < 1e-6


def shifted(group: str) -> Callable[..., Any]:
    """Cuts that remove the neighbours of the channels that were chosen."""

    def cuts(view: Any, coupling: Any, removed: dict[str, tuple[int, ...]], **more: Any) -> Any:
        width = coupling.group(group).width
        wrong = {
            name: tuple(sorted((c + 1) % width for c in gone)) if name == group else gone
            for name, gone in removed.items()
        }
        return plan_cuts(view, coupling, wrong, **more)

    return cuts


@pytest.mark.parametrize("equal", [False, True], ids=["distinct", "equal"])
@pytest.mark.parametrize("group", ["one", "two", "three"])
def test_the_wrong_channels(monkeypatch: pytest.MonkeyPatch, group: str, *, equal: bool) -> None:
    """Every shape is right: only the comparison can tell. The others stay as they are alone."""
    model = network(equal=equal)
    chosen = halves(model)
    others = [candidate for candidate in chosen if candidate.site.node != group]
    sound = rewrite(model, others, {"prune": Prune()})
    monkeypatch.setattr("onnxcompress_passes.channel_pass.plan_cuts", shifted(group))
    result = proved(model, chosen)
    assert nodes(result.applied) == nodes(others)
    (refusal,) = result.rolled_back
    assert (refusal.pass_name, refusal.node) == ("prune", group)
    assert refusal.reason.startswith("rolled back: it differs from its reference by ")
    assert octets(result.model) == octets(sound.model)
    (proof,) = result.proofs
    assert proof.error < 1e-6


def test_what_removed_channels_leave_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind Sigmoid a channel of zeros is 1/2, which belongs into the next bias."""
    import onnxcompress_passes.channel_pass as module

    genuine = module.apply_edits
    monkeypatch.setattr(
        module,
        "apply_edits",
        lambda edits, editor: genuine([e for e in edits if not isinstance(e, Absorb)], editor),
    )
    model = network()
    result = proved(model, halves(model))
    assert nodes(result.applied) == ["one", "three"]
    assert [refusal.node for refusal in result.rolled_back] == ["two"]


def test_absorbed_with_the_wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxcompress_passes.channel_pass as module

    genuine = module.apply_edits
    monkeypatch.setattr(
        module,
        "apply_edits",
        lambda edits, editor: genuine(
            [Absorb(e.node, -e.addition) if isinstance(e, Absorb) else e for e in edits], editor
        ),
    )
    result = proved(network(), halves(network()))
    assert [refusal.node for refusal in result.rolled_back] == ["two"]


def test_several_are_guilty(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other goes, down to nothing: the model comes back as it was."""

    def cuts(view: Any, coupling: Any, removed: dict[str, tuple[int, ...]], **more: Any) -> Any:
        for group in tuple(removed):
            width = coupling.group(group).width
            removed = {**removed, group: tuple(sorted((c + 1) % width for c in removed[group]))}
        return plan_cuts(view, coupling, removed, **more)

    monkeypatch.setattr("onnxcompress_passes.channel_pass.plan_cuts", cuts)
    model = network()
    result = proved(model, halves(model))
    assert result.applied == ()
    assert [refusal.node for refusal in result.rolled_back] == ["one", "two", "three"]
    assert result.proofs == ()
    assert list(result.model.graph.node) == list(model.graph.node)


def test_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is absorbed is rounded to 11 bits: allowed; a wrong channel is not."""
    model = network(np.float16)
    assert Bench(model, feeds(model), ONE).allowed == pytest.approx(1e-2)
    assert Bench(network(), feeds(network()), ONE).allowed == pytest.approx(1e-5)
    result = proved(model, halves(model))
    assert result.rolled_back == ()
    assert 1e-5 < result.proofs[0].error < 1e-2
    monkeypatch.setattr("onnxcompress_passes.channel_pass.plan_cuts", shifted("two"))
    result = proved(model, halves(model))
    assert [refusal.node for refusal in result.rolled_back] == ["two"]


@pytest.fixture
def claiming(acting: Any) -> type[Pass[Any]]:
    """A pass that rewrites as the test says, and has a reference: other acts, or the original."""

    @dataclass(frozen=True)
    class Claiming(acting):
        meant: dict[str, Act] | None = field(default_factory=dict)

        name: ClassVar[str] = "claiming"

        def reference(self, candidates: Sequence[Candidate[Any]], edit: Editor) -> bool:
            if self.meant is None:
                return False
            for candidate in candidates:
                node = candidate.site.node
                self.meant.get(node, lambda *_: None)(node, edit)
            return True

    return Claiming


@pytest.fixture
def touching(claiming: Any) -> Callable[..., list[Candidate[Any]]]:
    """Candidates of that pass, one per node, which touch nothing else."""

    def make(*names: str) -> list[Candidate[Any]]:
        setting = claiming.setting_type()
        return [Candidate(Site("claiming", n), setting, (n,), Cost(), Cost(), 0.0) for n in names]

    return make


def times(*factors: float, index: int = 1) -> Act:
    """Multiply an operand by factors."""

    def act(name: str, edit: Editor) -> None:
        node = edit.node(name)
        weight = np.asarray(node.inputs[index].values)
        for factor in factors:
            weight = (weight * factor).astype(weight.dtype)
        edit.set_input(node, index, edit.constant(f"{name}_scaled", weight))

    return act


def become(operator: str) -> Act:
    def act(name: str, edit: Editor) -> None:
        node = edit.node(name)
        edit.replace(node, [gs.Node(operator, f"{name}_{operator}", inputs=list(node.inputs))])

    return act


def test_without_a_reference_nothing_is_compared(claiming: Any, touching: Any) -> None:
    """Even what is plainly wrong stays: other parts judge it by its accuracy."""
    result = proved(network(), touching("one"), claiming({"one": times(7.0)}, None))
    assert nodes(result.applied) == ["one"]
    assert result.proofs == ()


def test_a_fault_that_only_the_data_shows(claiming: Any, touching: Any) -> None:
    """ReLU dropped where every value is positive: right on these inputs, and wrong on others."""
    model = network()
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            positive = np.abs(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(positive, "w1"))
    owner = claiming({"r1": become("Identity")})
    friendly = [{"x": np.abs(one["x"])} for one in feeds(model)]
    result = proved(model, touching("r1"), owner, friendly)
    assert nodes(result.applied) == ["r1"]
    assert result.proofs == (Proof("claiming", 0.0, 4),)
    result = proved(model, touching("r1"), owner, feeds(model))
    assert result.applied == ()
    assert [refusal.node for refusal in result.rolled_back] == ["r1"]
    # One batch of many is enough to show it.
    result = proved(model, touching("r1"), owner, [*friendly, *friendly, *feeds(model, (1,))])
    assert result.applied == ()


@pytest.mark.parametrize(("factor", "held"), [(1 + 2e-6, True), (1 + 1e-4, False)])
def test_how_much_is_rounding(claiming: Any, touching: Any, factor: float, held: bool) -> None:
    """The relative error of the last layer's weight is that of the output."""
    result = proved(network(), touching("last"), claiming({"last": times(factor)}))
    assert bool(result.applied) is held
    if held:
        assert result.proofs[0].error == pytest.approx(factor - 1, rel=0.2)


def test_two_that_only_fail_together(claiming: Any, touching: Any) -> None:
    """By itself each is within rounding; their product is not."""
    model = network()
    small = times(1 + 7e-6)
    owner = claiming({"three": small, "last": small})
    assert nodes(proved(model, touching("three"), owner).applied) == ["three"]
    result = proved(model, touching("three", "last"), owner)
    assert nodes(result.applied) == ["three"]
    assert [refusal.node for refusal in result.rolled_back] == ["last"]


def test_two_passes_are_proved_apart(
    monkeypatch: pytest.MonkeyPatch, claiming: Any, touching: Any
) -> None:
    """Each against its own reference on the original; the fault of one leaves the other alone."""
    model = network()
    owner = claiming({"r2": become("Identity")})
    passes: dict[str, Pass[Any]] = {"prune": Prune(), "claiming": owner}
    chosen: list[Candidate[Any]] = [halves(model)[0], *touching("r2")]
    result = prove(rewrite(model, chosen, passes), passes, Bench(model, feeds(model), ONE))
    assert nodes(result.applied) == ["one"]
    assert [(r.pass_name, r.node) for r in result.rolled_back] == [("claiming", "r2")]
    assert [proof.pass_name for proof in result.proofs] == ["prune"]


def poison(name: str, edit: Editor) -> None:
    times(float("nan"))(name, edit)


def widen(name: str, edit: Editor) -> None:
    """Another output size: a valid model, with other shapes."""
    edit.set_attributes(edit.node(name), {"pads": [1, 1, 1, 1]})


@pytest.mark.parametrize("act", [poison, widen], ids=["not a number", "another size"])
def test_results_that_cannot_be_compared(claiming: Any, touching: Any, act: Act) -> None:
    model = network()
    for value in model.graph.output[0].type.tensor_type.shape.dim:
        value.Clear()
    result = proved(with_value_info(model), touching("three"), claiming({"three": act}))
    assert result.applied == ()
    assert [refusal.node for refusal in result.rolled_back] == ["three"]


def test_silent_outputs_are_compared_absolutely(claiming: Any, touching: Any) -> None:
    """Where the reference is zero, an error of 1e-9 is nothing and one of 1e-3 is not."""
    model = network()
    silence = times(0.0)
    for size, held in ((1e-9, True), (1e-3, False)):
        owner = claiming({"last": times(size)}, {"last": silence})
        assert bool(proved(model, touching("last"), owner).applied) is held


def test_what_was_rolled_back_before_is_kept(claiming: Any, touching: Any) -> None:
    """Refusals of the manager stay in front of those of the proof."""
    owner = claiming({"one": lambda *_: 1 / 0, "two": times(2.0), "last": times(1.0)})
    result = proved(network(), touching("one", "two", "last"), owner)
    assert nodes(result.applied) == ["last"]
    assert [refusal.node for refusal in result.rolled_back] == ["one", "two"]
    assert "ZeroDivisionError" in result.rolled_back[0].reason
    assert result.proofs == (Proof("claiming", 0.0, 4),)
