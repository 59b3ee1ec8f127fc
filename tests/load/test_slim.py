"""onnxslim's help is welcome, its mistakes are survived."""

from __future__ import annotations

import numpy as np
import onnx
import onnxslim
import pytest
from onnx import helper

from onnxcompress.load.canonical import canonicalise
from onnxcompress.load.slim import slim


@pytest.fixture
def model(kit):
    """A Conv behind a Reshape whose shape is computed: work for onnxslim."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Reshape", ["x", "shape"], ["r"], name="reshape"),
        helper.make_node("Conv", ["r", "w"], ["y"], name="conv"),
    ]
    return kit.model(
        nodes,
        [kit.value("x", (2, 3, 6, 5))],
        [kit.value("y", (2, 4, 5, 4))],
        {"w": kit.whole((4, 3, 2, 2), seed=1)},
    )


FEEDS = {"x": np.arange(180, dtype=np.float32).reshape(2, 3, 6, 5) % 7 - 3}


def _check(kit, model, *, slimmed=False):
    before = model.SerializeToString()
    canonical = canonicalise(model)
    assert model.SerializeToString() == before
    kit.assert_same(model, canonical.model, FEEDS)
    assert canonical.slimmed is slimmed
    return canonical


def test_static_shape_arithmetic_is_folded(kit, model):
    canonical = _check(kit, model, slimmed=True)
    assert kit.operators(canonical.model) == ["Conv"]


def test_nothing_is_folded_on_request(kit, model):
    canonical = canonicalise(model, fold_constants=False)
    assert kit.operators(canonical.model) == ["Shape", "Reshape", "Conv"]
    assert not canonical.slimmed


@pytest.mark.parametrize(
    "error", [RuntimeError, KeyError, RecursionError, MemoryError, SystemError]
)
def test_an_error_is_survived(kit, model, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error("went\nwrong")

    monkeypatch.setattr(onnxslim, "slim", fail)
    canonical = _check(kit, model)
    assert kit.operators(canonical.model) == ["Shape", "Reshape", "Conv"]
    (note,) = canonical.notes
    assert note.startswith("constant folding skipped: onnxslim: ")
    assert "\n" not in note


def test_no_model_is_survived(kit, model, monkeypatch):
    monkeypatch.setattr(onnxslim, "slim", lambda *_, **__: None)
    canonical = _check(kit, model)
    assert canonical.notes == ("constant folding skipped: onnxslim gave no model",)


def _garbage_empty(given):
    del given.graph.node[:]
    return given


def _garbage_unsorted(given):
    given.graph.node.append(given.graph.node[0])
    del given.graph.node[0]
    return given


def _garbage_operator(given):
    given.graph.node[0].op_type = "Nonsense"
    return given


def _garbage_type(given):
    return "not a model"


def _garbage_dangling(given):
    given.graph.node[2].input[1] = "nowhere"
    return given


GARBAGE = [
    _garbage_empty,
    _garbage_unsorted,
    _garbage_operator,
    _garbage_type,
    _garbage_dangling,
]


@pytest.mark.parametrize("spoil", GARBAGE)
def test_garbage_is_survived(kit, model, monkeypatch, spoil):
    """An invalid result is no better than an error: the model itself is perfectly good."""
    monkeypatch.setattr(onnxslim, "slim", lambda given, **_: spoil(given))
    canonical = _check(kit, model)
    assert any(note.startswith("constant folding skipped") for note in canonical.notes)


def test_what_onnxslim_does_to_its_argument_does_not_matter(kit, model, monkeypatch):
    def spoil_and_fail(given, **kwargs):
        _garbage_empty(given)
        raise RuntimeError

    monkeypatch.setattr(onnxslim, "slim", spoil_and_fail)
    _check(kit, model)


def test_onnxslim_is_told_not_to_tie_weights(model, monkeypatch):
    seen = {}

    def spy(given, **kwargs):
        seen.update(kwargs)
        return given

    monkeypatch.setattr(onnxslim, "slim", spy)
    assert slim(model).changed
    assert set(seen["skip_optimizations"]) >= {"weight_tying", "subexpression_elimination"}


def test_large_weights_do_not_travel(kit, monkeypatch):
    """onnxslim sees a placeholder for a weight that only layers read, and the weight comes back."""
    seen = []
    real = onnxslim.slim

    def spy(given, **kwargs):
        seen.append(given.ByteSize())
        return real(given, **kwargs)

    monkeypatch.setattr(onnxslim, "slim", spy)
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Reshape", ["x", "shape"], ["r"], name="reshape"),
        helper.make_node("MatMul", ["r", "w"], ["y"], name="dense"),
    ]
    weights = {"w": kit.whole((100, 200), seed=1)}
    model = kit.model(nodes, [kit.value("x", (2, 100))], [kit.value("y", (2, 200))], weights)
    result = canonicalise(model).model
    assert seen
    assert seen[0] < 2000
    assert kit.operators(result) == ["MatMul"]
    kit.assert_same(model, result, {"x": kit.whole((2, 100), seed=2)})


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (helper.make_node("Odd", ["y0"], ["y"], name="odd", domain="d"), "custom domain 'd'"),
        (
            helper.make_node(
                "If",
                ["which"],
                ["y"],
                name="if",
                then_branch=helper.make_graph(
                    [helper.make_node("Neg", ["y0"], ["t"])],
                    "t",
                    [],
                    [helper.make_tensor_value_info("t", 1, (2, 4, 5, 4))],
                ),
                else_branch=helper.make_graph(
                    [helper.make_node("Abs", ["y0"], ["e"])],
                    "e",
                    [],
                    [helper.make_tensor_value_info("e", 1, (2, 4, 5, 4))],
                ),
            ),
            "(If) has a subgraph",
        ),
    ],
    ids=["custom domain", "subgraph"],
)
def test_graphs_it_mishandles_are_kept_from_it(kit, model, monkeypatch, node, reason):
    def fail(*args, **kwargs):
        raise AssertionError("onnxslim must not be called")

    monkeypatch.setattr(onnxslim, "slim", fail)
    model.graph.node[2].output[0] = "y0"
    model.graph.node.append(node)
    model.opset_import.append(helper.make_opsetid("d", 1))
    model.graph.input.append(kit.value("which", (), onnx.TensorProto.BOOL))
    canonical = canonicalise(model)
    assert reason in canonical.notes[0]
    assert canonical.notes[0].startswith("constant folding skipped: ")


@pytest.mark.parametrize("kind", ["value_float", "value_floats", "value_int", "value_ints"])
def test_scaled_weights_are_folded_whatever_holds_the_factor(kit, kind):
    """A Constant may hold its value as a plain attribute; folding must not change its type."""
    many = kind.endswith("s")
    floating = "float" in kind
    value = 2.0 if floating else 2
    dtype = np.float32 if floating else np.int64
    nodes = [
        helper.make_node("Constant", [], ["k"], name="k", **{kind: [value] if many else value}),
        helper.make_node("Mul", ["w0", "k"], ["w1"], name="mul"),
        helper.make_node("Cast", ["w1"], ["w"], name="cast", to=onnx.TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    weights = {"w0": kit.whole((4, 3, 2, 2), seed=1, dtype=dtype)}
    x = (2, 3, 6, 5)
    model = kit.model(nodes, [kit.value("x", x)], [kit.value("y", (2, 4, 5, 4))], weights)
    canonical = canonicalise(model)
    kit.assert_same(model, canonical.model, FEEDS)
    assert kit.operators(canonical.model)[-1] == "Conv"
