"""Whether two models compute the same: close ones pass, wrong ones do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxslim
import pytest
from onnx import helper, numpy_helper

from onnxcompress.config import Config
from onnxcompress.load.trust import computes_the_same
from onnxcompress.pipeline import prepare
from onnxcompress.plan.contract import Pass
from onnxcompress.progress import Silent
from onnxcompress.runtime import Execution

ONE = Execution(threads=1)


def _model(kit, weight, x=(2, 3, 6, 5), operators=("Relu",)):
    nodes = [helper.make_node("Conv", ["x", "w"], ["t0"], name="conv")]
    for i, op in enumerate(operators):
        nodes.append(helper.make_node(op, [f"t{i}"], [f"t{i + 1}"], name=f"n{i}"))
    nodes[-1].output[0] = "y"
    return kit.model(nodes, [kit.value("x", x)], [kit.value("y", [None] * 4)], {"w": weight})


@pytest.fixture
def weight(kit):
    return np.random.default_rng(1).standard_normal((4, 3, 2, 2)).astype(np.float32)


@pytest.fixture
def feeds():
    return {"x": np.random.default_rng(2).standard_normal((2, 3, 6, 5)).astype(np.float32)}


def test_the_same_model_passes(kit, weight, feeds):
    assert computes_the_same(_model(kit, weight), _model(kit, weight), feeds, ONE)


def test_rounding_passes(kit, weight, feeds):
    close = weight * np.float32(1 + 1e-5)
    assert computes_the_same(_model(kit, weight), _model(kit, close), feeds, ONE)


def test_one_percent_does_not_pass(kit, weight, feeds):
    off = _model(kit, weight * np.float32(1.01))
    assert not computes_the_same(_model(kit, weight), off, feeds, ONE)


def test_another_type_does_not_pass(kit, weight, feeds):
    cast = _model(kit, weight)
    cast.graph.node[-1].output[0] = "before"
    cast.graph.node.append(helper.make_node("Cast", ["before"], ["y"], name="cast", to=11))
    cast.graph.output[0].type.tensor_type.elem_type = 11
    assert not computes_the_same(_model(kit, weight), cast, feeds, ONE)


def test_one_wrong_weight_does_not_pass(kit, weight, feeds):
    wrong = weight.copy()
    wrong[1, 2, 0, 1] += 1
    assert not computes_the_same(_model(kit, weight), _model(kit, wrong), feeds, ONE)


def test_a_missing_operator_does_not_pass(kit, weight, feeds):
    with_abs = _model(kit, weight, operators=("Relu", "Neg"))
    assert not computes_the_same(_model(kit, weight), with_abs, feeds, ONE)


def test_another_shape_does_not_pass(kit, weight, feeds):
    assert not computes_the_same(_model(kit, weight), _model(kit, weight[:3]), feeds, ONE)


def test_a_model_that_does_not_load_does_not_pass(kit, weight, feeds):
    broken = _model(kit, weight)
    broken.graph.node[0].input[1] = "nowhere"
    assert not computes_the_same(_model(kit, weight), broken, feeds, ONE)


def test_a_model_that_does_not_run_does_not_pass(kit, weight, feeds):
    broken = _model(kit, weight)
    broken.graph.input[0].CopyFrom(kit.value("x", (2, 3, 6, 4)))
    assert not computes_the_same(_model(kit, weight), broken, feeds, ONE)


def test_outputs_that_are_almost_zero_are_compared_by_their_size(kit, weight, feeds):
    """1e-9 against 2e-9 is rounding; 1e-9 against 1 is not."""
    tiny = _model(kit, weight * np.float32(1e-9))
    assert computes_the_same(tiny, _model(kit, weight * np.float32(2e-9)), feeds, ONE)
    assert not computes_the_same(tiny, _model(kit, weight), feeds, ONE)


@pytest.mark.parametrize("dtype", [np.int64, np.bool_])
def test_whole_numbers_must_be_equal(kit, dtype):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = np.array([[1, 0, 1], [0, 0, 1]]).astype(dtype)
    other = values.copy()
    other[1, 1] = 1

    def gather(table):
        nodes = [helper.make_node("Gather", ["k", "i"], ["y"], name="gather")]
        inputs = [kit.value("i", (2,), 7)]
        return kit.model(nodes, inputs, [kit.value("y", (2, 3), kind)], {"k": table})

    feeds = {"i": np.array([1, 0])}
    assert computes_the_same(gather(values), gather(values), feeds, ONE)
    assert not computes_the_same(gather(values), gather(other), feeds, ONE)


@pytest.mark.parametrize("expected", [0.0, np.inf, -np.inf, np.nan], ids=str)
@pytest.mark.parametrize("found", [0.0, np.inf, -np.inf, np.nan], ids=str)
def test_infinities_and_nan_must_agree(kit, expected, found):
    def add(value):
        nodes = [helper.make_node("Add", ["x", "k"], ["y"], name="add")]
        constants = {"k": np.array([value, 0, 0], np.float32)}
        return kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))], constants)

    feeds = {"x": np.ones((2, 3), np.float32)}
    same = bool(np.array_equal([expected], [found], equal_nan=True))
    assert computes_the_same(add(expected), add(found), feeds, ONE) is same


@pytest.fixture
def foldable(kit, weight):
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Reshape", ["x", "shape"], ["r"], name="reshape"),
        helper.make_node("Conv", ["r", "w"], ["y"], name="conv"),
    ]
    return kit.model(
        nodes, [kit.value("x", (2, 3, 6, 5))], [kit.value("y", (2, 4, 5, 4))], {"w": weight}
    )


class Idle(Pass[Any]):
    """A job must have a pass; this one does nothing."""

    name = "idle"
    needs = frozenset()

    def sites(self, facts):
        return iter(())

    def candidates(self, site, facts):
        return ()

    def rewrite(self, candidate, edit):
        raise NotImplementedError


def _prepared(model):
    return prepare(model, Config(passes=(Idle(),), execution=ONE), Silent()).canonical


def test_a_sound_result_of_onnxslim_is_kept(kit, foldable):
    canonical = _prepared(foldable)
    assert canonical.slimmed
    assert kit.operators(canonical.model) == ["Conv"]


def test_a_valid_but_wrong_result_of_onnxslim_is_thrown_away(kit, foldable, feeds, monkeypatch):
    real = onnxslim.slim

    def spoil(given, **kwargs):
        slimmed = real(given, **kwargs)
        (tensor,) = (t for t in slimmed.graph.initializer if t.name == "w")
        wrong = numpy_helper.to_array(tensor)[..., ::-1].copy()
        tensor.CopyFrom(numpy_helper.from_array(wrong, "w"))
        return slimmed

    monkeypatch.setattr(onnxslim, "slim", spoil)
    canonical = _prepared(foldable)
    assert not canonical.slimmed
    assert "constant folding skipped: onnxslim changed the outputs" in canonical.notes
    assert kit.operators(canonical.model) == ["Shape", "Reshape", "Conv"]
    kit.assert_same(foldable, canonical.model, feeds)
