"""A walk gives the values that a run of the whole network gives, and executes each node once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcompress.calibrate import walk as walking
from onnxcompress.calibrate.walk import Shelf, Walk
from onnxcompress.errors import ModelError
from onnxcompress.graph.view import GraphView
from onnxcompress.runtime import Execution, open_session

Array = np.ndarray
TENSORS = ("a", "b", "c", "d", "e", "f", "g", "s", "t", "u", "v", "y", "z")
ONE = Execution(threads=1)


def network(nets: Any, kit: Any, *, inner: bool = True) -> onnx.ModelProto:
    """A residual sum, a concatenation, a split, and an If whose branches read from outside.

    With `inner` the branches compute in several steps, by names and constants of their own.
    """
    model: onnx.ModelProto = nets.build(
        """net (float[N, 3, 4, 5] x, float[N, 3, 4, 5] k) => (float[N, 2, 4, 5] y, float[N, 7] z) {
        [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        [r1] b = Relu (a)
        [c2] c = Conv (b, w2)
        [sum] d = Add (b, c)
        [join] e = Concat <axis = 1> (d, k)
        [c3] f = Conv (e, w3)
        [parts] s, t = Split <axis = 1> (f, sizes)
        [mean] g = GlobalAveragePool (d)
        [bend] u = Sigmoid (t)
        [scale] y = Mul (s, u)
        [flat] v = Flatten (g) }""",
        w1=kit.whole((3, 3, 3, 3), seed=1),
        b1=kit.whole((3,), seed=2),
        w2=kit.whole((3, 3, 1, 1), seed=3),
        w3=kit.whole((4, 6, 1, 1), seed=4),
        sizes=np.array([2, 2]),
        yes=np.array(True),
        wide=kit.whole((3, 7), seed=5),
    )

    def branch(name: str, by: str) -> onnx.GraphProto:
        if not inner:
            nodes = [helper.make_node("MatMul", ["v", by], [f"{name}_out"])]
            return helper.make_graph(nodes, name, [], [kit.value(f"{name}_out", None)])
        own = onnx.numpy_helper.from_array(np.float32([2]), f"{name}_two")
        nodes = [
            helper.make_node("MatMul", ["v", by], [f"{name}_in"]),
            helper.make_node("Mul", [f"{name}_in", f"{name}_two"], [f"{name}_out"]),
        ]
        return helper.make_graph(nodes, name, [], [kit.value(f"{name}_out", None)], [own])

    node = helper.make_node(
        "If",
        ["yes"],
        ["z"],
        "choose",
        then_branch=branch("then", "wide"),
        else_branch=branch("else", "wide"),
    )
    model.graph.node.append(node)
    for output in model.graph.output:
        if output.name == "z":
            output.CopyFrom(kit.value("z", [None, 7], TensorProto.FLOAT))
    return model


def feeds_of(kit: Any) -> list[dict[str, Array]]:
    """Batches of 4, 4 and 2 samples."""
    every = {"x": kit.whole((10, 3, 4, 5), seed=6), "k": kit.whole((10, 3, 4, 5), seed=7)}
    return [{n: v[at : at + 4] for n, v in every.items()} for at in (0, 4, 8)]


def run_whole(
    kit: Any, model: onnx.ModelProto, feeds: Sequence[dict[str, Array]], tensors: Sequence[str]
) -> dict[str, list[Array]]:
    """Every batch by one plain run of a copy with further outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=t) for t in tensors)
    runs = [kit.run(copy, batch) for batch in feeds]
    return {tensor: [run[at] for run in runs] for at, tensor in enumerate(tensors)}


def assert_values(
    walk: Walk, names: Sequence[str], truth: dict[str, list[Array]], batches: int = 3
) -> None:
    seen = list(walk.batches(names))
    assert len(seen) == batches
    for at, values in enumerate(seen):
        assert list(values) == list(dict.fromkeys(names))
        for name in names:
            assert values[name].dtype == truth[name][at].dtype
            # Whole numbers are exact; Sigmoid may be vectorised differently: an ulp or two.
            np.testing.assert_allclose(values[name], truth[name][at], rtol=1e-6, err_msg=name)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each node was part of a session that was made."""
    count: Counter[str] = Counter()

    @contextmanager
    def counting(model: onnx.ModelProto, execution: Execution) -> Iterator[Any]:
        count.update(node.name for node in model.graph.node)
        with open_session(model, execution) as session:
            yield session

    monkeypatch.setattr(walking, "open_session", counting)
    return count


@pytest.mark.parametrize("inner", [False, True])
def test_in_order_every_node_is_executed_once(
    nets: Any, kit: Any, executed: Counter[str], *, inner: bool
) -> None:
    model, feeds = network(nets, kit, inner=inner), feeds_of(kit)
    truth = run_whole(kit, model, feeds, TENSORS)
    walk = Walk(model, feeds, ONE, Shelf())
    for name in ("a", "b", "c", "d", "g", "e", "f", "s", "t", "u", "v", "y", "z"):
        assert_values(walk, [name], truth)
    assert executed == Counter(node.name for node in model.graph.node)


def test_several_at_once_and_inputs(nets: Any, kit: Any, executed: Counter[str]) -> None:
    model, feeds = network(nets, kit), feeds_of(kit)
    truth = run_whole(kit, model, feeds, TENSORS)
    truth |= {name: [batch[name] for batch in feeds] for name in ("x", "k")}
    walk = Walk(model, feeds, ONE, Shelf())
    assert_values(walk, ["x", "a", "k", "a"], truth)
    assert_values(walk, ["b", "d"], truth)
    assert_values(walk, ["y", "z"], truth)
    assert executed == Counter(node.name for node in model.graph.node)


@pytest.mark.parametrize("limit", [2**30, 0, 5000])
@pytest.mark.parametrize("seed", range(3))
def test_out_of_order_and_again(nets: Any, kit: Any, seed: int, limit: int) -> None:
    """What was released is computed again; whatever the bound of memory."""
    model, feeds = network(nets, kit), feeds_of(kit)
    truth = run_whole(kit, model, feeds, TENSORS)
    walk = Walk(model, feeds, ONE, Shelf(limit))
    order = np.random.default_rng(seed).choice(TENSORS, 20)
    for at in range(0, 20, 2):
        assert_values(walk, order[at : at + 2].tolist(), truth)
    assert_values(walk, ["z", "a"], truth)


def test_constants_change_what_is_executed_later(nets: Any, kit: Any) -> None:
    model, feeds = network(nets, kit), feeds_of(kit)
    other = kit.whole((3, 3, 1, 1), seed=20)
    bias = kit.whole((4,), seed=21)
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name == "w2":
            tensor.CopyFrom(onnx.numpy_helper.from_array(other, "w2"))
    changed.graph.initializer.append(onnx.numpy_helper.from_array(bias, "new"))
    next(n for n in changed.graph.node if n.name == "c3").input.append("new")
    old, new = (run_whole(kit, m, feeds, TENSORS) for m in (model, changed))
    before = model.SerializeToString(deterministic=True)
    walk = Walk(model, feeds, ONE, Shelf())
    assert_values(walk, ["a", "b"], old)
    walk.set_constant("c2", 1, other)
    walk.set_constant("c3", 2, bias)
    # The first layer was executed with its own constants, and stays so.
    for name in ("b", "c", "d", "f", "y", "z"):
        assert_values(walk, [name], new)
        assert name == "b" or not np.array_equal(old[name][0], new[name][0])
    # What was executed already is executed again; what was executed behind it stays.
    late = Walk(model, feeds, ONE, Shelf())
    assert_values(late, ["c", "d"], old)
    late.set_constant("c2", 1, other)
    assert_values(late, ["d"], old)
    assert_values(late, ["c"], new)
    assert model.SerializeToString(deterministic=True) == before


def test_a_node_that_is_asked_for_is_executed_again_alone(
    nets: Any, kit: Any, executed: Counter[str]
) -> None:
    """Whoever looks at an answer and changes who made it: nothing in front is executed again."""
    model, feeds = network(nets, kit), feeds_of(kit)
    shelf = Shelf()
    walk = Walk(model, feeds, ONE, shelf)
    for name, node in (("a", "c1"), ("c", "c2"), ("f", "c3")):
        list(walk.batches([name]))
        weight = GraphView(model).array(GraphView(model).nodes[node].input[1])
        walk.set_constant(node, 1, weight + 1)
    list(walk.batches(["y", "z"]))
    twice = {"c1", "c2", "c3"}
    assert executed == Counter({n.name: 1 + (n.name in twice) for n in model.graph.node})
    assert shelf._held == sum(v.nbytes for values in walk._held.values() for v in values)


def test_what_nobody_reads_any_more_is_let_go(nets: Any, kit: Any) -> None:
    """At the end nothing is held but what was asked for, and the graph's captured tensors."""
    model, feeds = network(nets, kit), feeds_of(kit)
    shelf = Shelf()
    walk = Walk(model, feeds, ONE, shelf)
    for name in ("a", "b", "c", "d", "g", "v", "e", "f", "s", "t", "u", "z", "y"):
        list(walk.batches([name]))
    held = set(walk._held)
    assert held <= {"y"} | GraphView(model).captured
    assert shelf._held == sum(v.nbytes for n in held for v in walk._held[n])


def test_names_that_are_not_there(nets: Any, kit: Any) -> None:
    walk = Walk(network(nets, kit), feeds_of(kit), ONE, Shelf())
    with pytest.raises(ModelError, match="tensor 'nowhere' is not in the graph"):
        list(walk.batches(["nowhere"]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_])
@pytest.mark.parametrize("shape", [(3, 5), (), (4, 0)])
def test_shelf(dtype: Any, shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    given = [np.asarray(generator.integers(0, 9, shape)).astype(dtype) for _ in range(5)]
    shelf = Shelf(2 * given[0].nbytes)
    held = [shelf.put(values) for values in given]
    files = [isinstance(one, np.memmap) for one in held]
    assert files == ([False] * 2 + [True] * 3 if given[0].nbytes else [False] * 5)
    for one, values in zip(held, given, strict=True):
        assert one.shape == shape
        assert one.dtype == values.dtype
        np.testing.assert_array_equal(one, values)
    for one in held:
        shelf.drop(one)
    assert shelf._held == 0
    assert not isinstance(shelf.put(given[0]), np.memmap)
