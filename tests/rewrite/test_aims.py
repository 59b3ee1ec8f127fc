"""What layers are held to: by name, through sums, across removed branches, behind factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.graph.branch_removal import remove_branch, restore_thresholds
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.infer import with_value_info
from onnxcompress.graph.view import GraphView
from onnxcompress.plan.correspondence import correspondence
from onnxcompress.rewrite.aims import Aim, Aims
from onnxcompress.rewrite.pairs import Walks, held_out
from onnxcompress.runtime import Execution

Array = np.ndarray
BLOCKS = """net (float[N, 3, 4, 5] x) => (float[N, 2, 4, 5] y) {
    [stem] a = Conv (x, w0, b0) [r0] b = Relu (a)
    [p1] c = Conv (b, w1) [q1] d = Relu (c) [p2] e = Conv (d, w2)
    [sum] f = Add (b, e) [r1] g = Relu (f)
    [last] y = Conv (g, w3) }"""


def blocks(nets: Any, width: int = 4, inner: int = 5) -> onnx.ModelProto:
    made: onnx.ModelProto = nets.build(
        BLOCKS,
        w0=(width, 3, 1, 1),
        b0=(width,),
        w1=(inner, width, 1, 1),
        w2=(width, inner, 1, 1),
        w3=(2, width, 1, 1),
    )
    return made


def aims(before: onnx.ModelProto, after: onnx.ModelProto, kept: Any = None) -> Aims:
    one, other = GraphView(before), GraphView(after)
    return Aims(one, other, correspondence(one, other, kept or {}))


def targets(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, Array], tensor: str, aim: Aim
) -> tuple[Array, Array]:
    """What is there now and what it should be, over batches of 8 samples."""
    parts = [{n: v[at : at + 8] for n, v in feeds.items()} for at in range(0, 20, 8)]
    walks = Walks(GraphView(before), GraphView(after), parts, Execution(threads=1))
    pairs = list(walks.pairs(tensor, aim))
    return np.concatenate([p.now for p in pairs]), np.concatenate([p.target for p in pairs])


def test_a_layer_aims_at_the_tensor_of_its_name(nets: Any) -> None:
    model = blocks(nets)
    found = aims(model, model)
    assert found.of("a", set()) == Aim("a", None)
    assert found.of("c", {"p2"}) == Aim("c", None)
    assert found.of("y", set()) == Aim("y", None)
    kept = {"c": (1, np.array([0, 3])), "d": (1, np.array([0, 3]))}
    (axis, rows) = aims(model, model, kept).of("c", set()).kept
    assert (axis, rows.tolist()) == (1, [0, 3])


@pytest.mark.parametrize(("width", "inner"), [(4, 5), (3, 3)])
def test_residual_carry(nets: Any, bench: Any, tap: Any, width: int, inner: int) -> None:
    """The last layer in front of a sum: the sum as it was, less the shortcut as it is now."""
    model = blocks(nets, width, inner)
    noise = np.random.default_rng(1).standard_normal((width, 3, 1, 1)).astype(np.float32)
    result = bench.variant(model, w0=noise)
    aim = aims(model, result).of("e", {"last"})
    assert aim == Aim("f", None, ("b",))
    feeds = nets.samples(model, 20)
    now, target = targets(model, result, feeds, "d", aim)
    expected = tap(model, "f", feeds) - tap(result, "b", feeds)
    # Batches of other sizes; sums of two float32 numbers.
    np.testing.assert_allclose(target, expected, atol=1e-5)
    np.testing.assert_allclose(now, tap(result, "d", feeds), atol=1e-5)
    assert np.abs(expected - tap(model, "e", feeds)).max() > 0.1, "the errors differ"


def test_no_carry_while_the_other_summand_is_unsettled(nets: Any) -> None:
    """Two branches meet: the first aims at its own tensor, the second makes up for both."""
    model = nets.build(
        """net (float[N, 3, 4, 5] x) => (float[N, 4, 4, 5] y) {
        [left] a = Conv (x, w1) [right] b = Conv (x, w2) [sum] c = Add (a, b) [r] y = Relu (c) }""",
        w1=(4, 3, 1, 1),
        w2=(4, 3, 1, 1),
    )
    found = aims(model, model)
    assert found.of("a", {"right"}) == Aim("a", None)
    assert found.of("b", set()) == Aim("c", None, ("a",))
    twice = nets.build(
        """net (float[N, 3, 4, 5] x) => (float[N, 4, 4, 5] y) {
        [left] a = Conv (x, w1) [sum] c = Add (a, a) [r] y = Relu (c) }""",
        w1=(4, 3, 1, 1),
    )
    assert aims(twice, twice).of("a", set()) == Aim("a", None)


def test_several_sums_in_a_row(nets: Any, bench: Any, tap: Any) -> None:
    model = nets.build(
        """net (float[N, 3, 4, 5] x) => (float[N, 3, 4, 5] y) {
        [one] a = Relu (x) [c] b = Conv (a, w) [s1] d = Add (b, a) [s2] e = Add (x, d)
        [s3] f = Add (e, shift) [r] y = Relu (f) }""",
        w=(3, 3, 1, 1),
        shift=np.ones((3, 1, 1), np.float32),
    )
    aim = aims(model, model).of("b", set())
    assert (aim.tensor, aim.less) == ("e", ("x", "a"))
    feeds = nets.samples(model, 20)
    _, target = targets(model, model, feeds, "a", aim)
    np.testing.assert_allclose(target, tap(model, "b", feeds), atol=1e-5)


@pytest.mark.parametrize("mean", [(0.0, 0.0, 0.0, 0.0), (1.0, 2.0, 0.5, -3.0)])
def test_look_ahead(nets: Any, tap: Any, mean: tuple[float, ...]) -> None:
    """Where a branch is gone, what is in front aims at the sum that was behind it."""
    model = blocks(nets)
    editor = Editor(model)
    remove_branch(editor, "sum", 1, np.array(mean))
    result = with_value_info(editor.finish())
    editor = Editor(result)
    restore_thresholds(editor, GraphView(model))
    result = with_value_info(editor.finish())
    assert {n.op_type for n in result.graph.node} == {"Conv", "Relu"}
    aim = aims(model, result).of("a", {"last"})
    assert aim == Aim("f", None)
    feeds = nets.samples(model, 20)
    _, target = targets(model, result, feeds, "x", aim)
    np.testing.assert_allclose(target, tap(model, "f", feeds), atol=1e-5)


def test_only_the_last_factor_has_an_aim(nets: Any) -> None:
    """What lies between factors is new: they are fitted as the layer that they stand for."""
    before = nets.build(
        """net (float[N, 3, 4, 5] x) => (float[N, 4, 2, 3] y) {
        [c] a = Conv (x, w) [r] y = Relu (a) }""",
        w=(4, 3, 3, 3),
    )
    after = nets.build(
        """net (float[N, 3, 4, 5] x) => (float[N, 4, 2, 3] y) {
        [in] m = Conv (x, w1) [core] n = Conv (m, w2) [out] a = Conv (n, w3)
        [r] y = Relu (a) }""",
        w1=(2, 3, 1, 1),
        w2=(2, 2, 3, 3),
        w3=(4, 2, 1, 1),
    )
    assert [aims(before, after).of(name, set()) for name in "mna"] == [None, None, Aim("a", None)]


def test_new_tensors_without_an_original_have_no_aim(nets: Any) -> None:
    before = nets.build(
        "net (float[N, 3, 4, 5] x) => (float[N, 4, 4, 5] y) { [c] y = Conv (x, w) }", w=(4, 3, 1, 1)
    )
    after = nets.build(
        """net (float[N, 3, 4, 5] x) => (float[N, 4, 4, 5] y) {
        [new] a = Conv (x, w1) [bend] b = Sigmoid (a) [c] y = Conv (b, w) }""",
        w1=(3, 3, 1, 1),
        w=(4, 3, 1, 1),
    )
    assert aims(before, after).of("a", set()) is None


def test_held_out_samples() -> None:
    masks = [held_out(5000, 0.2, np.random.default_rng(s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    # Five standard deviations of a binomial.
    assert abs(masks[0].mean() - 0.2) < 5 * np.sqrt(0.16 / 5000)
