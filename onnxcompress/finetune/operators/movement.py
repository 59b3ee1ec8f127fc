"""Operators that move elements, and those that deal with shapes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional

from onnxcompress.finetune.operators.call import (
    Call,
    Operator,
    UnsupportedError,
    as_tensor,
    torch_type,
)

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def reshape(call: Call) -> torch.Tensor:
    """Reshape; a zero keeps the extent, unless `allowzero` is set."""
    sizes = call.integers(1, "shape") or []
    if not call.get("allowzero", 0):
        sizes = [call.x.shape[at] if size == 0 else size for at, size in enumerate(sizes)]
    return call.x.reshape(sizes)


def flatten(call: Call) -> torch.Tensor:
    """Flatten to two axes."""
    axis = call.get("axis", 1)
    axis = axis + call.x.dim() if axis < 0 else axis
    rows = math.prod(call.x.shape[:axis])
    return call.x.reshape(rows, math.prod(call.x.shape[axis:]))


def squeeze(call: Call) -> torch.Tensor:
    """Squeeze."""
    axes = call.integers(1, "axes")
    if axes is None:
        return call.x.squeeze()
    return call.x.squeeze([a % call.x.dim() for a in axes])


def unsqueeze(call: Call) -> torch.Tensor:
    """Unsqueeze."""
    axes = call.integers(1, "axes") or []
    rank = call.x.dim() + len(axes)
    x = call.x
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def transpose(call: Call) -> torch.Tensor:
    """Transpose; without `perm` the axes in reverse."""
    return call.x.permute(call.get("perm") or tuple(reversed(range(call.x.dim()))))


def concat(call: Call) -> torch.Tensor:
    """Concat."""
    return torch.cat([call.input(at) for at in range(len(call.inputs))], call.axis(1))


def split(call: Call) -> list[torch.Tensor]:
    """Split, into given or equal parts."""
    axis = call.axis(0)
    extent = call.x.shape[axis]
    sizes = call.integers(1, "split")
    if sizes is None:
        count = call.get("num_outputs", len(call.node.output))
        each = -(-extent // count)
        sizes = [max(0, min(each, extent - each * at)) for at in range(count)]
    return list(torch.split(call.x, sizes, axis))


def slices(call: Call) -> torch.Tensor:
    """Slice, with steps of either sign."""
    starts, ends = call.integers(1, "starts") or [], call.integers(2, "ends") or []
    axes = call.integers(3, "axes") or list(range(len(starts)))
    steps = call.integers(4) or [1] * len(starts)
    x = call.x
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        extent = x.shape[axis]
        taken = range(*slice(start, _end(end, extent, step), step).indices(extent))
        if step == 1:
            x = x.narrow(axis, taken.start if len(taken) else 0, len(taken))
        else:
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.long, device=x.device))
    return x


def _end(end: int, extent: int, step: int) -> int | None:
    """Where a slice ends as Python has it: before the first element is None."""
    return None if step < 0 and end < -extent else end


def expand(call: Call) -> torch.Tensor:
    """Expand; both sides are broadcast."""
    sizes = np.broadcast_shapes(tuple(call.x.shape), tuple(call.integers(1) or []))
    return call.x.broadcast_to(sizes)


def pad(call: Call) -> torch.Tensor:
    """Pad; negative padding cuts."""
    mode = call.get("mode", "constant")
    amounts = call.integers(1, "pads") or []
    axes = call.integers(3) or list(range(len(amounts) // 2))
    sides = [(0, 0)] * call.x.dim()
    for at, axis in enumerate(axes):
        sides[axis] = (amounts[at], amounts[len(axes) + at])
    if mode not in _PAD_MODES:
        raise UnsupportedError(f"mode {mode} is not known")
    if mode == "constant":
        value = call.number(2, "value", 0.0)
        return functional.pad(call.x, [n for side in reversed(sides) for n in side], value=value)
    return _mirrored(call.x, sides, mode)


def _mirrored(x: torch.Tensor, sides: list[tuple[int, int]], mode: str) -> torch.Tensor:
    """Padding that repeats what is there, axis by axis through the places it is taken from."""
    for axis, (begin, end) in enumerate(sides):
        if not begin and not end:
            continue
        extent = x.shape[axis]
        places = torch.arange(-begin, extent + end, device=x.device)
        if mode == "edge":
            places = places.clamp(0, extent - 1)
        elif mode == "wrap":
            places = places % extent
        else:
            period = max(1, 2 * (extent - 1))
            places = places % period
            places = torch.minimum(places, period - places)
        x = x.index_select(axis, places)
    return x


def depth_to_space(call: Call) -> torch.Tensor:
    """DepthToSpace in either order."""
    block, (n, c, h, w) = call.get("blocksize"), call.x.shape
    if call.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(call.x, block)
    parts = call.x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(call: Call) -> torch.Tensor:
    """SpaceToDepth in either order."""
    block, (n, c, h, w) = call.get("blocksize"), call.x.shape
    if call.get("mode", "DCR") == "CRD":
        return functional.pixel_unshuffle(call.x, block)
    parts = call.x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


def shape(call: Call) -> torch.Tensor:
    """Shape, or a part of it."""
    sizes = list(call.x.shape)
    return torch.tensor(sizes[call.get("start", 0) : call.get("end")], dtype=torch.int64)


def constant_of_shape(call: Call) -> torch.Tensor:
    """ConstantOfShape."""
    given = call.get("value")
    value = as_tensor(given).reshape(()) if given is not None else torch.tensor(0.0)
    return torch.full(call.integers(0) or [], value.item(), dtype=value.dtype, device=call.device)


def constant(call: Call) -> torch.Tensor:
    """Constant of every kind but texts and sparse tensors."""
    for name, kind in (("value_float", torch.float32), ("value_int", torch.int64)):
        for given in (name, f"{name}s"):
            if call.get(given) is not None:
                return torch.tensor(call.get(given), dtype=kind)
    if call.get("value") is None:
        raise UnsupportedError("it holds texts or a sparse tensor")
    return as_tensor(call.get("value"))


def arange(call: Call) -> torch.Tensor:
    """Range."""
    start, limit, step = (call.input(at).item() for at in range(3))
    return torch.arange(start, limit, step, dtype=call.x.dtype, device=call.device)


def triangle(call: Call) -> torch.Tensor:
    """Trilu."""
    offset = int(call.input(1).item()) if call.has(1) else 0
    return (torch.triu if call.get("upper", 1) else torch.tril)(call.x, offset)


def eye_like(call: Call) -> torch.Tensor:
    """EyeLike."""
    kind = torch_type(call.get("dtype")) if call.get("dtype") is not None else call.x.dtype
    rows, columns = call.x.shape
    ones = torch.ones(rows, columns, dtype=kind, device=call.device)
    return ones.triu(call.get("k", 0)).tril(call.get("k", 0))


def tile(call: Call) -> torch.Tensor:
    """Tile."""
    return call.x.repeat(call.integers(1) or [])


OPERATORS: dict[str, Operator] = {
    "Concat": concat,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "Pad": pad,
    "Range": arange,
    "Reshape": reshape,
    "Shape": shape,
    "Size": lambda call: torch.tensor(call.x.numel(), dtype=torch.int64),
    "Slice": slices,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": triangle,
    "Unsqueeze": unsqueeze,
}
