"""What is cut off behind taps: the nodes that depend on them, fed by as little as possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcompress.calibrate.suffix import Suffix, cut_suffix
from onnxcompress.errors import ModelError
from onnxcompress.gradients.known import know

# By taps: the nodes behind them, in order, and what the whole network has to compute.
CUTS = {
    ("a",): ("relu second tanh sum left right join gate pool fl fc", {"a"}),
    ("b",): ("second tanh sum left right join gate pool fl fc", {"b"}),
    ("c",): ("tanh sum left right join gate pool fl fc", {"c", "b"}),
    ("d",): ("sum left right join gate pool fl fc", {"d", "b"}),
    ("f",): ("join gate pool fl fc", {"f", "g"}),
    ("g", "f"): ("join gate pool fl fc", {"f", "g"}),
    ("i",): ("pool fl fc", {"i"}),
    ("q",): ("fc", {"q"}),
    ("y",): ("", {"y"}),
    ("a", "e"): ("relu second tanh sum left right join gate pool fl fc", {"a"}),
    ("e", "a"): ("relu second tanh sum left right join gate pool fl fc", {"a"}),
    ("d", "g"): ("sum left right join gate pool fl fc", {"d", "b"}),
    ("f", "i"): ("join gate pool fl fc", {"f", "g"}),
    ("x",): ("first relu second tanh sum left right join gate pool fl fc", set()),
}


def cut(model: onnx.ModelProto, taps: Sequence[str], wanted: Sequence[str]) -> Suffix:
    sizes = {value.name: (1, 3, 5, 6) for value in model.graph.input}
    return cut_suffix(know(model, sizes), dict.fromkeys(taps, 1), wanted)


def values_of(kit: Any, model: onnx.ModelProto, names: Sequence[str], feeds: Any) -> dict[str, Any]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return dict(zip(names, kit.run(copy, feeds), strict=True))


@pytest.mark.parametrize("taps", CUTS, ids="-".join)
def test_nodes_and_frontier(truth: Any, nets: Any, kit: Any, taps: tuple[str, ...]) -> None:
    model = truth.classifier(nets)
    before = model.SerializeToString()
    nodes, frontier = CUTS[taps]
    suffix = cut(model, taps, ["y"])
    masked = {tap for tap in taps if tap not in frontier and tap != "x"}
    assert set(suffix.masks) == set(suffix.dtypes) == masked
    own = {node.name for node in model.graph.node}
    assert [n.name for n in suffix.model.graph.node if n.name in own] == nodes.split()
    assert [n.op_type for n in suffix.model.graph.node if n.name not in own] == ["Mul"] * len(
        masked
    )
    assert set(suffix.frontier) == frontier
    assert len(suffix.frontier) == len(frontier)
    inputs = {value.name for value in suffix.model.graph.input}
    assert inputs == {*suffix.frontier, *suffix.masks.values(), *({"x"} & set(taps))}
    read = {name for node in suffix.model.graph.node for name in node.input}
    assert {tensor.name for tensor in suffix.model.graph.initializer} == {
        tensor.name for tensor in model.graph.initializer if tensor.name in read
    }
    assert suffix.outputs == ("y",)
    made = inputs | {tensor.name for tensor in suffix.model.graph.initializer}
    for node in suffix.model.graph.node:
        assert made.issuperset(node.input), "every node stands behind what it reads"
        made.update(node.output)
    assert model.SerializeToString() == before

    # Run node by node it computes the very same numbers; masks multiply what everybody reads.
    x = nets.samples(model, 3)
    names = sorted({*frontier, *taps, "y"} - {"x"})
    known = {**values_of(kit, model, names, x), **x}
    fed = {name: known[name] for name in inputs & known.keys()}
    masks = {}
    for tap, name in suffix.masks.items():
        line = [1, known[tap].shape[1], *[1] * (known[tap].ndim - 2)]
        masks[tap] = np.arange(line[1], dtype=np.float32).reshape(line)
        assert suffix.dtypes[tap] == np.float32
        fed[name] = np.ones(line, np.float32)
    assert np.array_equal(kit.run(suffix.model, fed)[0], known["y"])
    if masks:
        fed |= {suffix.masks[tap]: mask for tap, mask in masks.items()}
        copy = truth.stepped(model, tuple(masks))
        whole = kit.run(copy, {**x, **{f"by_{tap}": mask for tap, mask in masks.items()}})[0]
        assert not np.array_equal(whole, known["y"])
        assert np.array_equal(kit.run(suffix.model, fed)[0], whole)


def test_outputs_that_do_not_depend_on_a_tap_are_not_computed(truth: Any, nets: Any) -> None:
    model = truth.several(nets)
    wanted = ["u", "v", "r", "o"]
    assert cut(model, ["t"], wanted).outputs == ("v", "o")
    assert cut(model, ["a"], wanted).outputs == ("u", "v", "r", "o")
    assert cut(model, ["u"], wanted).outputs == ("u",)
    assert cut(model, ["u", "t"], wanted).outputs == ("u", "v", "o")


def test_only_what_the_loss_needs(nets: Any) -> None:
    """A dead end behind a tap brings nothing to keep."""
    text = """net (float[N, 3, 5, 6] x) => (float[N, 6] y, int64[N, 1, 5, 6] best) {
        [first] a = Conv (x, w0)
        [large] l = Conv (x, w1)
        [side] s = Add (a, l)
        [largest] best = ArgMax <axis=1> (s)
        [pool] p = GlobalAveragePool (a)
        [flat] q = Flatten (p)
        [dense] y = MatMul (q, w2) }"""
    model = nets.build(text, w0=(4, 3, 1, 1), w1=(4, 3, 1, 1), w2=(4, 6))
    suffix = cut(model, ["a"], ["y"])
    assert set(suffix.frontier) == {"a"}
    assert [node.name for node in suffix.model.graph.node] == ["pool", "flat", "dense"]


def test_shapes_computed_from_the_input_are_kept(nets: Any) -> None:
    text = """net (float[N, 3, 5, 6] x) => (float[N, 90] y) {
        [first] a = Conv (x, w0)
        [sizes] s = Shape (x)
        [some] n = Gather (s, first)
        [both] t = Concat <axis=0> (n, rest)
        [relu] b = Relu (a)
        [lines] y = Reshape (b, t) }"""
    given = {"first": np.array([0]), "rest": np.array([90])}
    suffix = cut(nets.build(text, w0=(3, 3, 1, 1), **given), ["a"], ["y"])
    assert set(suffix.frontier) == {"a", "t"}
    types = {v.name: v.type.tensor_type.elem_type for v in suffix.model.graph.input}
    assert types == {"a": onnx.TensorProto.FLOAT, "t": onnx.TensorProto.INT64}
    assert [node.name for node in suffix.model.graph.node] == ["relu", "lines"]


def branching(kit: Any) -> onnx.ModelProto:
    """Tensor b is read by a subgraph, and so is the constant k."""
    arms = {
        name: helper.make_graph(
            [helper.make_node(kind, ["b", "k"], [f"{name}_out"], name=name)],
            name,
            [],
            [kit.value(f"{name}_out", None)],
        )
        for name, kind in (("then", "Add"), ("else", "Mul"))
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("ReduceMax", ["x"], ["m"], name="max", keepdims=0),
        helper.make_node("Greater", ["m", "zero"], ["c"], name="larger"),
        helper.make_node(
            "If", ["c"], ["d"], name="if", then_branch=arms["then"], else_branch=arms["else"]
        ),
        helper.make_node("GlobalAveragePool", ["d"], ["y"], name="pool"),
    ]
    constants = {
        "w": np.random.default_rng(1).standard_normal((4, 3, 1, 1)).astype(np.float32),
        "k": np.float32([[[[2.0]], [[3.0]], [[4.0]], [[5.0]]]]),
        "zero": np.float32(0.0),
    }
    sides = [kit.value("x", ["N", 3, 5, 6])], [kit.value("y", ["N", 4, 1, 1])]
    model: onnx.ModelProto = kit.model(nodes, *sides, constants)
    return model


def test_a_subgraph_that_reads_a_tap(kit: Any, nets: Any) -> None:
    """It reads an input just as well; but a tensor in between cannot be replaced in it."""
    model = branching(kit)
    suffix = cut(model, ["b"], ["y"])
    assert [node.name for node in suffix.model.graph.node] == ["if", "pool"]
    assert set(suffix.frontier) == {"b", "c"}
    x = nets.samples(model, 3)
    known = values_of(kit, model, ["b", "c", "y"], x)
    fed = {name: known[name] for name in ("b", "c")}
    assert np.array_equal(kit.run(suffix.model, fed)[0], known["y"])
    assert set(cut(model, ["a"], ["y"]).frontier) == {"a", "c"}
    with pytest.raises(ModelError, match=r"'b' is read by a subgraph: .* cannot be set to zero"):
        cut(model, ["a", "b"], ["y"])


def test_ablation_through_a_subgraph(truth: Any, nets: Any, kit: Any) -> None:
    model = branching(kit)
    x = nets.samples(model, 4)
    measured = truth.measured(model, x, np.arange(4))
    found = measured.sensitivity.ablate({"b": 1}, [{"b": (c,)} for c in range(4)])
    own, losses = kit.run(model, measured.feeds)[0], truth.losses("logits", measured.order)
    for channel, change in enumerate(found):
        copy = truth.stepped(model, ("b",))
        mask = np.float32(np.arange(4) != channel).reshape(1, 4, 1, 1)
        moved = kit.run(copy, {**measured.feeds, "by_b": mask})[0]
        expected = (losses({"y": moved}) - losses({"y": own})).mean()
        np.testing.assert_allclose(change, expected, rtol=0, atol=1e-6)
        assert abs(expected) > 1e-3
