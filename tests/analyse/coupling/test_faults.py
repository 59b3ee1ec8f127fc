"""Faults planted in the engine, each of which the oracle has to notice: it has teeth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from onnxcompress.analyse.coupling.channels import Channels
from onnxcompress.analyse.coupling.rules.table import RULES
from onnxcompress.errors import OnnxCompressError
from onnxcompress.plan.channels import plan_cuts
from onnxcompress.plan.channels.situation import Situation

ENGINE = "onnxcompress.analyse.coupling"
EDITS = "onnxcompress.plan.channels"
NOTICED = (
    AssertionError,
    OnnxCompressError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.RuntimeException,
)


def _nothing(*_: Any, **__: Any) -> Any:
    return iter(())


def _no(*_: Any) -> bool:
    return False


def _passes_through(node: onnx.NodeProto, tracer: Any) -> None:
    """The rule of an operator that would leave ids and values as they are."""
    tracer.put(node, tracer.flow(node.input[0]))


def _wrong_ones(at: Situation, tensor: str) -> np.ndarray:
    """As many indices as stay, but the first ones."""
    return np.arange(len(at.staying[tensor]))


def _rule(operator: str) -> Callable[[Any], None]:
    return lambda patch: patch.setitem(RULES, operator, _passes_through)


def _no_edit(operator: str) -> Callable[[Any], None]:
    return lambda patch: patch.setitem(plan_cuts._RULES, operator, _nothing)


def _set(target: str, value: Any) -> Callable[[Any], None]:
    return lambda patch: patch.setattr(target, value)


def _residual(s: Any, a: str) -> str:
    return str(s.add("Add", a, s.conv(a, 6, 6, name="branch")))


def _grouped(s: Any, a: str) -> str:
    return str(s.conv(a, 6, 6, 3, name="grouped", group=3, pads=[1] * 4))


def _normalised(s: Any, a: str) -> str:
    scale, zero = s.constant(np.arange(6) % 3 + 1.0), s.constant(np.zeros(6))
    bias, variance = s.constant(np.arange(6) % 4 + 1.0), s.constant(np.ones(6))
    a = s.add("BatchNormalization", s.add("Relu", a), scale, bias, zero, variance)
    return str(s.add("Relu", a))


def _quantised(s: Any, a: str) -> str:
    step, point = s.constant(2.0 ** (np.arange(6) % 3)), s.constant(np.zeros(6), dtype=np.int8)
    a = s.add("QuantizeLinear", a, step, point, axis=1)
    return str(s.add("DequantizeLinear", a, step, point, axis=1))


def _shift(s: Any, a: str) -> str:
    return str(s.add("Add", a, s.whole([6, 1, 1], low=1, high=3)))


FAULTS: dict[str, tuple[Callable[[Any, str], str], Callable[[Any], None], int]] = {
    # what is wrong: (the construct that shows it, how it is planted, kernel of the last layer)
    "tensors that meet are not united": (
        _residual,
        lambda patch: patch.setattr(Channels, "unite", _nothing),
        1,
    ),
    "blocked channels are removed": (
        lambda s, a: str(s.add("LRN", a, size=3)),
        lambda patch: patch.setattr(Channels, "block", _nothing),
        1,
    ),
    "constants are not absorbed": (_shift, _set(f"{EDITS}.layers._leaves", _no), 1),
    "constants are absorbed at borders": (
        _shift,
        _set(f"{ENGINE}.rules.layers._has_padding", lambda _: False),
        3,
    ),
    "a sigmoid leaves zero": (lambda s, a: str(s.add("Sigmoid", a)), _rule("Sigmoid"), 1),
    "batch normalisation leaves zero": (_normalised, _rule("BatchNormalization"), 1),
    "neighbouring channels do not matter": (
        lambda s, a: str(s.add("LRN", a, size=3)),
        _rule("LRN"),
        1,
    ),
    "softmax works channel by channel": (
        lambda s, a: str(s.add("Softmax", a, axis=1)),
        _rule("Softmax"),
        1,
    ),
    "biases are not cut": (_residual, _set(f"{EDITS}.layers._bias", _nothing), 1),
    "slopes are not cut": (
        lambda s, a: str(s.add("PRelu", a, s.whole([6, 1, 1]))),
        _no_edit("PRelu"),
        1,
    ),
    "constant operands are not cut": (_shift, _no_edit("Add"), 1),
    "normalisation is not cut": (_normalised, _no_edit("BatchNormalization"), 1),
    "scales are not cut": (_quantised, _no_edit("QuantizeLinear"), 1),
    "other channels are removed": (
        lambda s, a: str(s.add("Relu", a)),
        lambda patch: patch.setattr(Situation, "kept", _wrong_ones),
        1,
    ),
    "groups are left undecided": (_grouped, _set(f"{ENGINE}.engine.decide", _nothing), 1),
    "the number of groups stays": (_grouped, _no_edit("Conv"), 1),
    "outputs are not protected": (
        lambda s, a: str(s.add("Relu", a)),
        _set(f"{ENGINE}.engine._block_what_is_visible", _nothing),
        1,
    ),
}


def _model(sketch: Any, middle: Callable[[Any, str], str], kernel: int) -> onnx.ModelProto:
    s = sketch()
    a = middle(s, s.conv(s.input([2, 3, 5, 7]), 3, 6, name="first"))
    return s.model(s.conv(a, 6, 4, kernel, name="second", pads=[kernel // 2] * 4))


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_noticed(
    sketch: Any, pruning: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    middle, plant, kernel = FAULTS[fault]
    model = _model(sketch, middle, kernel)
    tolerance = 6 * 2.0**-20
    sound = pruning.case(model)
    pruning.assert_exact(sound, tolerance=tolerance)
    with monkeypatch.context() as patch:
        plant(patch)
        with pytest.raises(NOTICED):
            pruning.check(model, tolerance=tolerance)


def test_the_oracle_notices_a_small_change_of_one_weight(
    sketch: Any, pruning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One more in one weight of one result: nothing but the comparison of outputs can see it.
    model = _model(sketch, lambda s, a: str(s.add("Relu", a)), 3)
    case = pruning.case(model)
    pruning.assert_exact(case)
    oracle = type(pruning).assert_exact.__globals__
    right = oracle["remove_channels"]

    def wrong(*given: Any) -> onnx.ModelProto:
        result = right(*given)
        if given[2].get("first"):
            weight = max(result.graph.initializer, key=lambda tensor: len(tensor.raw_data))
            values = onnx.numpy_helper.to_array(weight).copy()
            values.flat[-1] += 1
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return result

    monkeypatch.setitem(oracle, "remove_channels", wrong)
    with pytest.raises(AssertionError, match="removed"):
        pruning.assert_exact(case)
