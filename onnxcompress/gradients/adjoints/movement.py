"""Operators that move elements: the gradient goes back the way the values came."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxcompress.errors import GradientError
from onnxcompress.gradients.step import Adjoint, Step


def reshape(step: Step) -> Mapping[int, str]:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    step.only(0)
    return {0: step.reshape(step.dy, step.shape(step.x))}


def transpose(step: Step) -> Mapping[int, str]:
    """The inverse permutation."""
    rank = len(step.shape(step.x))
    order = list(step.attributes.get("perm", range(rank)[::-1]))
    return {0: step.emit.op("Transpose", step.dy, perm=[order.index(a) for a in range(rank)])}


def concat(step: Step) -> Mapping[int, str]:
    """Every operand gets its own slice."""
    axis = int(step.attributes["axis"]) % len(step.shape(step.y))
    found: dict[int, str] = {}
    start = 0
    sizes = step.emit.sizes
    for index, name in enumerate(step.node.input):
        stop = start + step.shape(name)[axis]
        if index in step.wanted:
            found[index] = step.emit.op(
                "Slice", step.dy, sizes([start]), sizes([stop]), sizes([axis])
            )
        start = stop
    return found


def split(step: Step) -> Mapping[int, str]:
    """The parts side by side; zeros for those that nobody reads."""
    axis = int(step.attributes.get("axis", 0)) % len(step.shape(step.x))
    parts = []
    for name, gradient in zip(step.node.output, step.cotangents, strict=True):
        if not name:
            raise GradientError("an output without a name has no size")
        parts.append(gradient or step.zeros(step.shape(name)))
    return {0: step.emit.op("Concat", *parts, axis=axis)}


def slice_(step: Step) -> Mapping[int, str]:
    """Zeros around a contiguous part; else element by element along each axis."""
    step.only(0)
    shape = step.shape(step.x)
    starts, ends = step.value(1).tolist(), step.value(2).tolist()
    named = step.value(3).tolist() if step.has(3) else list(range(len(starts)))
    axes = [axis % len(shape) for axis in named]
    steps = step.value(4).tolist() if step.has(4) else [1] * len(starts)
    gradient = step.dy
    before, behind = [0] * len(shape), [0] * len(shape)
    for axis, start, end, stride in zip(axes, starts, ends, steps, strict=True):
        taken = _taken(start, end, stride, shape[axis])
        if not len(taken):
            return {0: step.zeros(shape)}
        if stride == 1:
            before[axis] = int(taken[0])
            behind[axis] = shape[axis] - 1 - int(taken[-1])
        else:
            gradient = put_back(step, gradient, axis, taken, shape[axis])
    if any(before + behind):
        pads = step.emit.sizes([*before, *behind])
        gradient = step.emit.op("Pad", gradient, pads, step.number(0.0))
    return {0: gradient}


def _taken(start: int, end: int, stride: int, extent: int) -> NDArray[np.int64]:
    """The indices that Slice takes along an axis; unlike in NumPy, a start is clamped inside."""
    start, end = (at + extent if at < 0 else at for at in (start, end))
    if stride > 0:
        return np.arange(min(max(start, 0), extent), min(max(end, 0), extent), stride)
    return np.arange(min(max(start, 0), extent - 1), min(max(end, -1), extent - 1), stride)


def gather(step: Step) -> Mapping[int, str]:
    """Of constant indices along one axis."""
    step.only(0)
    shape = step.shape(step.x)
    axis = int(step.attributes.get("axis", 0)) % len(shape)
    indices = np.asarray(step.value(1), dtype=np.int64)
    if not indices.size:
        return {0: step.zeros(shape)}
    flat = step.dy
    if indices.ndim != 1:
        flat = step.reshape(flat, [*shape[:axis], indices.size, *shape[axis + 1 :]])
    return {0: put_back(step, flat, axis, indices.ravel(), shape[axis])}


def put_back(step: Step, gradient: str, axis: int, indices: NDArray[np.int64], extent: int) -> str:
    """Add slice i of a gradient to position indices[i] along an axis of `extent`.

    A Gather from the gradient with one slice of zeros behind it; as often as the most frequent
    index occurs.
    """
    wrapped = np.where(indices < 0, indices + extent, indices)
    rank = len(step.shape(step.x))
    pads = [0] * (2 * rank)
    pads[rank + axis] = 1
    padded = step.emit.op("Pad", gradient, step.emit.sizes(pads), step.number(0.0))
    rounds: list[NDArray[np.int64]] = []
    seen: dict[int, int] = {}
    for at, index in enumerate(wrapped.tolist()):
        turn = seen.get(index, 0)
        seen[index] = turn + 1
        if turn == len(rounds):
            rounds.append(np.full(extent, len(wrapped), dtype=np.int64))
        rounds[turn][index] = at
    parts = [step.emit.op("Gather", padded, step.emit.constant(r), axis=axis) for r in rounds]
    return parts[0] if len(parts) == 1 else step.emit.op("Sum", *parts)


def pad(step: Step) -> Mapping[int, str]:
    """Constant pads take no gradient; copied borders give theirs back to where they came from."""
    step.only(0)
    shape, rank = step.shape(step.x), len(step.shape(step.x))
    given = step.value(1).tolist()
    named = step.value(3).tolist() if step.has(3) else list(range(rank))
    axes = [axis % rank for axis in named]
    mode = str(step.attributes.get("mode", "constant") or "constant")
    before, behind = [0] * rank, [0] * rank
    for at, axis in enumerate(axes):
        before[axis], behind[axis] = given[at], given[at + len(axes)]
    if mode == "constant":
        pads = step.emit.sizes([-p for p in (*before, *behind)])
        return {0: step.emit.op("Pad", step.dy, pads, step.number(0.0))}
    if mode not in {"edge", "reflect", "wrap"} or min(before + behind) < 0:
        raise GradientError(f"mode {mode} with pads {given}")
    gradient = step.dy
    for axis in range(rank):
        if before[axis] or behind[axis]:
            line = np.arange(shape[axis])
            widths = (before[axis], behind[axis])
            taken = np.pad(line, widths, mode=mode)  # type: ignore[call-overload]
            gradient = put_back(step, gradient, axis, taken, shape[axis])
    return {0: gradient}


def expand(step: Step) -> Mapping[int, str]:
    """The sum over what was repeated."""
    step.only(0)
    return {0: step.within(step.dy, step.shape(step.y), 0)}


def tile(step: Step) -> Mapping[int, str]:
    """The sum over the copies."""
    step.only(0)
    pairs = zip(step.value(1).tolist(), step.shape(step.x), strict=True)
    split_up = [extent for pair in pairs for extent in pair]
    wide = step.reshape(step.dy, split_up)
    return {0: step.total(wide, range(0, len(split_up), 2), keepdims=False)}


def cumulative_sum(step: Step) -> Mapping[int, str]:
    """The sum from the other end."""
    step.only(0)
    backwards = 1 - int(step.attributes.get("reverse", 0))
    exclusive = int(step.attributes.get("exclusive", 0))
    axis = step.node.input[1]
    return {0: step.op("CumSum", step.dy, axis, exclusive=exclusive, reverse=backwards)}


def depth_to_space(step: Step) -> Mapping[int, str]:
    """[N,C,H,W] to [N,C/b/b,Hb,Wb]: blocks and channels change places."""
    n, c, h, w = step.shape(step.x)
    b = int(step.attributes["blocksize"])
    apart = step.reshape(step.dy, [n, c // (b * b), h, b, w, b])
    rows_first = str(step.attributes.get("mode", "DCR") or "DCR") == "CRD"
    order = [0, 1, 3, 5, 2, 4] if rows_first else [0, 3, 5, 1, 2, 4]
    moved = step.emit.op("Transpose", apart, perm=order)
    return {0: step.reshape(moved, [n, c, h, w])}


def space_to_depth(step: Step) -> Mapping[int, str]:
    """[N,C,Hb,Wb] to [N,Cbb,H,W]."""
    n, c, height, width = step.shape(step.x)
    b = int(step.attributes["blocksize"])
    apart = step.reshape(step.dy, [n, b, b, c, height // b, width // b])
    moved = step.emit.op("Transpose", apart, perm=[0, 3, 4, 1, 5, 2])
    return {0: step.reshape(moved, [n, c, height, width])}


MOVEMENT: Mapping[str, Adjoint] = {
    "Concat": concat,
    "CumSum": cumulative_sum,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": reshape,
    "Gather": gather,
    "Pad": pad,
    "Reshape": reshape,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": reshape,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": reshape,
}
