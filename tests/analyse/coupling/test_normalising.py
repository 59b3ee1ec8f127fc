"""Normalisations that survive the canonical form: parameters are cut, statistics stay right."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.load import canonical

# Statistics of a few dozen numbers, a square root and a sum: fewer than 200 roundings of 2**-24,
# whose order is the same on both sides but for the last sum.
ROUNDING = 200 * 2.0**-24


@pytest.mark.parametrize("opset", [9, 18, 22])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("silent_bias", [False, True])
def test_instance_norm(
    sketch: Any, pruning: Any, extents: Any, opset: int, *, padded: bool, silent_bias: bool
) -> None:
    """A channel that is zero becomes its bias."""
    s, c = sketch(opset), extents.inner
    scale = s.constant(1.0 + np.arange(c) % 3)
    bias = s.constant(np.zeros(c) if silent_bias else np.arange(c) % 3 - 1.0)
    model = s.sandwich(
        extents,
        lambda a: s.add("InstanceNormalization", a, scale, bias, name="norm"),
        kernel=3,
        pads=[int(padded)] * 4,
    )
    # The bias of channels 1, 4, 7, ... is zero: those may go in front of a border.
    quiet = c if silent_bias or not padded else len(range(1, c, 3))
    pruning.check(model, widths={"first": quiet}, tolerance=ROUNDING)


def _group_norm(s: Any, a: str, c: int, groups: int, bias: Any) -> str:
    size = c if s.opset >= 21 else groups
    scale, shift = s.constant(1.0 + np.arange(size) % 3), s.constant(np.resize(bias, size))
    return str(s.add("GroupNormalization", a, scale, shift, name="norm", num_groups=groups))


@pytest.mark.parametrize("opset", [21, 23])
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_group_norm(sketch: Any, pruning: Any, opset: int, groups: int, *, padded: bool) -> None:
    """Whole groups go; a group that is zero leaves its biases."""
    for shape, inner in (([2, 3, 5, 7], 12), ([4, 4, 4, 4], 4)):
        s = sketch(opset)
        a = s.conv(s.input(shape), shape[1], inner, name="first")
        b = _group_norm(s, a, inner, groups, 0.0 if padded else np.arange(5.0) - 1.0)
        pads = [int(padded)] * 4
        y = s.conv(b, inner, 5, 3, name="second", pads=pads)
        case = pruning.check(s.model(y), widths={"first": groups}, tolerance=ROUNDING)
        result = pruning.remove(case, {"first": [0]})
        norm = next(node for node in result.graph.node if node.name == "norm")
        assert norm.attribute[0].i == groups - 1
        sizes = {t.name: list(t.dims) for t in result.graph.initializer}
        left = inner - inner // groups
        assert [sizes[name] for name in norm.input[1:]] == [[left], [left]]


def test_group_norm_with_parameters_per_group(sketch: Any, pruning: Any, monkeypatch: Any) -> None:
    """Opset 18 has one parameter per group; onnx calls that version deprecated, and refuses it."""
    s = sketch(18)
    a = s.conv(s.input([2, 3, 5, 7]), 3, 12, name="first")
    y = s.conv(_group_norm(s, a, 12, 4, np.arange(4.0) - 1.0), 12, 5, name="second")
    model = s.model(y, **{y: [2, 5, 5, 7]})
    monkeypatch.setattr(canonical, "check_structure", lambda *_, **__: None)
    monkeypatch.setattr(onnx.checker, "check_model", lambda *_, **__: None)
    case = pruning.check(model, widths={"first": 4}, tolerance=ROUNDING)
    result = pruning.remove(case, {"first": [1, 2]})
    norm = next(node for node in result.graph.node if node.name == "norm")
    sizes = {t.name: list(t.dims) for t in result.graph.initializer}
    assert [sizes[name] for name in norm.input[1:]] == [[2], [2]]


def test_group_norm_of_one_group_normalises_all_channels_together(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    s = sketch(21)
    model = s.sandwich(extents, lambda a: _group_norm(s, a, extents.inner, 1, 0.0))
    pruning.check(model, widths={}, refused={"first": "nothing would be left"})


def test_group_norm_of_one_channel_each(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(21), extents.inner
    model = s.sandwich(extents, lambda a: _group_norm(s, a, c, c, np.arange(c)))
    pruning.check(model, widths={"first": c}, tolerance=ROUNDING)


def test_group_norm_of_shifted_channels(sketch: Any, pruning: Any) -> None:
    # A constant per channel is no constant per group: its statistics are not zero.
    s = sketch(21)
    a = s.conv(s.input([2, 3, 5, 7]), 3, 8, name="first")
    a = s.add("Add", a, s.constant(np.arange(8.0).reshape(8, 1, 1)))
    y = s.conv(_group_norm(s, a, 8, 4, 0.0), 8, 5, name="second")
    model = s.model(y)
    pruning.check(model, widths={}, refused={"first": ["Conv 'second'", "not a constant"]})


def test_group_norm_over_a_concat(sketch: Any, pruning: Any) -> None:
    # Groups of 3 over 5 + 4 channels: the middle group ties both parts.
    s = sketch(21)
    x = s.input([2, 3, 5, 7])
    parts = [s.conv(x, 3, 5, name="one"), s.conv(x, 3, 4, name="other")]
    b = _group_norm(s, s.add("Concat", *parts, axis=1), 9, 3, 0.0)
    y = s.conv(b, 9, 5, name="second")
    pruning.check(s.model(y), widths={"one": 3}, tolerance=ROUNDING)


@pytest.mark.parametrize("opset", [17, 23])
@pytest.mark.parametrize("axis", [2, 3, -1, -2])
def test_layer_norm_over_space(
    sketch: Any, pruning: Any, extents: Any, axis: int, opset: int
) -> None:
    """Channel by channel: scale and bias lie along space, and zero becomes the bias."""
    s, c = sketch(opset), extents.inner
    shape = [extents.batch, c, extents.height, extents.width][axis:]

    def middle(a: str) -> str:
        scale, bias = s.whole(shape, low=1, high=3), s.whole(shape)
        return str(s.add("LayerNormalization", a, scale, bias, name="norm", axis=axis))

    model = s.sandwich(extents, middle)
    case = pruning.case(model)
    if case.widths:
        pruning.check(model, widths={"first": c}, tolerance=ROUNDING)
    else:
        # A bias that changes along space is no constant.
        pruning.check(model, widths={}, refused={"first": ["Conv 'second'", "not a constant"]})


def test_layer_norm_over_space_behind_which_nothing_is_asked(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    # Multiplied by zero channels of the same group, whatever is left does not matter.
    s, c = sketch(), extents.inner

    def middle(a: str) -> str:
        scale = s.whole([extents.width], low=1, high=3)
        norm = s.add("LayerNormalization", a, scale, name="norm", axis=-1)
        return str(s.add("Mul", norm, a))

    pruning.check(s.sandwich(extents, middle), widths={"first": c}, tolerance=ROUNDING)


@pytest.mark.parametrize("axis", [0, 1, -3])
def test_layer_norm_over_channels(sketch: Any, pruning: Any, extents: Any, axis: int) -> None:
    s, c = sketch(), extents.inner
    shape = [extents.batch, c, extents.height, extents.width][axis:]

    def middle(a: str) -> str:
        return str(s.add("LayerNormalization", a, s.whole(shape), name="norm", axis=axis))

    pruning.check(
        s.sandwich(extents, middle),
        widths={},
        refused={"first": ["LayerNormalization 'norm'", "works across channels"]},
    )


def test_layer_norm_with_channels_last(sketch: Any, pruning: Any, extents: Any) -> None:
    # ConvNeXt: channels go last, are normalised together, and come back.
    s, c = sketch(), extents.inner

    def middle(a: str) -> str:
        a = s.add("Transpose", a, perm=[0, 2, 3, 1])
        a = s.add("LayerNormalization", a, s.whole([c]), s.whole([c]), name="norm", axis=-1)
        return str(s.add("Transpose", a, perm=[0, 3, 1, 2]))

    pruning.check(
        s.sandwich(extents, middle),
        widths={},
        refused={"first": ["LayerNormalization 'norm'", "works across channels"]},
    )


def test_hand_written_layer_norm(sketch: Any, pruning: Any, extents: Any) -> None:
    s = sketch()

    def middle(a: str) -> str:
        a = s.add("Sub", a, s.add("ReduceMean", a, name="mean", axes=[1]))
        return str(s.add("Relu", a))

    pruning.check(
        s.sandwich(extents, middle),
        widths={},
        refused={"first": ["ReduceMean 'mean'", "works across channels"]},
    )


def test_hand_written_instance_norm(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(), extents.inner

    def middle(a: str) -> str:
        a = s.add("Sub", a, s.add("ReduceMean", a, axes=[2, 3]))
        square = s.add("ReduceMean", s.add("Mul", a, a), axes=[2, 3])
        a = s.add("Div", a, s.add("Sqrt", s.add("Add", square, s.constant(0.5))))
        return str(s.add("Mul", a, s.whole([c, 1, 1])))

    model = s.sandwich(extents, middle, kernel=3, pads=[1] * 4)
    pruning.check(model, widths={"first": c}, tolerance=ROUNDING)


def test_local_response_norm(sketch: Any, pruning: Any, extents: Any) -> None:
    s = sketch()
    model = s.sandwich(extents, lambda a: s.add("LRN", a, name="norm", size=3))
    pruning.check(model, widths={}, refused={"first": ["LRN 'norm'", "works across channels"]})


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("MeanVarianceNormalization", {"axes": [0, 2, 3]}),
        ("MeanVarianceNormalization", {"axes": [0, 1, 2, 3]}),
        ("LpNormalization", {"axis": 1}),
    ],
)
def test_normalisations_without_a_rule(
    sketch: Any, pruning: Any, extents: Any, operator: str, attributes: Any
) -> None:
    s = sketch()
    model = s.sandwich(extents, lambda a: s.add(operator, a, name="norm", **attributes))
    pruning.check(
        model, widths={}, refused={"first": [f"{operator} 'norm'", "no operator with a known rule"]}
    )


def test_batch_norm_with_computed_parameters(sketch: Any, pruning: Any, extents: Any) -> None:
    s, c = sketch(15), extents.inner
    scale = s.input([c], "scale")

    def middle(a: str) -> str:
        more = [s.whole([c]), s.whole([c]), s.constant(np.ones(c))]
        return str(s.add("BatchNormalization", a, scale, *more, name="norm"))

    pruning.check(
        s.sandwich(extents, middle),
        widths={},
        refused={"first": ["BatchNormalization 'norm'", "'scale'"]},
    )
