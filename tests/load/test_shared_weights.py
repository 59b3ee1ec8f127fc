"""Shared initializers are untied, so that changing one reader's copy cannot change another's."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from onnx import helper, numpy_helper

from onnxcompress.load.canonical import canonicalise


@pytest.fixture(params=[((2, 3, 6, 5), 3, (2, 1)), ((3, 3, 3, 3), 3, (3, 3))])
def extents(request):
    return request.param


def _readers(model):
    return Counter(name for node in model.graph.node for name in node.input if name)


def _conv(source, target, weight, bias, name):
    return helper.make_node(
        "Conv", [source, weight, bias], [target], name=name, auto_pad="NOTSET", pads=[1, 1, 1, 1]
    )


def _assert_untied(model, originals):
    """Every initializer has one reader, and the copies have the originals' values."""
    readers = _readers(model)
    names = [t.name for t in model.graph.initializer]
    assert len(names) == len(set(names))
    assert all(readers[name] == 1 for name in names), readers
    for tensor in model.graph.initializer:
        stem = tensor.name.split("_untied")[0]
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), originals[stem])


@pytest.mark.parametrize("slimmed", [False, True], ids=["plain", "after onnxslim"])
def test_weights_and_biases_are_untied(kit, extents, slimmed):
    x, channels, kernel = extents
    constants = {
        "w": kit.whole((channels, channels, *kernel), seed=1),
        "b": np.arange(1, channels + 1, dtype=np.float32),
    }
    nodes = [
        _conv("x", "a", "w", "b", "c1"),
        _conv("a", "d", "w", "b", "c2"),
        _conv("d", "e", "w", "b", "c3"),
    ]
    if slimmed:
        # Shape and Reshape are work for onnxslim, which would tie equal weights together.
        nodes.append(helper.make_node("Shape", ["e"], ["shape"], name="shape"))
        nodes.append(helper.make_node("Reshape", ["e", "shape"], ["y"], name="reshape"))
    else:
        nodes.append(helper.make_node("Relu", ["e"], ["y"], name="relu"))
    model = kit.model(nodes, [kit.value("x", x)], [kit.value("y", [None] * 4)], constants)
    before = model.SerializeToString()
    canonical = canonicalise(model)
    assert "4 readers of shared initializers given their own copy" in canonical.notes
    assert canonical.slimmed is slimmed
    assert len(canonical.model.graph.initializer) == 6
    _assert_untied(canonical.model, constants)
    kit.assert_same(model, canonical.model, {"x": kit.whole(x, seed=2, limit=1)})
    assert model.SerializeToString() == before


def test_equal_but_separate_weights_are_not_tied_by_onnxslim(kit):
    weight = kit.whole((3, 3, 2, 1), seed=1)
    constants = {"w1": weight, "w2": weight.copy(), "b1": np.ones(3, np.float32)}
    constants["b2"] = constants["b1"].copy()
    nodes = [
        _conv("x", "a", "w1", "b1", "c1"),
        _conv("a", "b", "w2", "b2", "c2"),
        helper.make_node("Shape", ["b"], ["shape"], name="shape"),
        helper.make_node("Reshape", ["b", "shape"], ["y"], name="reshape"),
    ]
    model = kit.model(
        nodes, [kit.value("x", (1, 3, 5, 4))], [kit.value("y", [None] * 4)], constants
    )
    canonical = canonicalise(model)
    assert canonical.slimmed
    assert {t.name for t in canonical.model.graph.initializer} == set(constants)
    _assert_untied(canonical.model, constants)


def test_large_shared_weights_are_untied(kit):
    """Over 1024 elements weights travel outside the skeleton."""
    constants = {"w": kit.whole((16, 16, 3, 3), seed=1), "b": np.arange(16, dtype=np.float32)}
    nodes = [
        _conv("x", "a", "w", "b", "c1"),
        _conv("x", "b2", "w", "b", "c2"),
        helper.make_node("Sub", ["a", "b2"], ["y"], name="sub"),
    ]
    model = kit.model(
        nodes, [kit.value("x", (1, 16, 4, 5))], [kit.value("y", [None] * 4)], constants
    )
    result = canonicalise(model).model
    assert len(result.graph.initializer) == 4
    _assert_untied(result, constants)


def test_one_node_reading_an_initializer_twice(kit):
    nodes = [
        helper.make_node("MatMul", ["w", "w"], ["s"], name="square"),
        helper.make_node("MatMul", ["x", "s"], ["y"], name="dense"),
    ]
    model = kit.model(
        nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))], {"w": kit.whole((3, 3), seed=1)}
    )
    result = canonicalise(model, fold_constants=False).model
    _assert_untied(result, {"w": kit.whole((3, 3), seed=1)})
    kit.assert_same(model, result, {"x": kit.whole((2, 3), seed=2)})


def test_weights_shared_through_a_constant_node_and_identities(kit):
    """Tied once as one Constant node, once through aliases: untied all the same."""
    weight = kit.whole((3, 3), seed=1)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        helper.make_node("Identity", ["w"], ["alias"], name="alias"),
        helper.make_node("MatMul", ["x", "w"], ["a"], name="m1"),
        helper.make_node("MatMul", ["a", "alias"], ["y"], name="m2"),
    ]
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))])
    result = canonicalise(model, fold_constants=False).model
    assert kit.operators(result) == ["MatMul", "MatMul"]
    _assert_untied(result, {"w": weight})
    kit.assert_same(model, result, {"x": kit.whole((2, 3), seed=2)})


def test_a_new_name_collides_with_nothing(kit):
    weight = kit.whole((3, 3), seed=1)
    constants = {"w": weight, "w_untied": weight + 1, "w_untied_1": weight + 2}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="m1"),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="m2"),
        helper.make_node("MatMul", ["b", "w_untied"], ["c"], name="m3"),
        helper.make_node("MatMul", ["c", "w_untied_1"], ["y"], name="m4"),
    ]
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))], constants)
    result = canonicalise(model).model
    assert all(n == 1 for k, n in _readers(result).items() if k.startswith("w"))
    assert len({t.name for t in result.graph.initializer}) == 4
    kit.assert_same(model, result, {"x": kit.whole((2, 3), seed=2, limit=1)})


def test_scalars_stay_shared(kit):
    constants = {"low": np.array(-2, np.float32), "one": np.array([1], np.float32)}
    nodes = [
        helper.make_node("Clip", ["x", "low"], ["a"], name="clip1"),
        helper.make_node("Add", ["a", "one"], ["b"], name="add1"),
        helper.make_node("Clip", ["b", "low"], ["c"], name="clip2"),
        helper.make_node("Add", ["c", "one"], ["y"], name="add2"),
    ]
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))], constants)
    result = canonicalise(model).model
    assert [t.name for t in result.graph.initializer] == ["low", "one"]
    kit.assert_same(model, result, {"x": kit.whole((2, 3), seed=2)})


@pytest.mark.parametrize("size", [4, 40], ids=["small", "large"])
def test_weight_that_a_subgraph_reads_too(kit, size):
    """The main graph gets its own copy; the branches share the one outside them."""
    shape = (2, size)
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, ["x", "w"], [name], name=name)],
            name,
            [],
            [kit.value(name, shape)],
        )
        for name, op in (("then", "MatMul"), ("else", "MatMul"))
    }
    nodes = [
        helper.make_node("If", ["which"], ["a"], name="if", **branches),
        helper.make_node("MatMul", ["a", "w"], ["y"], name="dense"),
    ]
    inputs = [kit.value("x", shape), kit.value("which", (), 9)]
    constants = {"w": kit.whole((size, size), seed=1, limit=1)}
    model = kit.model(nodes, inputs, [kit.value("y", shape)], constants)
    result = canonicalise(model).model
    for which in (True, False):
        feeds = {"x": kit.whole(shape, seed=2), "which": np.array(which)}
        kit.assert_same(model, result, feeds)
    inner = [a.g for a in result.graph.node[0].attribute]
    assert [list(g.node[0].input) for g in inner] == [["x", "w"], ["x", "w"]]
    assert [t.name for g in inner for t in g.initializer] == []
    assert result.graph.node[1].input[1] != "w"
    assert len(result.graph.initializer) == 2
    for tensor in result.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), constants["w"])
