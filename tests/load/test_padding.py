"""auto_pad becomes explicit pads where the sizes are static, and the outputs stay the same."""

from __future__ import annotations

import pytest
from onnx import helper

from onnxcompress.load.canonical import canonicalise

MODES = ["SAME_UPPER", "SAME_LOWER", "VALID"]


def _conv(kit, x, mode, kernel=(3, 4), out=None, **attributes):
    channels = x[1]
    weight = kit.whole((channels + 2, channels, *kernel), seed=1)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", auto_pad=mode, **attributes)]
    outputs = [kit.value("y", out or [None] * len(x))]
    return kit.model(nodes, [kit.value("x", x)], outputs, {"w": weight})


def _pool(kit, x, mode, kernel=(3, 4), **attributes):
    nodes = [
        helper.make_node(
            "MaxPool", ["x"], ["y"], name="pool", auto_pad=mode, kernel_shape=kernel, **attributes
        )
    ]
    return kit.model(nodes, [kit.value("x", x)], [kit.value("y", [None] * len(x))])


def _attributes(model):
    return {a.name: helper.get_attribute_value(a) for a in model.graph.node[0].attribute}


def _assert_explicit(model):
    found = _attributes(model)
    assert "auto_pad" not in found
    return found["pads"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strides", [(1, 1), (2, 3), (3, 1)])
@pytest.mark.parametrize(
    ("size", "kernel"), [((7, 10), (3, 4)), ((6, 6), (3, 4)), ((4, 4), (4, 4)), ((5, 9), (1, 2))]
)
def test_convolution(kit, mode, strides, size, kernel):
    x = (2, 3, *size)
    model = _conv(kit, x, mode, kernel, strides=list(strides))
    canonical = canonicalise(model)
    assert "1 nodes given explicit pads" in canonical.notes
    _assert_explicit(canonical.model)
    kit.assert_same(model, canonical.model, {"x": kit.whole(x, seed=2)})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("size", [(7, 10), (6, 6), (3, 3)])
def test_max_pooling(kit, mode, strides, size):
    x = (3, 3, *size)
    model = _pool(kit, x, mode, strides=list(strides))
    result = canonicalise(model).model
    _assert_explicit(result)
    # Below zero everywhere: a padding that were taken for a value would win the maximum.
    kit.assert_same(model, result, {"x": kit.whole(x, seed=2) - 10})


@pytest.mark.parametrize(
    ("mode", "pads"),
    # In 9, kernel 3 spread to 5, stride 2: out 5, total 8 + 5 - 9 = 4. In 10, kernel 4 spread to
    # 10, stride 3: out 4, total 9 + 10 - 10 = 9, the odd one at the end, or at the beginning.
    [("SAME_UPPER", [2, 4, 2, 5]), ("SAME_LOWER", [2, 5, 2, 4]), ("VALID", [0, 0, 0, 0])],
)
def test_dilated_convolution(kit, mode, pads):
    x = (1, 3, 9, 10)
    model = _conv(kit, x, mode, (3, 4), strides=[2, 3], dilations=[2, 3])
    result = canonicalise(model).model
    assert _assert_explicit(result) == pads
    # ONNX Runtime refuses auto_pad SAME together with dilation: only the result can be run.
    (found,) = kit.run(result, {"x": kit.whole(x, seed=2)})
    assert found.shape[2:] == ((3, 1) if mode == "VALID" else (5, 4))


@pytest.mark.parametrize("mode", MODES)
def test_dilated_max_pooling_computes_the_same(kit, mode):
    x = (2, 3, 6, 7)
    model = _pool(kit, x, mode, (3, 3), strides=[2, 2], dilations=[2, 2])
    result = canonicalise(model).model
    kit.assert_same(model, result, {"x": kit.whole(x, seed=2) - 10})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dilations", [[1, 1], [2, 2]])
def test_max_pooling_that_rounds_up(kit, mode, dilations):
    x = (2, 3, 6, 7)
    model = _pool(kit, x, mode, (3, 3), strides=[2, 2], dilations=dilations, ceil_mode=1)
    result = canonicalise(model).model
    kit.assert_same(model, result, {"x": kit.whole(x, seed=2) - 10})


@pytest.mark.parametrize("x", [(2, 3, 11), (1, 2, 5, 4, 7)], ids=["1d", "3d"])
@pytest.mark.parametrize("mode", MODES)
def test_other_dimensions(kit, x, mode):
    model = _conv(kit, x, mode, (4, 3, 2)[: len(x) - 2], strides=[2, 3, 2][: len(x) - 2])
    result = canonicalise(model).model
    assert len(_assert_explicit(result)) == 2 * (len(x) - 2)
    kit.assert_same(model, result, {"x": kit.whole(x, seed=2)})


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("x", [(1, 3, "h", "w"), (1, 3, 6, "w")], ids=["both", "one"])
def test_kept_where_a_size_is_dynamic(kit, mode, x):
    model = _conv(kit, x, mode, strides=[2, 3])
    result = canonicalise(model).model
    assert _attributes(result)["auto_pad"] == mode.encode()
    for width in (7, 8, 9):
        kit.assert_same(model, result, {"x": kit.whole((1, 3, 6, width), seed=2)})


def test_valid_is_explicit_whatever_the_size(kit):
    model = _conv(kit, ("n", 3, "h", "w"), "VALID")
    result = canonicalise(model).model
    assert _assert_explicit(result) == [0, 0, 0, 0]
    kit.assert_same(model, result, {"x": kit.whole((2, 3, 6, 9), seed=2)})


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_a_dynamic_batch_does_not_matter(kit, mode):
    """Pads depend on height and width alone, and nearly every export has a dynamic batch."""
    model = _conv(kit, ("batch", 3, 6, 7), mode, strides=[2, 3])
    result = canonicalise(model).model
    kit.assert_same(model, result, {"x": kit.whole((2, 3, 6, 7), seed=2)})
    _assert_explicit(result)


def test_sizes_are_those_at_the_layer(kit):
    """Behind a stride the size is another, and a folded normalisation renames the tensor."""
    nodes = [
        helper.make_node(
            "Conv", ["x", "w"], ["a"], name="c1", auto_pad="SAME_UPPER", strides=[2, 1]
        ),
        kit.norm("norm", "a", "b"),
        helper.make_node("Identity", ["b"], ["c"], name="identity"),
        helper.make_node(
            "Conv", ["c", "v"], ["y"], name="c2", auto_pad="SAME_LOWER", strides=[2, 3]
        ),
    ]
    constants = {"w": kit.whole((4, 3, 3, 2), seed=1), "v": kit.whole((5, 4, 3, 4), seed=2)}
    constants |= kit.norm_constants("norm", 4, seed=3)
    x = (2, 3, 11, 7)
    model = kit.model(nodes, [kit.value("x", x)], [kit.value("y", [None] * 4)], constants)
    result = canonicalise(model, fold_constants=False).model
    assert kit.operators(result) == ["Conv", "Conv"]
    # 11 -> 6: total 10 + 3 - 11 = 2; then 6 -> 3: total 4 + 3 - 6 = 1; 7 -> 3: 6 + 4 - 7 = 3.
    pads = [helper.get_node_attr_value(n, "pads") for n in result.graph.node]
    assert pads == [[1, 0, 1, 1], [1, 2, 0, 1]]
    kit.assert_same(model, result, {"x": kit.whole(x, seed=4)})


@pytest.mark.parametrize("op", ["AveragePool", "ConvTranspose"])
@pytest.mark.parametrize("mode", MODES)
def test_other_operators_compute_the_same(kit, op, mode):
    x = (2, 3, 6, 7)
    if op == "AveragePool":
        more = {"kernel_shape": [2, 4], "strides": [2, 3]}
        nodes = [helper.make_node(op, ["x"], ["y"], name="pool", auto_pad=mode, **more)]
        constants = {}
    else:
        nodes = [helper.make_node(op, ["x", "w"], ["y"], name="t", auto_pad=mode, strides=[2, 3])]
        constants = {"w": kit.whole((3, 2, 2, 4), seed=1)}
    model = kit.model(nodes, [kit.value("x", x)], [kit.value("y", [None] * 4)], constants)
    result = canonicalise(model).model
    kit.assert_same(model, result, {"x": kit.whole(x, seed=2)})


def test_explicit_pads_and_notset_are_left_alone(kit):
    model = _conv(kit, (2, 3, 6, 7), "NOTSET", pads=[1, 0, 2, 3])
    canonical = canonicalise(model)
    assert canonical.model.graph.node[0].attribute == model.graph.node[0].attribute
    assert canonical.notes == ()
