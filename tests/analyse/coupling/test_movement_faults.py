"""Faults planted in the engine, one at a time: the oracle of these tests must see every one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from onnxcompress.analyse.coupling import engine
from onnxcompress.analyse.coupling.channels import Channels
from onnxcompress.analyse.coupling.rules import elementwise, reducing, resizing, table
from onnxcompress.analyse.coupling.rules import movement as moving
from onnxcompress.errors import OnnxCompressError
from onnxcompress.graph.edits import Permute
from onnxcompress.plan.channels import movement as editing
from onnxcompress.plan.channels import operands, plan_cuts

# How a wrong result shows: other numbers, an invalid model, or one that does not run. A fault that
# only breaks the test itself (a TypeError, say) is not among them.
NOTICED = (
    AssertionError,
    OnnxCompressError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.RuntimeException,
)
Patch = pytest.MonkeyPatch


def numbers(s: Any, *values: int) -> str:
    return str(s.constant(list(values), dtype=np.int64))


def first(s: Any, channels: int = 6) -> str:
    return str(s.conv(s.input([2, 3, 4, 8]), 3, channels, name="first"))


def last(s: Any, a: str, channels: int, kernel: int = 1) -> Any:
    return s.model(s.conv(a, channels, 5, kernel, name="last"))


def ones_and_zeros(s: Any) -> str:
    """Channels that are 1 or 0 in turns when they are zero at their producer."""
    return str(s.add("Add", first(s), s.constant(np.reshape([1.0, 0.0] * 3, (6, 1, 1)))))


def split(s: Any) -> Any:
    left, right = s.add("Split", first(s), numbers(s, 2, 4), outputs=2, axis=1)
    return last(s, s.add("Concat", right, left, axis=1), 6)


def halves(s: Any) -> Any:
    left, right = s.add("Split", first(s), numbers(s, 3, 3), outputs=2, axis=1)
    return last(s, s.add("Sub", left, right), 3)


def part(s: Any) -> Any:
    a = first(s)
    mine = s.add("Slice", a, numbers(s, 2), numbers(s, -1), numbers(s, 1))
    return s.model(s.conv(mine, 3, 5, name="last"), s.conv(a, 6, 5, name="whole"))


def picked(s: Any) -> Any:
    return last(s, s.add("Gather", first(s), numbers(s, 4, 1, 5, 1), axis=1), 4)


def padded(s: Any) -> Any:
    a = first(s, 3)
    wide = s.add("Pad", a, numbers(s, 0, 1, 0, 0, 0, 2, 0, 0), s.constant(2.0))
    return last(s, s.add("Add", wide, s.conv(a, 3, 6, name="other")), 6)


def framed(s: Any) -> Any:
    frame = numbers(s, 0, 0, 1, 1, 0, 0, 1, 1)
    return last(s, s.add("Pad", ones_and_zeros(s), frame, s.constant(1.0)), 6, 3)


def shuffled(s: Any) -> Any:
    five = s.add("Reshape", first(s), numbers(s, 2, 2, 3, 4, 8))
    five = s.add("Transpose", five, perm=[0, 2, 1, 3, 4])
    return last(s, s.add("Reshape", five, numbers(s, 2, 6, 4, 8)), 6)


def flattened(s: Any) -> Any:
    rows = s.add("Transpose", first(s), perm=[0, 2, 3, 1])
    rows = s.add("Reshape", rows, numbers(s, -1, 6))
    return s.model(s.add("MatMul", rows, s.whole([6, 5]), name="last"))


def enlarged(s: Any) -> Any:
    """Pixel shuffle: the four channels of one pixel go together."""
    a = s.add("DepthToSpace", first(s, 12), blocksize=2)
    return last(s, a, 3)


def expanded(s: Any) -> Any:
    a = first(s)
    gate = s.conv(s.add("GlobalMaxPool", a), 6, 6, name="gate")
    return last(s, s.add("Mul", a, s.add("Expand", gate, numbers(s, 2, 6, 4, 8))), 6)


def resized(s: Any) -> Any:
    return last(s, s.add("Resize", first(s), "", "", numbers(s, 2, 6, 8, 8), mode="nearest"), 6)


def joined(s: Any) -> Any:
    x = first(s, 4)
    both = s.add(
        "Concat",
        x,
        s.constant(np.broadcast_to(np.reshape([3.0, 7.0], (1, 2, 1, 1)), (2, 2, 4, 8))),
        axis=1,
    )
    return last(s, s.add("Add", both, s.conv(x, 4, 6, name="other")), 6)


def averaged(s: Any) -> Any:
    pooling = {"kernel_shape": [2, 2], "pads": [1] * 4, "count_include_pad": 1}
    return last(s, s.add("AveragePool", ones_and_zeros(s), **pooling), 6)


def summed(s: Any) -> Any:
    return last(s, s.add("ReduceSum", ones_and_zeros(s), numbers(s, 2, 3)), 6)


def guarded(s: Any, operator: str, *operands: str, channels: int = 6, **attributes: Any) -> Any:
    """An operator through which nothing may be cut, and beside it a layer that may lose some."""
    a = first(s)
    y = s.conv(s.add(operator, a, *operands, **attributes), channels, 5, name="last")
    return s.model(y, s.conv(s.conv(a, 6, 4, name="free"), 4, 5, name="other"))


def stepped(s: Any) -> Any:
    bounds = [numbers(s, n) for n in (0, 6, 1, 2)]
    return guarded(s, "Slice", *bounds, channels=3)


def attended(s: Any) -> Any:
    return guarded(s, "Softmax", axis=1)


def squeezed(s: Any) -> Any:
    a = first(s)
    flat = s.add("Squeeze", s.add("GlobalMaxPool", a))
    dense = s.add("Gemm", flat, s.whole([6, 5]), s.whole([5]), name="dense")
    return s.model(dense, s.conv(s.conv(a, 6, 4, name="free"), 4, 5, name="other"))


def halved(s: Any) -> Any:
    """A Reshape to [2, 3, C / 3, H, W], whose groups of C / 3 are normalised."""
    a = first(s)
    shape = s.add("Shape", a)
    each = s.add("Div", s.add("Gather", shape, numbers(s, 1)), numbers(s, 3))
    space = s.add("Slice", shape, numbers(s, 2), numbers(s, 4))
    five = s.add("Reshape", a, s.add("Concat", numbers(s, 2, 3), each, space, axis=0))
    five = s.add("InstanceNormalization", five, s.whole([3]), s.whole([3]))
    free = s.conv(s.conv(a, 6, 4, name="free"), 4, 5, name="other")
    return s.model(s.conv(s.add("Reshape", five, shape), 6, 5, name="last"), free)


def nothing(node: onnx.NodeProto, at: Any) -> Iterator[Any]:
    yield from ()


def unedited(operator: str) -> Callable[[Patch], None]:
    """The operator stays as it was."""
    return lambda patch: patch.setitem(plan_cuts._RULES, operator, nothing)


def ruled(operator: str, rule: Any) -> Callable[[Patch], None]:
    """Another rule is taken for the operator."""
    return lambda patch: patch.setitem(table.RULES, operator, rule)


def order_not_counted_among_those_that_stay(patch: Patch) -> None:
    right = editing.shuffle

    def wrong(node: onnx.NodeProto, at: Any) -> Iterator[Any]:
        for edit in right(node, at):
            assert isinstance(edit, Permute)
            yield replace(edit, order=np.arange(len(edit.order)))

    patch.setattr(editing, "shuffle", wrong)


def order_backwards(patch: Patch) -> None:
    right = engine.find_shuffles

    def wrong(tracer: Any) -> Any:
        return {k: replace(v, order=v.order[::-1]) for k, v in right(tracer).items()}

    patch.setattr(engine, "find_shuffles", wrong)


def bounds_not_clamped(patch: Patch) -> None:
    patch.setattr(editing, "_clamped", lambda bound, _: bound)


def indices_not_renumbered(patch: Patch) -> None:
    def wrong(node: onnx.NodeProto, at: Any) -> Iterator[Any]:
        after = at.lane(node.output[0])
        if after is not None:
            stored = at.view.array(node.input[1])
            yield editing.Replace(node.name, 1, stored[at.kept(node.output[0])])

    patch.setitem(plan_cuts._RULES, "Gather", wrong)


def picks_backwards(patch: Patch) -> None:
    def wrong(node: onnx.NodeProto, at: Any) -> Iterator[Any]:
        for edit in editing.gather(node, at):
            yield replace(edit, values=edit.values[::-1])

    patch.setitem(plan_cuts._RULES, "Gather", wrong)


def parts_backwards(patch: Patch) -> None:
    def wrong(node: onnx.NodeProto, at: Any) -> Iterator[Any]:
        for edit in editing.split(node, at):
            yield replace(edit, values=edit.values[::-1])

    patch.setitem(plan_cuts._RULES, "Split", wrong)


def sides_of_pad_exchanged(patch: Patch) -> None:
    def wrong(node: onnx.NodeProto, at: Any) -> Iterator[Any]:
        for edit in editing.pad(node, at):
            yield replace(edit, values=np.roll(edit.values, 4))

    patch.setitem(plan_cuts._RULES, "Pad", wrong)


def wrong_part_of_a_constant(patch: Patch) -> None:
    def wrong(node: onnx.NodeProto, at: Any) -> Iterator[Any]:
        for edit in operands.concat(node, at):
            yield replace(edit, kept={k: np.arange(len(v)) for k, v in edit.kept.items()})

    patch.setitem(plan_cuts._RULES, "Concat", wrong)


def nothing_united(patch: Patch) -> None:
    patch.setattr(Channels, "unite", lambda *_: None)


def frame_taken_for_zero(patch: Patch) -> None:
    right = resizing._padding

    def wrong(*given: Any) -> Any:
        amounts, _, mode = right(*given)
        return amounts, 0.0, mode

    patch.setattr(resizing, "_padding", wrong)


def padding_not_counted(patch: Patch) -> None:
    patch.setattr(reducing, "_plain_average", lambda _: True)


def sum_taken_for_a_mean(patch: Patch) -> None:
    patch.setattr(reducing, "_KEEP_CONSTANTS", reducing._KEEP_CONSTANTS | {"ReduceSum"})


def sizes_not_checked(patch: Patch) -> None:
    patch.setattr(engine, "refuse_sizes_that_do_not_follow", lambda *_: None)


def unlooked(node: onnx.NodeProto, tracer: Any) -> None:
    """The operator as data movement on all axes, whatever it does."""
    moving._only(node, tracer, range(len(tracer.shape(node.input[0]))))


FAULTS: dict[str, tuple[Callable[[Any], Any], Callable[[Patch], None]]] = {
    "sizes of Split": (split, unedited("Split")),
    "bounds of Slice": (part, unedited("Slice")),
    "bounds of Slice not clamped": (part, bounds_not_clamped),
    "indices of Gather": (picked, unedited("Gather")),
    "indices of Gather not renumbered": (picked, indices_not_renumbered),
    "amounts of Pad": (padded, unedited("Pad")),
    "constant of Reshape": (flattened, unedited("Reshape")),
    "constant of Expand": (expanded, unedited("Expand")),
    "constant of Resize": (resized, unedited("Resize")),
    "constant operand of Concat": (joined, unedited("Concat")),
    "order of indices of Gather": (picked, picks_backwards),
    "order of sizes of Split": (split, parts_backwards),
    "sides of Pad": (padded, sides_of_pad_exchanged),
    "part of a constant operand": (joined, wrong_part_of_a_constant),
    "order of a shuffle": (shuffled, order_not_counted_among_those_that_stay),
    "order of a shuffle backwards": (shuffled, order_backwards),
    "halves not united": (halves, nothing_united),
    "phases of a pixel not united": (enlarged, nothing_united),
    "value that Pad fills in": (framed, frame_taken_for_zero),
    "border in an average": (averaged, padding_not_counted),
    "sum of a constant": (summed, sum_taken_for_a_mean),
    "steps of Slice": (stepped, ruled("Slice", unlooked)),
    "softmax over channels": (attended, ruled("Softmax", elementwise.unary)),
    "Squeeze without axes": (squeezed, ruled("Squeeze", unlooked)),
    "sizes at run time": (halved, sizes_not_checked),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_oracle_sees_it(
    sketch: Any, pruning: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    build, plant = FAULTS[name]
    # Sound, the engine passes: so it is the fault that is seen. Means and norms are rounded; their
    # errors stay below 1e-5, and those of every fault here are far above.
    pruning.check(build(sketch()), tolerance=1e-5)
    plant(monkeypatch)
    with pytest.raises(NOTICED):
        pruning.check(build(sketch()), tolerance=1e-5)
