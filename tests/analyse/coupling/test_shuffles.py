"""Channel shuffles as permutations; depth to space and back, as operators and as reshapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

NEWEST = 26


def reshape(s: Any, a: str, shape: list[int]) -> str:
    return str(s.add("Reshape", a, s.constant(shape, dtype=np.int64)))


def shuffle(s: Any, e: Any, a: str, channels: int, groups: int) -> str:
    """[N, g c, H, W] to [N, c g, H, W], as exporters write it."""
    a = reshape(s, a, [e.batch, groups, channels // groups, e.height, e.width])
    a = s.add("Transpose", a, perm=[0, 2, 1, 3, 4])
    return reshape(s, a, [e.batch, -1, e.height, e.width])


def source(s: Any, e: Any, channels: int) -> str:
    return str(s.conv(s.input(e.image), e.source, channels, name="first"))


def operators(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("opset", [9, 13, NEWEST])
@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (6, 3), (8, 4), (4, 2), (6, 6)])
def test_a_shuffle_leaves_every_channel_free(
    sketch: Any, pruning: Any, extents: Any, opset: int, channels: int, groups: int
) -> None:
    s, e = sketch(opset), extents
    a = s.add("Relu", shuffle(s, e, source(s, e, channels), channels, groups))
    y = s.conv(a, channels, e.outer, 3, name="last")
    case = pruning.check(s.model(y), widths={"first": channels})
    result = pruning.remove(case, {"first": [1]})
    assert operators(result) == ["Conv", "Gather", "Relu", "Conv"]


def test_two_shuffles_in_a_row(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    a = source(s, e, 12)
    a = shuffle(s, e, a, 12, 3)
    a = shuffle(s, e, a, 12, 2)
    y = s.conv(a, 12, e.outer, 3, name="last")
    pruning.check(s.model(y), widths={"first": 12})


def test_a_shuffle_at_the_outputs_side_of_constants(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    # What a removed channel leaves behind is shuffled, too, on its way into the bias.
    s, e = sketch(), extents
    a = s.add("Add", source(s, e, 6), s.whole([6, 1, 1], low=1, high=9))
    y = s.conv(shuffle(s, e, a, 6, 2), 6, e.outer, name="last")
    pruning.check(s.model(y), widths={"first": 6})


def shufflenet(s: Any, e: Any) -> Any:
    """Three units: half of the channels pass by, half are worked on; Concat and shuffle mix them.

    Eight channels of 'first' and four each of three times two layers are free by themselves.
    """
    a = source(s, e, 8)
    for n in range(3):
        if s.opset < 13:
            left, right = s.add("Split", a, outputs=2, axis=1, split=[4, 4])
        else:
            sizes = s.constant([4, 4], dtype=np.int64)
            left, right = s.add("Split", a, sizes, outputs=2, axis=1)
        right = s.add("Relu", s.conv(right, 4, 4, name=f"reduce{n}"))
        right = s.conv(right, 4, 4, 3, name=f"deep{n}", group=4, pads=[1] * 4)
        right = s.add("Relu", s.conv(right, 4, 4, name=f"expand{n}"))
        a = shuffle(s, e, s.add("Concat", left, right, axis=1), 8, 2)
    return s.model(s.conv(a, 8, e.outer, name="last"))


@pytest.mark.parametrize("opset", [11, 17, NEWEST])
def test_shufflenet_units(sketch: Any, pruning: Any, extents: Any, opset: int) -> None:
    case = pruning.check(shufflenet(sketch(opset), extents))
    assert sum(case.widths.values()) == 8 + 3 * 2 * 4


def test_every_channel_of_shufflenet_units_goes_by_itself(
    sketch: Any, pruning: Any, kit: Any, extents: Any
) -> None:
    case = pruning.case(shufflenet(sketch(), extents))
    assert sum(case.widths.values()) == 8 + 3 * 2 * 4
    fed, masked = pruning.whole_feeds(case.model, case.sizes), pruning.masked(case)
    for group, width in case.widths.items():
        for channel in range(width):
            removed = {group: [channel]}
            (expected,) = kit.run(masked, {**fed, **pruning.masks(case, removed)})
            (found,) = kit.run(pruning.remove(case, removed), fed)
            np.testing.assert_array_equal(found, expected, err_msg=str(removed))


def test_a_shuffle_between_grouped_convolutions(sketch: Any, pruning: Any, extents: Any) -> None:
    # ShuffleNet v1.
    s, e = sketch(), extents
    a = source(s, e, 12)
    a = s.conv(a, 12, 12, name="squeeze", group=3)
    a = shuffle(s, e, s.add("Relu", a), 12, 3)
    a = s.conv(a, 12, 12, 3, name="deep", group=12, pads=[1] * 4)
    a = s.conv(a, 12, 12, name="expand", group=3)
    pruning.check(s.model(s.conv(a, 12, e.outer, name="last")))


@pytest.mark.parametrize("reader", ["Relu", "output"])
def test_a_shuffle_whose_middle_is_read_elsewhere(
    sketch: Any, pruning: Any, extents: Any, reader: str
) -> None:
    # Now the middle has to stay rectangular: groups of 2 or places of 3 go together.
    s, e = sketch(), extents
    a = reshape(s, source(s, e, 6), [e.batch, 2, 3, e.height, e.width])
    b = s.add("Transpose", a, perm=[0, 2, 1, 3, 4])
    b = s.conv(reshape(s, b, [e.batch, 6, e.height, e.width]), 6, e.outer, name="last")
    if reader == "output":
        pruning.check(s.model(b, a), widths={}, refused={"first": "graph's output"})
        return
    c = reshape(s, s.add(reader, a), [e.batch, 6, e.height, e.width])
    case = pruning.check(s.model(b, s.conv(c, 6, 5, name="other")), widths={"first": 3})
    assert not case.coupling.shuffles


def test_a_shuffle_over_space_is_none(sketch: Any, pruning: Any) -> None:
    # The same three nodes, but height and width are swapped inside: places in space move.
    s = sketch()
    a = s.conv(s.input([2, 3, 4, 4]), 3, 6, name="first")
    a = reshape(s, a, [2, 2, 3, 4, 4])
    a = s.add("Transpose", a, perm=[0, 2, 1, 4, 3])
    y = s.conv(reshape(s, a, [2, 6, 4, 4]), 6, 5, 3, name="last")
    case = pruning.check(s.model(y), widths={"first": 3})
    assert not case.coupling.shuffles


def test_turning_to_channels_last_and_straight_back(
    sketch: Any, pruning: Any, extents: Any
) -> None:
    s, e = sketch(), extents

    def middle(a: str) -> str:
        a = s.add("Transpose", a, perm=[0, 2, 3, 1])
        return str(s.add("Transpose", a, perm=[0, 3, 1, 2]))

    pruning.check(s.sandwich(e, middle), widths={"first": e.inner})


def test_a_shuffle_in_channels_last(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    a = s.add("Relu", s.add("Transpose", source(s, e, 6), perm=[0, 2, 3, 1]))
    a = reshape(s, a, [e.batch, e.height, e.width, 3, 2])
    a = s.add("Transpose", a, perm=[0, 1, 2, 4, 3])
    a = reshape(s, a, [e.batch, e.height, e.width, 6])
    y = s.add("MatMul", s.add("Mul", a, s.whole([6])), s.whole([6, 5]), name="last")
    pruning.check(s.model(y), widths={"first": 6})


MODES = ["DCR", "CRD"]


def depth_to_space(s: Any, a: str, block: int, mode: str) -> str:
    more = {"mode": mode} if s.opset >= 11 else {}
    return str(s.add("DepthToSpace", a, blocksize=block, **more))


@pytest.mark.parametrize(
    ("opset", "mode"), [(9, "DCR"), *((v, mode) for v in (11, 13, NEWEST) for mode in MODES)]
)
@pytest.mark.parametrize("block", [2, 3])
def test_depth_to_space(
    sketch: Any, pruning: Any, extents: Any, opset: int, mode: str, block: int
) -> None:
    s, e = sketch(opset), extents
    a = depth_to_space(s, source(s, e, 4 * block**2), block, mode)
    y = s.conv(s.add("Relu", a), 4, e.outer, 3, name="last")
    pruning.check(s.model(y), widths={"first": 4})


@pytest.mark.parametrize("mode", MODES)
def test_depth_to_space_into_one_channel_keeps_it(
    sketch: Any, pruning: Any, extents: Any, mode: str
) -> None:
    s, e = sketch(), extents
    a = depth_to_space(s, source(s, e, 4), 2, mode)
    pruning.check(
        s.model(s.conv(a, 1, e.outer, name="last")), widths={}, refused={"first": "Depth"}
    )


@pytest.mark.parametrize("mode", MODES)
def test_depth_to_space_leaves_constants_behind_that_differ_in_space(
    sketch: Any, pruning: Any, extents: Any, mode: str
) -> None:
    # The phases of a removed channel are constants of their own; only equal ones fit a bias.
    s, e = sketch(), extents
    phases = np.zeros((4, 4), np.float32)
    phases[2] = [1, 2, 3, 4]  # output channel 2
    phases[3] = 5
    line = phases.T.ravel() if mode == "DCR" else phases.ravel()
    a = s.add("Add", source(s, e, 16), s.constant(line.reshape(16, 1, 1)))
    y = s.conv(depth_to_space(s, a, 2, mode), 4, e.outer, name="last")
    case = pruning.check(s.model(y), widths={"first": 3})
    assert any("not a constant" in reason for reason in case.coupling.reasons.values())


@pytest.mark.parametrize("mode", MODES)
def test_depth_to_space_of_one_by_one(sketch: Any, pruning: Any, extents: Any, mode: str) -> None:
    s, e = sketch(), extents
    a = depth_to_space(s, source(s, e, 6), 1, mode)
    pruning.check(s.model(s.conv(a, 6, e.outer, name="last")), widths={"first": 6})


def test_enlarging_by_copies_and_depth_to_space(sketch: Any, pruning: Any, extents: Any) -> None:
    # Mobile super-resolution: four copies of the channels become four equal pixels.
    s, e = sketch(), extents
    a = source(s, e, 3)
    big = depth_to_space(s, s.add("Concat", a, a, a, a, axis=1), 2, "DCR")
    pruning.check(s.model(s.conv(big, 3, e.outer, name="last")), widths={"first": 3})


def test_residual_to_copies_before_depth_to_space(sketch: Any, pruning: Any, extents: Any) -> None:
    s, e = sketch(), extents
    a = source(s, e, 3)
    copies = s.add("Concat", a, a, a, a, axis=1)
    detail = s.conv(s.add("Relu", a), 3, 12, 3, name="detail", pads=[1] * 4)
    big = depth_to_space(s, s.add("Add", copies, detail), 2, "DCR")
    pruning.check(s.model(s.conv(big, 3, e.outer, name="last")), widths={"first": 3})


@pytest.mark.parametrize("opset", [9, 13, NEWEST])
def test_space_to_depth(sketch: Any, pruning: Any, opset: int) -> None:
    for shape, inner in (([2, 3, 6, 8], 5), ([4, 4, 4, 4], 4)):
        s = sketch(opset)
        a = s.conv(s.input(shape), shape[1], inner, name="first")
        a = s.add("SpaceToDepth", a, blocksize=2)
        y = s.conv(a, 4 * inner, 5, 2, name="last")
        pruning.check(s.model(y), widths={"first": inner})


def test_space_to_depth_and_back(sketch: Any, pruning: Any) -> None:
    s = sketch()
    a = s.conv(s.input([2, 3, 4, 8]), 3, 6, name="first")
    a = s.add("Relu", s.add("SpaceToDepth", a, blocksize=2))
    y = s.conv(depth_to_space(s, a, 2, "DCR"), 6, 5, name="last")
    pruning.check(s.model(y), widths={"first": 6})


@pytest.mark.parametrize("opset", [9, 17, NEWEST])
@pytest.mark.parametrize("mode", MODES)
def test_pixel_shuffle_by_reshapes(
    sketch: Any, pruning: Any, extents: Any, opset: int, mode: str
) -> None:
    s, e, c = sketch(opset), extents, 4
    a = source(s, e, 4 * c)
    if mode == "CRD":
        a = reshape(s, a, [e.batch, c, 2, 2, e.height, e.width])
        a = s.add("Transpose", a, perm=[0, 1, 4, 2, 5, 3])
    else:
        a = reshape(s, a, [e.batch, 2, 2, c, e.height, e.width])
        a = s.add("Transpose", a, perm=[0, 3, 4, 1, 5, 2])
    a = reshape(s, a, [e.batch, c, 2 * e.height, 2 * e.width])
    y = s.conv(s.add("Relu", a), c, e.outer, 3, name="last")
    pruning.check(s.model(y), widths={"first": c})


@pytest.mark.parametrize("inferred", [False, True])
def test_pixel_unshuffle_by_reshapes(sketch: Any, pruning: Any, *, inferred: bool) -> None:
    for shape, c in (([2, 3, 6, 8], 5), ([4, 4, 4, 4], 4)):
        s, (n, source_channels, h, w) = sketch(), shape
        a = s.conv(s.input(shape), source_channels, c, name="first")
        a = reshape(s, a, [n, c, h // 2, 2, w // 2, 2])
        a = s.add("Transpose", a, perm=[0, 1, 3, 5, 2, 4])
        a = reshape(s, a, [n, -1 if inferred else 4 * c, h // 2, w // 2])
        pruning.check(s.model(s.conv(a, 4 * c, 5, 2, name="last")), widths={"first": c})
