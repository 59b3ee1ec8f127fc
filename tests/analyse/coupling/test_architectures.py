"""The blocks that families of networks are made of, in miniature, each between a stem and a head.

Every block is pruned exactly; what is expected to stay is declined with a reason. Shuffles,
selective kernels and plain residual, dense and pooling blocks are in the files of their operators.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

ROUNDED = 256 * 2.0**-24
"""Averages, sigmoids, error functions and norms: fewer than 256 roundings that differ."""


def stem(s: Any, e: Any) -> str:
    return str(s.add("Relu", s.conv(s.input(e.image), e.source, e.inner, name="stem")))


def head(s: Any, e: Any, a: str, channels: int) -> Any:
    return s.model(s.conv(a, channels, e.outer, name="head"))


def swish(s: Any, a: str) -> str:
    return str(s.add("Mul", a, s.add("Sigmoid", a)))


def batch_norm(s: Any, a: str, c: int, bias: Any = None) -> str:
    shift = s.whole([c]) if bias is None else s.constant(bias)
    # The variance and epsilon make one: a scale of whole numbers stays exact.
    constants = [s.whole([c], low=1, high=2), shift, s.constant(np.zeros(c))]
    constants.append(s.constant(np.full(c, 0.75)))
    return str(s.add("BatchNormalization", a, *constants, epsilon=0.25))


@pytest.mark.parametrize(("groups", "widths"), [(3, {"reduce": 4, "deep": 4}), (6, {"reduce": 6})])
def test_resnext(
    sketch: Any, pruning: Any, extents: Any, groups: int, widths: dict[str, int]
) -> None:
    """Three groups of four lose positions, six groups of two are lost whole."""
    s, e, c = sketch(), extents, extents.inner
    x = stem(s, e)
    a = s.add("Relu", s.conv(x, c, 12, name="reduce"))
    a = s.add("Relu", s.conv(a, 12, 12, 3, name="deep", group=groups, pads=[1] * 4))
    a = s.add("Relu", s.add("Add", s.conv(a, 12, c, name="expand"), x))
    case = pruning.check(head(s, e, a, c), widths={"stem": c, **widths})
    assert set(case.coupling.group("stem").producers) == {"stem", "expand"}


def test_inception(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e, c = sketch(), extents, extents.inner
    x, window = stem(s, e), {"kernel_shape": [3, 3], "pads": [1] * 4}
    narrow = s.add("Relu", s.conv(x, c, 3, name="narrow"))
    tall = s.add("Relu", s.conv(narrow, 3, 4, [3, 1], name="tall", pads=[1, 0, 1, 0]))
    branches = [
        (s.conv(x, c, c, name="point"), c),
        (s.conv(tall, 4, 5, [1, 3], name="flat", pads=[0, 1, 0, 1]), 5),
        (s.conv(s.add("AveragePool", x, **window), c, 4, name="pooled"), 4),
        (s.add("MaxPool", x, **window), c),
    ]
    joined = s.add("Concat", *(s.add("Relu", a) for a, _ in branches), axis=1)
    widths = {"stem": c, "narrow": 3, "tall": 4, "point": c, "flat": 5, "pooled": 4}
    model = head(s, e, joined, sum(n for _, n in branches))
    pruning.check(model, widths=widths, tolerance=ROUNDED)


def test_densenet_transition(sketch: Any, pruning: Any, extents: Any) -> None:
    """Behind a concatenation, every reader sees the same channel through its own statistics."""
    s, e, c = sketch(), extents, extents.inner
    x = s.conv(s.input(e.image), e.source, c, name="stem")
    a = s.conv(s.add("Relu", batch_norm(s, x, c)), c, 5, name="narrow")
    a = s.conv(s.add("Relu", a), 5, 3, 3, name="grow", pads=[1] * 4)
    joined = s.add("Concat", x, a, axis=1)
    a = s.add("Relu", batch_norm(s, joined, c + 3))
    a = s.conv(a, c + 3, 4, name="transition", bias=False)
    a = s.add("AveragePool", a, kernel_shape=[2, 2], strides=[2, 2])
    b = s.conv(s.add("Relu", batch_norm(s, a, 4)), 4, 3, name="next")
    joined = s.add("Relu", batch_norm(s, s.add("Concat", a, b, axis=1), 7))
    flat = s.add("Flatten", s.add("GlobalAveragePool", joined))
    y = s.add("Gemm", flat, s.whole([7, e.outer]), s.whole([e.outer]), name="classify")
    widths = {"stem": c, "narrow": 5, "grow": 3, "transition": 4, "next": 3}
    said = {"classify": "graph's output"}
    pruning.check(s.model(y), widths=widths, refused=said, tolerance=ROUNDED)


def test_inverted_bottleneck_with_a_gate(sketch: Any, pruning: Any, extents: Any) -> None:
    """MBConv of EfficientNet."""
    s, e, c = sketch(), extents, extents.inner
    x = stem(s, e)
    a = swish(s, s.conv(x, c, 2 * c, name="expand"))
    a = swish(s, s.conv(a, 2 * c, 2 * c, 3, name="deep", group=2 * c, pads=[1] * 4))
    b = swish(s, s.conv(s.add("GlobalAveragePool", a), 2 * c, 3, name="squeeze"))
    b = s.add("Sigmoid", s.conv(b, 3, 2 * c, name="excite"))
    a = s.conv(s.add("Mul", a, b), 2 * c, c, name="project")
    model = head(s, e, s.add("Add", a, x), c)
    widths = {"stem": c, "expand": 2 * c, "squeeze": 3}
    case = pruning.check(model, widths=widths, tolerance=ROUNDED)
    assert set(case.coupling.group("expand").producers) == {"expand", "deep", "excite"}


@pytest.mark.parametrize("spare", [0, 1])
def test_ghost_modules(sketch: Any, pruning: Any, extents: Any, spare: int) -> None:
    """A cheap copy beside every channel; of an odd number of channels one copy is cut off."""
    s, e, c = sketch(), extents, 8 - spare
    ends = s.constant([c], dtype=np.int64)

    def ghost(a: str, inputs: int, name: str, activation: str) -> str:
        a = s.add(activation, s.conv(a, inputs, 4, name=name))
        b = s.conv(a, 4, 4, 3, name=f"{name} cheap", group=4, pads=[1] * 4)
        both = s.add("Concat", a, s.add(activation, b), axis=1)
        starts, axes = (s.constant([n], dtype=np.int64) for n in (0, 1))
        return str(s.add("Slice", both, starts, ends, axes))

    x = s.conv(s.input(e.image), e.source, c, name="stem")
    a = ghost(ghost(x, c, "one", "Relu"), c, "two", "Neg")
    # Channel i of the sum is a channel of 'two' or its copy: 4 pairs, or 3 and one without a copy.
    model = head(s, e, s.add("Add", a, x), c)
    case = pruning.check(model, widths={"stem": 4, "one": 4})
    assert set(case.coupling.group("stem").producers) == {"stem", "two", "two cheap"}


def test_res2net(sketch: Any, pruning: Any, extents: Any) -> None:
    """Parts in a cascade: each is added to what a convolution made of the part before."""
    s, e, c, w = sketch(), extents, extents.inner, 3
    x = stem(s, e)
    a = s.add("Relu", s.conv(x, c, 4 * w, name="reduce"))
    parts = s.add("Split", a, s.constant([w] * 4, dtype=np.int64), outputs=4, axis=1)
    made: list[str] = []
    for n, part in enumerate(parts[:3]):
        a = s.add("Add", made[-1], part) if made else part
        made.append(s.add("Relu", s.conv(a, w, w, 3, name=f"scale{n}", pads=[1] * 4)))
    a = s.conv(s.add("Concat", *made, parts[3], axis=1), 4 * w, c, name="expand")
    model = head(s, e, s.add("Relu", s.add("Add", a, x)), c)
    case = pruning.check(model, widths={"stem": c, "reduce": 4 * w, "scale2": w})
    assert set(case.coupling.group("reduce").producers) == {"reduce", "scale0", "scale1"}


def test_cross_stage_partial(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e, c = sketch(), extents, extents.inner
    a = s.add("LeakyRelu", s.conv(stem(s, e), c, 2 * c, name="open"), alpha=0.125)
    left, right = s.add("Split", a, s.constant([c, c], dtype=np.int64), outputs=2, axis=1)
    a = s.add("LeakyRelu", s.conv(right, c, 3, name="squeeze"), alpha=0.125)
    right = s.add("Add", right, s.conv(a, 3, c, 3, name="restore", pads=[1] * 4))
    right = s.conv(right, c, 5, name="across")
    model = head(s, e, s.add("Concat", left, right, axis=1), c + 5)
    widths = {"stem": c, "open": 2 * c, "squeeze": 3, "across": 5}
    case = pruning.check(model, widths=widths, tolerance=ROUNDED)
    assert set(case.coupling.group("open").producers) == {"open", "restore"}


def test_fusion_of_resolutions(sketch: Any, pruning: Any, extents: Any) -> None:
    """HRNet: what is small is enlarged and added, and the other way round."""
    s, e, c = sketch(), extents, extents.inner
    x = s.input([e.batch, e.source, 2 * e.height, 2 * e.width])
    large = s.add("Relu", s.conv(x, e.source, c, 3, name="large", pads=[1] * 4))
    small = s.conv(x, e.source, e.outer, 3, name="small", pads=[1] * 4, strides=[2, 2])
    small = s.add("Relu", small)
    up = s.conv(small, e.outer, c, name="up")
    scales = s.constant([1.0, 1.0, 2.0, 2.0])
    grown = s.add(
        "Resize",
        up,
        "",
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    down = s.conv(large, c, e.outer, 3, name="down", pads=[1] * 4, strides=[2, 2])
    a = s.add("Relu", s.add("Add", large, grown))
    b = s.add("Relu", s.add("Add", down, small))
    model = s.model(s.conv(a, c, 3, name="head"), s.conv(b, e.outer, 5, name="other"))
    case = pruning.check(model, widths={"large": c, "small": e.outer})
    assert set(case.coupling.group("large").producers) == {"large", "up"}
    assert set(case.coupling.group("small").producers) == {"small", "down"}


def test_dual_paths(sketch: Any, pruning: Any, extents: Any) -> None:
    """DPN: the first channels are added, the others joined on."""
    s, e, c, more = sketch(), extents, extents.inner, 3

    def parts(a: str) -> list[str]:
        cuts = []
        for start, end in ((0, c), (c, 2**63 - 1)):
            bounds = [s.constant([n], dtype=np.int64) for n in (start, end, 1)]
            cuts.append(s.add("Slice", a, *bounds))
        return cuts

    x = stem(s, e)
    kept, dense = parts(s.conv(x, c, c + more, name="project"))
    a = s.add("Relu", s.conv(x, c, 8, name="reduce"))
    a = s.add("Relu", s.conv(a, 8, 8, 3, name="deep", group=4, pads=[1] * 4))
    added, joined = parts(s.conv(a, 8, c + more, name="expand"))
    a = s.add("Concat", s.add("Add", kept, added), s.add("Concat", dense, joined, axis=1), axis=1)
    model = head(s, e, s.add("Relu", a), c + 2 * more)
    case = pruning.check(model, widths={"stem": c, "project": c + 2 * more, "reduce": 4})
    assert set(case.coupling.group("project").producers) == {"project", "expand"}


@pytest.mark.parametrize("padded", [False, True])
def test_branches_of_repvgg(sketch: Any, pruning: Any, extents: Any, *, padded: bool) -> None:
    """The identity has its own statistics: it leaves a constant, which may not meet a border."""
    s, e, c = sketch(), extents, extents.inner
    x, shift = stem(s, e), np.arange(c) % 3 - 1.0
    dense = batch_norm(s, s.conv(x, c, c, 3, name="dense", pads=[1] * 4), c)
    point = batch_norm(s, s.conv(x, c, c, name="point"), c)
    a = s.add("Add", s.add("Add", dense, point), batch_norm(s, x, c, shift))
    last = s.conv(s.add("Relu", a), c, e.outer, 3, name="head", pads=[int(padded)] * 4)
    # A shift of one passes the Relu; those of zero and less leave nothing.
    width = int((shift <= 0).sum()) if padded else c
    case = pruning.check(s.model(last), widths={"stem": width})
    assert set(case.coupling.group("stem").producers) == {"stem", "dense", "point"}


def layer_norm(s: Any, a: str, c: int, name: str) -> str:
    """Over the last axis."""
    return str(s.add("LayerNormalization", a, s.whole([c]), s.whole([c]), axis=-1, name=name))


def gelu(s: Any, a: str) -> str:
    b = s.add("Erf", s.add("Div", a, s.constant(1.4142135)))
    return str(s.add("Mul", s.add("Mul", a, s.add("Add", b, s.constant(1.0))), s.constant(0.5)))


def dense(s: Any, a: str, inputs: int, outputs: int, name: str) -> str:
    return str(
        s.add("Add", s.add("MatMul", a, s.whole([inputs, outputs]), name=name), s.whole([outputs]))
    )


def test_convnext(sketch: Any, pruning: Any, extents: Any) -> None:
    """The norm over channels keeps the residual stream; what is inside the block may go."""
    s, e, c = sketch(), extents, extents.inner
    x = s.conv(s.input(e.image), e.source, c, name="stem")
    a = s.conv(x, c, c, 3, name="deep", group=c, pads=[1] * 4)
    a = layer_norm(s, s.add("Transpose", a, perm=[0, 2, 3, 1]), c, "norm")
    a = gelu(s, dense(s, a, c, 4 * c, "widen"))
    a = s.add("Mul", dense(s, a, 4 * c, c, "narrow"), s.whole([c]))
    a = s.add("Add", s.add("Transpose", a, perm=[0, 3, 1, 2]), x)
    said = "LayerNormalization 'norm'"
    refused = {"stem": said, "deep": said, "narrow": said, "head": "graph's output"}
    pruning.check(head(s, e, a, c), widths={"widen": 4 * c}, refused=refused, tolerance=ROUNDED)


def test_attention_over_channels(sketch: Any, pruning: Any, extents: Any) -> None:
    """EdgeNeXt: products of computed tensors and a softmax over channels are declined."""
    s, e, c, heads = sketch(), extents, extents.inner, 2
    image, rows = [e.batch, c, e.height, e.width], e.height * e.width
    x = s.conv(s.input(e.image), e.source, c, name="stem")
    tokens = s.add("Reshape", x, s.constant([e.batch, c, rows], dtype=np.int64))
    tokens = s.add("Transpose", tokens, perm=[0, 2, 1])
    a = dense(s, layer_norm(s, tokens, c, "norm"), c, 3 * c, "qkv")
    shape = s.constant([e.batch, rows, 3, heads, c // heads], dtype=np.int64)
    a = s.add("Transpose", s.add("Reshape", a, shape), perm=[2, 0, 3, 4, 1])
    parts = [s.add("Gather", a, s.constant(n, dtype=np.int64), axis=0) for n in range(3)]
    norms = [s.add("ReduceL2", p, axes=[-1], keepdims=1) for p in parts[:2]]
    least = s.constant(1e-12)
    q, k = (s.add("Div", p, s.add("Clip", n, least)) for p, n in zip(parts[:2], norms, strict=True))
    scores = s.add("MatMul", q, s.add("Transpose", k, perm=[0, 1, 3, 2]), name="scores")
    a = s.add("MatMul", s.add("Softmax", scores, axis=-1), parts[2], name="mix")
    a = s.add("Transpose", a, perm=[0, 3, 1, 2])
    a = s.add("Reshape", a, s.constant([e.batch, rows, c], dtype=np.int64))
    a = s.add("Add", dense(s, a, c, c, "merge"), tokens)
    b = gelu(s, dense(s, layer_norm(s, a, c, "norm2"), c, 2 * c, "widen"))
    a = s.add("Add", a, dense(s, b, 2 * c, c, "narrow"))
    a = s.add("Reshape", s.add("Transpose", a, perm=[0, 2, 1]), s.constant(image, dtype=np.int64))
    refused = {"stem": "'norm'", "qkv": "MatMul 'scores'", "merge": "'norm", "narrow": "'norm"}
    pruning.check(head(s, e, a, c), widths={"widen": 2 * c}, refused=refused, tolerance=ROUNDED)
