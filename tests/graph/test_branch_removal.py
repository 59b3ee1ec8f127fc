"""A branch removed equals the branch forced to a constant, and leaves next to nothing behind.

The oracle puts the constant where the branch entered the Add, with nothing but onnx. All weights,
inputs and constants are small whole numbers, so that results have to be equal bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.graph.branch_removal import remove_branch
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.infer import with_value_info

Array = np.ndarray
Means = Mapping[str, Sequence[float]]

BLOCK = """[{0}c1] {0}a = Conv <kernel_shape = [1, 1]> ({1}, w)
    [{0}r] {0}b = Relu ({0}a)
    [{0}c2] {0}c = Conv <kernel_shape = [1, 1]> ({0}b, w)
    [{0}] {0}s = Add ({0}c, {1}) """
WITH_RELU = BLOCK + "[{0}end] {0}o = Relu ({0}s) "
PROJECTED = """[{0}c1] {0}a = Conv <kernel_shape = [1, 1]> ({1}, w)
    [{0}r] {0}b = Relu ({0}a)
    [{0}c2] {0}c = Conv <kernel_shape = [1, 1]> ({0}b, w)
    [{0}p] {0}q = Conv <kernel_shape = [1, 1]> ({1}, w, bias)
    [{0}] {0}s = Add ({0}c, {0}q) [{0}end] {0}o = Relu ({0}s) """

ZERO, PLUS, MINUS, MIXED = (0, 0, 0, 0), (1, 3, 2, 4), (-2, -1, -4, -3), (2, -3, 0, -1)
MEANS = {"zero": ZERO, "positive": PLUS, "negative": MINUS, "mixed": MIXED}
SIZE = (4, 4, 5)
FLOAT = onnx.TensorProto.FLOAT


def network(
    kit: Any,
    body: str,
    last: str,
    *,
    outputs: Sequence[str] = (),
    dtype: Any = np.float32,
    opset: int = 17,
    bias: bool = True,
) -> onnx.ModelProto:
    """'stem' and the blocks of `body` over x [N, 3, 4, 5], then 'last' reads the tensor `last`.

    `outputs` are further outputs, besides y; 'stem' makes t, with or without a bias.
    """
    kind = "float16" if dtype == np.float16 else "float"
    more = "".join(f", {kind}[N, 4, 4, 5] {name}" for name in outputs)
    biased = ", bias" if bias else ""
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        net ({kind}[N, 3, 4, 5] x) => ({kind}[N, 4, 4, 5] y{more}) {{
        [stem] t = Conv <kernel_shape = [1, 1]> (x, w0{biased})
        {body}
        [last] y = Conv <kernel_shape = [1, 1]> ({last}, w) }}"""
    model = onnx.parser.parse_model(text)
    shapes = {"w0": (4, 3, 1, 1), "w": (4, 4, 1, 1), "bias": (4,)}
    for seed, (name, shape) in enumerate(shapes.items()):
        if name != "bias" or bias or "bias" in body:
            values = kit.whole(shape, seed=seed, limit=2, dtype=dtype)
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return with_value_info(model)


def removed(
    model: onnx.ModelProto, means: Means, *, index: int = 0
) -> tuple[onnx.ModelProto, Counter[str]]:
    """The model without these branches, and how many nodes of each kind it has."""
    editor = Editor(model)
    for add, mean in means.items():
        remove_branch(editor, add, index, np.array(mean, dtype=np.float64))
    result = with_value_info(editor.finish())
    onnx.checker.check_model(result, full_check=True)
    return result, Counter(node.op_type for node in result.graph.node)


def forced(model: onnx.ModelProto, means: Means, *, index: int = 0) -> onnx.ModelProto:
    """The model in which Adds read constants instead of branches."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weight = model.graph.initializer[0].data_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(weight)
    for node in copy.graph.node:
        if node.name in means:
            values = np.array(means[node.name], dtype=dtype).reshape(1, 4, 1, 1)
            node.input[index] = f"{node.name}_forced"
            copy.graph.initializer.append(onnx.numpy_helper.from_array(values, node.input[index]))
    return copy


def check(
    kit: Any, model: onnx.ModelProto, means: Means, *, index: int = 0
) -> tuple[onnx.ModelProto, Counter[str]]:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(model.graph.initializer[0].data_type)
    feeds = {"x": kit.whole((3, 3, 4, 5), seed=11, limit=2, dtype=dtype)}
    before = model.SerializeToString()
    result, counts = removed(model, means, index=index)
    assert model.SerializeToString() == before
    kit.assert_same(forced(model, means, index=index), result, feeds)
    return result, counts


def bias_of(model: onnx.ModelProto, name: str) -> Array | None:
    (node,) = (n for n in model.graph.node if n.name == name)
    if len(node.input) < 3:
        return None
    (values,) = (t for t in model.graph.initializer if t.name == node.input[2])
    return np.asarray(onnx.numpy_helper.to_array(values))


@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS.keys())
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("block", [BLOCK, WITH_RELU], ids=["linear", "ReLU behind"])
@pytest.mark.parametrize("relu", [True, False], ids=["ReLU in front", "layer in front"])
def test_one_branch(kit: Any, mean: Sequence[int], block: str, *, relu: bool, bias: bool) -> None:
    """The stream is made by a layer, with or without a ReLU: the bias takes the mean."""
    front = "[front] u = Relu (t) " if relu else ""
    end = "Ao" if block == WITH_RELU else "As"
    model = network(kit, front + block.format("A", "u" if relu else "t"), end, bias=bias)
    result, counts = check(kit, model, {"A": mean})
    # Nothing of the block is left but one element-wise node, where one is needed.
    floor = np.maximum(mean, 0) if block == WITH_RELU else np.array(mean)
    kinds = Counter({"Conv": 2})
    if relu:
        kinds["Max" if floor.any() else "Relu"] = 1
    elif block == WITH_RELU:
        kinds["Relu"] = 1
    assert counts == kinds
    old = bias_of(model, "stem")
    moved = bias_of(result, "stem")
    start = np.zeros(4) if old is None else old
    assert np.array_equal(start if moved is None else moved, start + mean)


@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS.keys())
@pytest.mark.parametrize("index", [0, 1])
def test_either_operand(kit: Any, mean: Sequence[int], index: int) -> None:
    block = WITH_RELU if index == 0 else WITH_RELU.replace("Add ({0}c, {1})", "Add ({1}, {0}c)")
    model = network(kit, "[front] u = Relu (t) " + block.format("A", "u"), "Ao")
    check(kit, model, {"A": mean}, index=index)


@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS.keys())
def test_first_of_a_stage(kit: Any, mean: Sequence[int]) -> None:
    """The projection's bias takes the mean; nothing but the ReLU behind the sum is left."""
    model = network(kit, "[front] u = Relu (t) " + PROJECTED.format("A", "u"), "Ao")
    result, counts = check(kit, model, {"A": mean})
    assert counts == {"Conv": 3, "Relu": 2}
    assert np.array_equal(bias_of(result, "Ap"), bias_of(model, "Ap") + np.array(mean))


SEQUENCES = {
    "negative, positive": (MINUS, PLUS),
    "positive, negative": (PLUS, MINUS),
    "mixed, mixed": (MIXED, MIXED[::-1]),
    "zero, mixed": (ZERO, MIXED),
    "mixed, zero": (MIXED, ZERO),
    "negative, zero": (MINUS, ZERO),
    "cancelling": (MIXED, tuple(-m for m in MIXED)),
}


@pytest.mark.parametrize("means", SEQUENCES.values(), ids=SEQUENCES.keys())
@pytest.mark.parametrize("block", [BLOCK, WITH_RELU], ids=["linear", "ReLU behind"])
@pytest.mark.parametrize("first", [True, False], ids=["from a ReLU", "from a layer"])
def test_consecutive_branches(
    kit: Any, means: tuple[Sequence[int], ...], block: str, *, first: bool
) -> None:
    """Two in a row, behind a ReLU or a layer: one bias, and at most one Max or ReLU."""
    end = "o" if block == WITH_RELU else "s"
    start = "u" if first else "t"
    body = "[front] u = Relu (t) " if first else ""
    body += block.format("A", start) + block.format("B", f"A{end}")
    model = network(kit, body, f"B{end}")
    result, counts = check(kit, model, {"A": means[0], "B": means[1]})
    assert counts["Conv"] == 2
    assert counts["Add"] == 0
    assert counts["Max"] + counts["Relu"] <= 1
    assert set(counts) <= {"Conv", "Max", "Relu"}
    total = bias_of(model, "stem") + np.sum(means, axis=0)
    assert np.array_equal(bias_of(result, "stem"), total)


def test_three_in_a_stage(kit: Any) -> None:
    """The first of a stage and both behind it."""
    body = PROJECTED.format("A", "t") + WITH_RELU.format("B", "Ao") + WITH_RELU.format("C", "Bo")
    model = network(kit, body, "Co")
    _, counts = check(kit, model, {"A": MINUS, "B": MIXED, "C": PLUS})
    assert counts == {"Conv": 3, "Max": 1}


@pytest.mark.parametrize("keep", ["A", "B", "C"])
@pytest.mark.parametrize("block", [BLOCK, WITH_RELU], ids=["linear", "ReLU behind"])
def test_around_a_branch_that_stays(kit: Any, keep: str, block: str) -> None:
    end = "o" if block == WITH_RELU else "s"
    body = block.format("A", "t") + block.format("B", f"A{end}") + block.format("C", f"B{end}")
    model = network(kit, body, f"C{end}")
    means = {name: MIXED for name in "ABC" if name != keep}
    _, counts = check(kit, model, means)
    # The stream that a block reads too cannot be moved into its summands: at most one node more.
    assert counts["Conv"] == 4
    assert counts["Add"] <= 2
    assert counts["Max"] <= 1


@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS.keys())
@pytest.mark.parametrize("outputs", [["u"], ["t"], ["t", "u"]], ids="-".join)
def test_the_stream_is_seen(kit: Any, mean: Sequence[int], outputs: list[str]) -> None:
    """An output of the graph in front of the block keeps its values."""
    model = network(kit, "[f] u = Relu (t) " + WITH_RELU.format("A", "u"), "Ao", outputs=outputs)
    _, counts = check(kit, model, {"A": mean})
    assert counts["Conv"] == 2
    assert counts["Add"] + counts["Max"] <= 1


@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS.keys())
@pytest.mark.parametrize("block", [BLOCK, WITH_RELU], ids=["linear", "ReLU behind"])
@pytest.mark.parametrize("relu", [True, False], ids=["from a ReLU", "from a layer"])
def test_the_end_is_seen(kit: Any, mean: Sequence[int], block: str, *, relu: bool) -> None:
    """The sum, or the ReLU behind it, is an output, and keeps its name."""
    end = "Ao" if block == WITH_RELU else "As"
    body = ("[f] u = Relu (t) " if relu else "") + block.format("A", "u" if relu else "t")
    model = network(kit, body, end, outputs=[end])
    result, _ = check(kit, model, {"A": mean})
    assert [output.name for output in result.graph.output] == ["y", end]


@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS.keys())
def test_the_sum_is_read_twice(kit: Any, mean: Sequence[int]) -> None:
    """By the ReLU behind it and by a pre-activation shortcut past the ReLU."""
    body = "[f] u = Relu (t) " + WITH_RELU.format("A", "u") + "[side] v = Add (Ao, As) "
    model = network(kit, body, "v")
    check(kit, model, {"A": mean})


@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS.keys())
@pytest.mark.parametrize(
    "front",
    ["[f] u = Sigmoid (t) ", "[f] u = MaxPool <kernel_shape = [1, 1]> (t) ", "[f] u = Max (t, t) "],
    ids=["Sigmoid", "MaxPool", "Max of two"],
)
def test_no_layer_takes_the_mean(kit: Any, mean: Sequence[int], front: str) -> None:
    """Then the Add stays, with a constant."""
    if "Sigmoid" in front:
        # Halves are exact; the rest of Sigmoid is compared at the same values on both sides.
        front = "[f] u = HardSigmoid <alpha = 0.25, beta = 0.5> (t) "
    model = network(kit, front + WITH_RELU.format("A", "u"), "Ao")
    _, counts = check(kit, model, {"A": mean})
    assert counts["Conv"] == 2
    assert counts["Add"] <= 1


@pytest.mark.parametrize("mean", [PLUS, MIXED], ids=["positive", "mixed"])
def test_a_branch_of_the_graph_input(kit: Any, mean: Sequence[int]) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 4, 4, 5] x) => (float[N, 4, 4, 5] y) {
        [c1] a = Conv <kernel_shape = [1, 1]> (x, w)
        [sum] s = Add (a, x) [end] y = Relu (s) }"""
    model = onnx.parser.parse_model(text)
    weight = onnx.numpy_helper.from_array(kit.whole((4, 4, 1, 1), seed=3), "w")
    model.graph.initializer.append(weight)
    result, counts = removed(with_value_info(model), {"sum": mean})
    feeds = {"x": kit.whole((2, 4, 4, 5), seed=4)}
    kit.assert_same(forced(model, {"sum": mean}), result, feeds)
    assert counts == {"Add": 1, "Relu": 1}


@pytest.mark.parametrize("mean", [MINUS, MIXED], ids=["negative", "mixed"])
@pytest.mark.parametrize("opset", [17, 11])
def test_half_precision(kit: Any, mean: Sequence[int], opset: int) -> None:
    body = "[f] u = Relu (t) " + WITH_RELU.format("A", "u")
    model = network(kit, body, "Ao", dtype=np.float16, opset=opset)
    result, _ = check(kit, model, {"A": mean})
    assert {t.data_type for t in result.graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_an_old_opset(kit: Any) -> None:
    """Max broadcasts since opset 8 only; the result has to run all the same."""
    body = "[f] u = Relu (t) " + WITH_RELU.format("A", "u")
    check(kit, network(kit, body, "Ao", opset=7), {"A": MIXED})


def test_the_oracle_sees_a_wrong_floor(kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted faults: the ReLU in between forgotten, the bias forgotten."""
    place = "onnxcompress.graph.branch_removal."
    monkeypatch.setattr(place + "_become_maximum", lambda *_: None)
    with pytest.raises(AssertionError):
        test_one_branch(kit, MINUS, BLOCK, relu=True, bias=True)
    monkeypatch.undo()
    monkeypatch.setattr(place + "apply_edits", lambda *_: None)
    with pytest.raises(AssertionError):
        test_one_branch(kit, PLUS, BLOCK, relu=False, bias=True)
