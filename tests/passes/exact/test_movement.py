"""Slices, pads and shuffles written as one layer: the same numbers, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcompress.graph.view import GraphView, attributes

# Extents: 3 samples; distinct (4 channels, 6 x 8), or all equal to 4.
SIZES = [(4, 6, 8), (4, 4, 4)]


def option_a(channels: int, height: int, width: int, pads: str, more: int) -> str:
    rows, columns = -(-height // 2), -(-width // 2)
    return f"""net (float[N, {channels}, {height}, {width}] x)
            => (float[N, {channels + more}, {rows}, {columns}] y)
        <int64[2] at = {{0, 0}}, int64[2] to = {{{height}, {width}}}, int64[2] axes = {{2, 3}},
         int64[2] by = {{2, 2}}, int64[8] pads = {{{pads}}}> {{
        [slice] a = Slice (x, at, to, axes, by)
        [pad] y = Pad (a, pads) }}"""


@pytest.mark.parametrize("size", [*SIZES, (4, 5, 7)])
@pytest.mark.parametrize(("pads", "more"), [("0,2,0,0,0,2,0,0", 4), ("0,1,0,0,0,0,0,0", 1)])
def test_a_shortcut(
    bench: Any, nets: Any, kit: Any, size: tuple[int, ...], pads: str, more: int
) -> None:
    """Every second pixel, and new channels on either side."""
    model = nets.build(option_a(*size, pads, more))
    result = bench.checked(model)
    assert kit.operators(result) == ["Conv"]
    assert attributes(result.graph.node[0])["strides"] == [2, 2]


def test_a_shortcut_in_two_slices(bench: Any, nets: Any, kit: Any) -> None:
    """One axis after the other, each from its second pixel on."""
    model = nets.build(
        """net (float[N, 4, 6, 9] x) => (float[N, 5, 3, 3] y)
        <int64[1] one = {1}, int64[1] far = {99}, int64[1] two = {2}, int64[1] three = {3},
         int64[8] pads = {0,0,0,0,0,1,0,0}> {
        [rows] a = Slice (x, one, far, two, two)
        [columns] b = Slice (a, one, far, three, three)
        [pad] y = Pad (b, pads) }"""
    )
    result = bench.checked(model)
    assert kit.operators(result) == ["Conv"]
    assert attributes(result.graph.node[0])["kernel_shape"] == [2, 2]


def test_without_new_channels_it_is_a_pool(bench: Any, nets: Any, kit: Any) -> None:
    model = nets.build(
        """net (float[N, 4, 6, 8] x) => (float[N, 4, 3, 8] y)
        <int64[1] at = {0}, int64[1] to = {6}, int64[1] axis = {2}, int64[1] by = {2}> {
        [slice] y = Slice (x, at, to, axis, by) }"""
    )
    assert kit.operators(bench.checked(model)) == ["MaxPool"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (option_a(4, 6, 8, "0,2,1,0,0,2,0,0", 4).replace("float[N, 8, 3", "float[N, 8, 4"), "rows"),
        (option_a(4, 6, 8, "0,2,0,0,0,2,0,0", 4).replace("{6, 8}", "{4, 8}")
         .replace("float[N, 8, 3", "float[N, 8, 2"), "ends early"),
        (option_a(4, 6, 8, "0,2,0,0,0,2,0,0", 4).replace("by = {2, 2}", "by = {1, 1}")
         .replace("N, 8, 3, 4", "N, 8, 6, 8"), "no stride"),
    ],
)  # fmt: skip
def test_no_shortcut(bench: Any, nets: Any, text: str, why: str) -> None:
    assert bench.kinds(nets.build(text)) == [], why


def test_padding_with_other_numbers_stays(bench: Any, nets: Any) -> None:
    text = option_a(4, 6, 8, "0,2,0,0,0,2,0,0", 4)
    text = text.replace("by = {2, 2},", "by = {2, 2}, float fill = {1.0},")
    assert bench.kinds(nets.build(text.replace("(a, pads)", "(a, pads, fill)"))) == []


def test_what_others_read_as_well_stays(bench: Any, nets: Any) -> None:
    text = option_a(4, 6, 8, "0,2,0,0,0,2,0,0", 4)
    text = text.replace("=> (float", "=> (float[N, 4, 3, 4] z, float")
    model = nets.build(text.replace("[pad]", "[also] z = Relu (a)\n[pad]"))
    # The slice alone is still a pool; pad and slice together are no layer.
    assert [c.setting.nodes for c in bench.offers(model)] == [("slice",)]
    bench.checked(model)


@pytest.mark.parametrize("own", ["", ", pads = [1, 0, 2, 1]"])
@pytest.mark.parametrize("size", SIZES)
def test_padding(bench: Any, nets: Any, kit: Any, size: tuple[int, ...], own: str) -> None:
    """Zeros that a Pad puts around are padding of the convolution, besides what it has."""
    c, h, w = size
    extra = (3, 1) if own else (0, 0)
    model = nets.build(
        f"""net (float[N, {c}, {h}, {w}] x) => (float[N, 5, {h + extra[0]}, {w + extra[1] + 1}] y)
        <int64[8] pads = {{0,0,2,1,0,0,0,2}}> {{
        [pad] a = Pad (x, pads)
        [conv] y = Conv <kernel_shape = [3, 3]{own}> (a, w, b) }}""",
        w=kit.whole((5, c, 3, 3), seed=1),
        b=kit.whole((5,), seed=2),
    )
    result = bench.checked(model)
    assert kit.operators(result) == ["Conv"]
    assert bench.kinds(model) == ["padding"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("{0,0,2,1,0,0,0,2}", "{0,1,2,1,0,0,0,2}"),
        lambda text: text.replace("Pad (x", 'Pad <mode = "edge"> (x'),
        lambda text: text.replace("kernel_shape", 'auto_pad = "SAME_UPPER", kernel_shape'),
        lambda text: text.replace("{0,0,2,1,0,0,0,2}", "{0,0,2,-1,0,0,0,2}"),
    ],
    ids=["channels", "edge", "auto_pad", "negative"],
)
def test_no_padding(bench: Any, nets: Any, change: Any) -> None:
    text = """net (float[N, 4, 6, 8] x) => (float[N, 5, P, Q] y)
        <int64[8] pads = {0,0,2,1,0,0,0,2}> {
        [pad] a = Pad (x, pads)
        [conv] y = Conv <kernel_shape = [3, 3]> (a, w) }"""
    changed = change(text)
    model = nets.build(changed, w=(5, 5 if "{0,1" in changed else 4, 3, 3))
    assert bench.kinds(model) == []


PHASES = {"tl": (0, 0), "bl": (1, 0), "tr": (0, 1), "br": (1, 1)}


def focus(kernel: int, pads: str, order: list[str], size: tuple[int, int, int]) -> str:
    c, h, w = size
    slices = "".join(
        f"[{name}] {name} = Slice (x, s{i}{j}, far, axes, by)\n"
        for name, (i, j) in PHASES.items()
        if name in order
    )
    return f"""net (float[N, {c}, {h}, {w}] x) => (float[N, 5, P, Q] y)
        <int64[2] s00 = {{0, 0}}, int64[2] s10 = {{1, 0}}, int64[2] s01 = {{0, 1}},
         int64[2] s11 = {{1, 1}}, int64[2] far = {{9999, 9999}}, int64[2] axes = {{2, 3}},
         int64[2] by = {{2, 2}}> {{
        {slices}
        [join] a = Concat <axis = 1> ({", ".join(order)})
        [conv] y = Conv <kernel_shape = [{kernel}, {kernel}]{pads}> (a, w, b) }}"""


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("kernel", "pads"),
    [
        (3, ", pads = [1, 1, 1, 1]"),
        (1, ""),
        (2, ", pads = [1, 0, 0, 2], strides = [2, 1]"),
        (3, ", pads = [2, 1, 1, 0]"),
    ],
)
@pytest.mark.parametrize("order", [list(PHASES), ["br", "tl"], ["tl", "tr", "bl"]])
def test_focus(
    bench: Any, nets: Any, kit: Any, kernel: int, pads: str, order: list[str], size: Any
) -> None:
    """Phases of the pixels in any order, and some of them missing."""
    model = nets.build(
        focus(kernel, pads, order, size),
        w=kit.whole((5, size[0] * len(order), kernel, kernel), seed=1),
        b=kit.whole((5,), seed=2),
    )
    result = bench.checked(model)
    assert kit.operators(result) == ["Conv"]
    weight = GraphView(result).array(result.graph.node[0].input[1])
    assert weight.shape == (5, size[0], 2 * kernel, 2 * kernel)


def test_focus_of_odd_images_stays(bench: Any, nets: Any) -> None:
    """The last row belongs to one phase only: behind it would be padding."""
    model = nets.build(focus(3, "", ["tl", "tr"], (4, 7, 8)), w=(5, 8, 3, 3), b=(5,))
    assert "focus" not in bench.kinds(model)


@pytest.mark.parametrize("mode", ["CRD", "DCR"])
@pytest.mark.parametrize("size", [(12, 4, 5, 2), (18, 3, 3, 3), (16, 2, 2, 2)])
def test_a_pixel_shuffle(bench: Any, nets: Any, kit: Any, mode: str, size: tuple[int, ...]) -> None:
    c, h, w, r = size
    depth = c // r**2
    inner = [depth, r, r] if mode == "CRD" else [r, r, depth]
    perm = [0, 1, 4, 2, 5, 3] if mode == "CRD" else [0, 3, 4, 1, 5, 2]
    model = nets.build(
        f"""net (float[N, {c}, {h}, {w}] x) => (float[N, {depth}, {h * r}, {w * r}] y) {{
        [apart] a = Reshape (x, six)
        [turn] b = Transpose <perm = {perm}> (a)
        [join] y = Reshape (b, four) }}""",
        six=np.array([-1, *inner, h, w]),
        four=np.array([-1, depth, h * r, w * r]),
    )
    result = bench.checked(model)
    assert kit.operators(result) == ["DepthToSpace"]
    assert bench.kinds(model) == ["shuffle"]


def test_a_channel_shuffle_is_none(bench: Any, nets: Any) -> None:
    model = nets.build(
        """net (float[N, 6, 4, 5] x) => (float[N, 6, 4, 5] y) {
        [apart] a = Reshape (x, five)
        [turn] b = Transpose <perm = [0, 2, 1, 3, 4]> (a)
        [join] y = Reshape (b, four) }""",
        five=np.array([-1, 2, 3, 4, 5]),
        four=np.array([-1, 6, 4, 5]),
    )
    assert bench.kinds(model) == []
