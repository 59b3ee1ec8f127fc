"""What counts as a residual branch, and what does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.analyse.branches import Branch, residual_branches
from onnxcompress.graph.infer import shapes_at, with_value_info
from onnxcompress.graph.view import GraphView

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
SIZES = {"x": (1, 3, 6, 8), "z": (1, 3, 6, 8)}


def found(body: str, *, outputs: str = "float[N, A, H, W] y", **constants: Any) -> list[Branch]:
    """Branches of a network over x and z [N, 3, 6, 8]; convolutions w... are 1x1 with 4 channels.

    'b' is a stream of 4 channels, made by 'stem' and 'r0' from x.
    """
    text = f"""{HEAD} net (float[N, 3, 6, 8] x, float[N, 3, 6, 8] z) => ({outputs}) {{
        [stem] a = Conv <kernel_shape = [1, 1]> (x, w3)
        [r0] b = Relu (a)
        {body} }}"""
    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    shapes: dict[str, Any] = {
        "w3": (4, 3, 1, 1),
        "w4": (4, 4, 1, 1),
        "up": (12, 4, 1, 1),
        "dw": (12, 1, 3, 3),
        "down": (4, 12, 1, 1),
        "w8": (8, 4, 3, 3),
        "v8": (8, 8, 1, 1),
        "p8": (8, 4, 1, 1),
    }
    used = {name for node in model.graph.node for name in node.input}
    for name, given in {**shapes, **constants}.items():
        if name in used:
            values = generator.standard_normal(given) if isinstance(given, tuple) else given
            kept = values if values.dtype.kind in "ib" else values.astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(kept, name))
    model = with_value_info(model)
    return residual_branches(GraphView(model), shapes_at(model, SIZES))


BASIC = """[c1] c = Conv <kernel_shape = [1, 1]> (b, w4)
    [r1] d = Relu (c)
    [c2] e = Conv <kernel_shape = [1, 1]> (d, w4) """
DOWN = """[c1] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (b, w8)
    [r1] d = Relu (c)
    [c2] e = Conv <kernel_shape = [1, 1]> (d, v8) """


def test_identity_shortcut() -> None:
    nodes = ("c1", "r1", "c2")
    assert found(BASIC + "[sum] y = Add (e, b)") == [Branch("sum", "e", 0, "b", nodes)]
    assert found(BASIC + "[sum] y = Add (b, e)") == [Branch("sum", "e", 1, "b", nodes)]


def test_behind_the_sum() -> None:
    """A ReLU and more behind it make no difference."""
    body = BASIC + "[sum] f = Add (e, b) [r2] g = Relu (f) [last] y = Conv (g, w4)"
    assert found(body) == [Branch("sum", "e", 0, "b", ("c1", "r1", "c2"))]


def test_bottleneck() -> None:
    body = """[c1] c = Conv (b, up) [r1] d = Relu (c)
        [c2] e = Conv <pads = [1, 1, 1, 1], group = 12> (d, dw) [r2] f = Relu (e)
        [c3] g = Conv (f, down) [sum] y = Add (g, b)"""
    assert found(body) == [Branch("sum", "g", 0, "b", ("c1", "r1", "c2", "r2", "c3"))]


def test_no_activation_around_the_sum() -> None:
    """Two linear bottlenecks in a row, as in MobileNetV2: the stream is a sum itself."""
    body = """[e1] c = Conv (a, up) [a1] d = Clip (c, low, high)
        [p1] e = Conv (d, down) [one] f = Add (a, e)
        [e2] g = Conv (f, up) [a2] h = Clip (g, low, high)
        [p2] i = Conv (h, down) [two] y = Add (f, i)"""
    branches = found(
        body,
        low=np.float32(0).reshape(()),
        high=np.float32(6).reshape(()),
    )
    assert branches == [
        Branch("one", "e", 1, "a", ("e1", "a1", "p1")),
        Branch("two", "i", 1, "f", ("e2", "a2", "p2")),
    ]


def test_projection_shortcut() -> None:
    """Only the side with more layers goes: the projection carries on the stream."""
    body = DOWN + "[proj] s = Conv <strides = [2, 2]> (b, p8) [sum] y = Add (e, s)"
    assert found(body) == [Branch("sum", "e", 0, "s", ("c1", "r1", "c2"))]


def test_pooled_projection() -> None:
    """ResNet-D: an average pool in front of the projection."""
    body = (
        DOWN
        + """[pool] p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (b)
        [proj] s = Conv (p, p8) [sum] y = Add (e, s)"""
    )
    assert found(body) == [Branch("sum", "e", 0, "s", ("c1", "r1", "c2"))]


def test_padded_shortcut() -> None:
    """Option A: every other position, and channels of zeros; the shortcut has no layer."""
    body = (
        DOWN
        + """[pool] p = MaxPool <kernel_shape = [1, 1], strides = [2, 2]> (b)
        [pad] s = Pad (p, pads) [sum] y = Add (e, s)"""
    )
    pads = np.array([0, 2, 0, 0, 0, 2, 0, 0])
    assert found(body, pads=pads) == [Branch("sum", "e", 0, "s", ("c1", "r1", "c2"))]


def test_squeeze_and_excitation_inside() -> None:
    body = """[c1] c = Conv (b, w4)
        [squeeze] p = GlobalAveragePool (c)
        [f1] q = Conv (p, w4) [act] r = Relu (q) [f2] s = Conv (r, w4) [gate] t = Sigmoid (s)
        [scale] e = Mul (c, t) [sum] y = Add (e, b)"""
    nodes = ("c1", "squeeze", "f1", "act", "f2", "gate", "scale")
    assert found(body) == [Branch("sum", "e", 0, "b", nodes)]


def test_two_projections_of_one_tensor() -> None:
    """Either could go."""
    body = "[c1] c = Conv (b, w4) [c2] d = Conv (b, w4) [sum] y = Add (c, d)"
    assert found(body) == [Branch("sum", "c", 0, "d", ("c1",)), Branch("sum", "d", 1, "c", ("c2",))]


NONE = {
    "unrelated tensors": "[c1] c = Conv (z, w3) [sum] y = Add (b, c)",
    "two towers": "[c1] c = Conv (z, w3) [r1] d = Relu (c) [c2] e = Conv (d, w4)"
                  "[c3] f = Conv (b, w4) [sum] y = Add (f, e)",
    "a tensor and itself": "[c1] c = Conv (b, w4) [sum] y = Add (c, c)",
    "no layer in it": "[bend] c = Sigmoid (b) [sum] y = Add (c, b)",
    "a constant": "[c1] c = Conv (b, w4) [sum] y = Add (c, bias)",
    "an input of the graph": "[c1] c = Conv (z, w) [sum] y = Add (c, z)",
    "broadcast": "[c1] c = Conv (b, w4) [pool] p = GlobalAveragePool (c) [sum] y = Add (p, b)",
    "another operator": BASIC + "[product] y = Mul (e, b)",
    "read elsewhere": BASIC + "[more] g = Tanh (e) [f] f = Add (e, b) [sum] y = Mul (f, g)",
    "read inside": BASIC + "[sum] f = Add (e, b) [more] y = Add (f, c)",
}  # fmt: skip


@pytest.mark.parametrize("body", NONE.values(), ids=NONE.keys())
def test_no_branch(body: str) -> None:
    branches = found(body, bias=np.ones((1, 4, 1, 1)), w=(3, 3, 1, 1))
    assert [b for b in branches if b.add == "sum"] == []


@pytest.mark.parametrize("visible", ["e", "c"])
def test_what_the_caller_sees_stays(visible: str) -> None:
    """The branch's end, or something inside it, is an output of the graph."""
    outputs = f"float[N, A, H, W] y, float[N, B, H, W] {visible}"
    assert found(BASIC + "[sum] y = Add (e, b)", outputs=outputs) == []


@pytest.mark.parametrize(("captured", "count"), [("e", 0), ("f", 1)])
def test_what_a_subgraph_reads_stays(captured: str, count: int) -> None:
    """The branch's end is captured by an If; or only the sum is, which may well be."""
    body = (
        BASIC
        + f"""[sum] f = Add (e, b)
        [if] g = If (flag) <
            then_branch = yes () => (float[N, 4, 6, 8] t) {{ t = Relu ({captured}) }},
            else_branch = no () => (float[N, 4, 6, 8] u) {{ u = Tanh (f) }}>
        [last] y = Conv (g, w4)"""
    )
    assert len(found(body, flag=np.array(True))) == count


def test_a_shortcut_that_is_seen_is_no_obstacle() -> None:
    outputs = "float[N, A, H, W] y, float[N, B, H, W] b"
    (branch,) = found(BASIC + "[sum] y = Add (e, b)", outputs=outputs)
    assert branch == Branch("sum", "e", 0, "b", ("c1", "r1", "c2"))


def test_branches_within_a_branch() -> None:
    """Both are branches; the outer one holds the inner one's sum."""
    body = """[o1] c = Conv (b, w4)
        [i1] d = Conv (c, w4) [inner] e = Add (d, c)
        [o2] f = Conv (e, w4) [outer] y = Add (f, b)"""
    assert found(body) == [
        Branch("inner", "d", 0, "c", ("i1",)),
        Branch("outer", "f", 0, "b", ("o1", "i1", "inner", "o2")),
    ]
