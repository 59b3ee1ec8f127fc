"""Sizes of a tensor that are used elsewhere: what loses channels there must not break it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

# A sum of at most 54 products of numbers that are no binary fractions, in another order.
ROUNDED = 54 * 2.0**-24
INT = {"dtype": np.int64}
FOLDED = pytest.mark.parametrize("fold", [False, True], ids=["as is", "folded"])
BATCHES = [{"x": (1, 3, 4, 6)}, {"x": (3, 3, 8, 4)}, {"x": (6, 3, 6, 6)}]


def numbers(s: Any, *values: int) -> str:
    return str(s.constant(list(values), **INT))


def size(s: Any, a: str, axis: int) -> str:
    """One extent of a tensor, as exporters take it from Shape."""
    return str(s.add("Gather", s.add("Shape", a), numbers(s, axis), axis=0))


def start(s: Any, channels: int = 6) -> tuple[str, str]:
    x = s.input(["n", 3, "h", "w"])
    return x, str(s.conv(x, 3, channels, name="first"))


def check(pruning: Any, s: Any, y: str, widths: Any, *, fold: bool = False, **more: Any) -> Any:
    """Compare at a size that the model was coupled at, and at two others."""
    rank = more.pop("rank", 4)
    model = s.model(y, **{y: ["n", *(f"d{i}" for i in range(1, rank))]})
    more.setdefault("tolerance", ROUNDED)
    return pruning.check(
        model,
        widths=widths,
        sizes=BATCHES[0],
        also=BATCHES[1:] if widths else (),
        fold_constants=fold,
        **more,
    )


def declined_or_exact(pruning: Any, s: Any, y: str, *, fold: bool) -> None:
    """Either nothing is cut, with a reason that speaks of the size, or the law holds."""
    model = s.model(y, **{y: ["n", "c", "h", "w"]})
    case = pruning.case(model, sizes=BATCHES[0], fold_constants=fold)
    if case.widths:
        pruning.assert_exact(case, also=BATCHES[1:], tolerance=ROUNDED)
    else:
        reason = case.coupling.refusals["first"]
        assert any(word in reason for word in ("size", "Shape", "samples")), reason


@FOLDED
@pytest.mark.parametrize("channels", ["followed", "written down"])
def test_resize_to_a_size_that_cannot_be_traced(
    sketch: Any, pruning: Any, channels: str, *, fold: bool
) -> None:
    # The extents in space are worked out in floating point; the channels follow, or stand there.
    s = sketch()
    _, a = start(s)
    real = s.add("Cast", s.add("Shape", a, start=2), to=1)
    space = s.add("Cast", s.add("Floor", s.add("Mul", real, s.constant(1.5))), to=7)
    mine = numbers(s, 6) if channels == "written down" else size(s, a, 1)
    sizes = s.add("Concat", size(s, a, 0), mine, space, axis=0)
    y = s.conv(s.add("Resize", a, "", "", sizes, name="big", mode="nearest"), 6, 5, name="last")
    if channels == "followed" and not fold:
        check(pruning, s, y, {"first": 6})
    else:
        # Folding may write the channels down, too.
        declined_or_exact(pruning, s, y, fold=fold)


@pytest.mark.parametrize("channels", ["followed", "written down"])
def test_resize_by_two_factors_at_once(sketch: Any, pruning: Any, channels: str) -> None:
    s = sketch()
    _, a = start(s)
    space = s.add("Mul", s.add("Shape", a, start=2), numbers(s, 2, 3))
    mine = numbers(s, 6) if channels == "written down" else size(s, a, 1)
    sizes = s.add("Concat", size(s, a, 0), mine, space, axis=0)
    y = s.conv(s.add("Resize", a, "", "", sizes, name="big", mode="nearest"), 6, 5, name="last")
    declined_or_exact(pruning, s, y, fold=False)


def test_expand_to_the_shape_of_a_stranger_is_declined(sketch: Any, pruning: Any) -> None:
    # As many channels, but others: neither may lose any, as their number would no longer agree.
    s = sketch()
    x, a = start(s)
    other = s.conv(x, 3, 6, name="other")
    gate = s.conv(s.add("GlobalMaxPool", a), 6, 6, name="gate")
    spread = s.conv(s.add("Expand", gate, s.add("Shape", other), name="spread"), 6, 4, name="last")
    y = s.add("Concat", spread, s.conv(other, 6, 4, name="more"), axis=1)
    said = {"gate": ["Expand 'spread'", "size at run time"], "other": "spread"}
    check(pruning, s, y, {"first": 6}, refused=said)


def test_tile_by_the_channels_of_a_stranger_is_declined(sketch: Any, pruning: Any) -> None:
    # As many rows as another tensor has channels: that one must keep them.
    s = sketch()
    x, a = start(s)
    other = s.conv(x, 3, 6, name="other")
    gate = s.conv(s.add("GlobalMaxPool", a), 6, 6, name="gate")
    repeats = s.add("Concat", numbers(s, 1, 1), size(s, other, 1), numbers(s, 1), axis=0)
    rows = s.conv(s.add("Tile", gate, repeats, name="tile"), 6, 4, name="last")
    pooled = s.add("GlobalMaxPool", s.conv(other, 6, 4, name="more"))
    y = s.add("Add", rows, pooled)
    said = {"other": "tile"}
    check(pruning, s, y, None, refused=said)


@FOLDED
def test_zeros_as_wide_as_a_tensor(sketch: Any, pruning: Any, *, fold: bool) -> None:
    # They shrink along with the channels, and the layer behind would have to follow.
    s = sketch()
    _, a = start(s)
    zeros = s.add("ConstantOfShape", s.add("Shape", a))
    y = s.conv(s.add("Concat", a, zeros, axis=1), 12, 5, name="last")
    declined_or_exact(pruning, s, y, fold=fold)


@FOLDED
def test_a_constant_expanded_as_wide_as_a_tensor(sketch: Any, pruning: Any, *, fold: bool) -> None:
    s = sketch()
    _, a = start(s)
    wide = s.add("Expand", s.constant([[[[2.0]]]]), s.add("Shape", a))
    y = s.conv(s.add("Concat", a, wide, axis=1), 12, 5, name="last")
    declined_or_exact(pruning, s, y, fold=fold)


@FOLDED
def test_a_number_of_channels_that_is_computed_with(
    sketch: Any, pruning: Any, *, fold: bool
) -> None:
    # x / C: with channels gone C is another number, but the zeroed original divides by the old.
    s = sketch()
    _, a = start(s)
    count = s.add("Cast", size(s, a, 1), to=1)
    y = s.conv(s.add("Div", a, count), 6, 5, name="last")
    declined_or_exact(pruning, s, y, fold=fold)


def test_a_number_of_channels_that_is_an_output(sketch: Any, pruning: Any) -> None:
    s = sketch()
    _, a = start(s)
    shape = s.add("Shape", a)
    y = s.conv(a, 6, 5, name="last")
    model = s.model(y, shape)
    pruning.check(model, widths={}, refused={"first": "output"}, sizes=BATCHES[0])


def test_an_input_that_is_reshaped_by_a_number_of_channels(sketch: Any, pruning: Any) -> None:
    s = sketch()
    _, a = start(s)
    rows = s.add("Concat", size(s, a, 1), numbers(s, -1), axis=0)
    turned = s.add("Reshape", s.input([6, 4], "z"), rows, name="turned")
    y = s.conv(a, 6, 5, name="last")
    model = s.model(y, turned, **{y: ["n", "c", "h", "w"], turned: ["a", "b"]})
    sizes = {**BATCHES[0], "z": (6, 4)}
    pruning.check(model, widths={}, refused={"first": "turned"}, sizes=sizes)


def test_pairs_that_return_to_the_shape_they_came_from(sketch: Any, pruning: Any) -> None:
    # Pairs of channels become samples, and a convolution puts others in their place: the channels
    # that go away in front of it are still counted behind it.
    s = sketch()
    _, a = start(s)
    pairs = s.add("Concat", numbers(s, -1, 2), size(s, a, 2), size(s, a, 3), axis=0)
    b = s.conv(s.add("Reshape", a, pairs), 2, 2, name="pairs")
    y = s.conv(s.add("Reshape", b, s.add("Shape", a), name="back"), 6, 5, name="last")
    declined_or_exact(pruning, s, y, fold=False)


def test_samples_and_channels_that_are_mixed(sketch: Any, pruning: Any) -> None:
    # At the one sample that it is coupled at, this looks like a shuffle that changes nothing; at
    # three, channels and samples change places.
    s = sketch()
    _, a = start(s)
    mixed = s.add("Concat", numbers(s, 6, -1), size(s, a, 2), size(s, a, 3), axis=0)
    b = s.add("Transpose", s.add("Reshape", a, mixed), perm=[1, 0, 2, 3])
    y = s.conv(b, 6, 5, name="last")
    model = s.model(y, **{y: ["n", "c", "h", "w"]})
    case = pruning.case(model, sizes=BATCHES[0])
    pruning.assert_exact(case, also=BATCHES[1:])
