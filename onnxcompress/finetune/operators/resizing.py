"""Resize, Upsample and GridSample.

Along every axis a resized tensor is a matrix times the original. The matrices are worked out
in float64 from the definition in the operator's documentation, whatever the mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from onnxcompress.finetune.operators.call import Call, Operator, UnsupportedError

Floats = npt.NDArray[np.float64]


def resize(call: Call) -> torch.Tensor:
    """Resize from operator set 10 on; all modes but crops of regions."""
    if call.opset < 11:
        return _resized(
            call, call.input(1).reshape(-1).double().tolist(), None, "asymmetric", "floor"
        )
    how = call.get("coordinate_transformation_mode", "half_pixel")
    sizes = call.integers(3)
    scales = None if sizes else call.input(2).reshape(-1).double().tolist()
    return _resized(call, scales, sizes, how, call.get("nearest_mode", "round_prefer_floor"))


def upsample(call: Call) -> torch.Tensor:
    """Upsample, the forerunner of Resize."""
    given = call.get("scales")
    scales = call.input(1).reshape(-1).double().tolist() if given is None else list(given)
    return _resized(call, scales, None, "asymmetric", "floor")


def _resized(
    call: Call, scales: list[float] | None, sizes: list[int] | None, how: str, rounding: str
) -> torch.Tensor:
    x = call.x
    axes = [a % x.dim() for a in call.get("axes") or range(x.dim())]
    extents = [x.shape[a] for a in axes]
    if sizes:
        policy = call.get("keep_aspect_ratio_policy", "stretch")
        scales = [size / extent for size, extent in zip(sizes, extents, strict=True)]
        if policy != "stretch":
            one = min(scales) if policy == "not_larger" else max(scales)
            scales = [one] * len(axes)
            sizes = [math.floor(one * extent + 0.5) for extent in extents]
    else:
        scales = scales or []
        sizes = [math.floor(extent * s) for extent, s in zip(extents, scales, strict=True)]
    mode = call.get("mode", "nearest")
    kind = x.dtype
    for axis, extent, size, scale in zip(axes, extents, sizes, scales, strict=True):
        if size == extent and scale == 1:
            continue
        places = _places(how, extent, size, scale)
        if mode == "nearest":
            chosen = torch.from_numpy(_nearest(places, rounding, extent)).to(x.device)
            x = x.index_select(axis, chosen)
            continue
        weights = _weights(call, places, extent, scale)
        matrix = torch.from_numpy(weights).to(x.device, x.dtype if kind.is_floating_point else None)
        x = torch.movedim(torch.movedim(x.to(matrix.dtype), axis, -1) @ matrix.T, -1, axis)
    return x.to(kind)


def _places(how: str, extent: int, size: int, scale: float) -> Floats:
    """Where in the original every element of the result comes from."""
    at = np.arange(size, dtype=np.float64)
    if how == "asymmetric":
        return at / scale
    if how == "align_corners":
        return at * (extent - 1) / (size - 1) if size > 1 else at * 0
    if how == "pytorch_half_pixel" and size == 1:
        return at * 0
    if how in {"half_pixel", "pytorch_half_pixel"}:
        return (at + 0.5) / scale - 0.5
    if how == "half_pixel_symmetric":
        # The centre stays where it is when the scale does not give a whole size.
        offset = extent / 2 * (1 - size / (scale * extent))
        return offset + (at + 0.5) / scale - 0.5
    if how == "tf_half_pixel_for_nn":
        return (at + 0.5) / scale
    raise UnsupportedError(f"coordinate_transformation_mode {how} is not known")


def _nearest(places: Floats, rounding: str, extent: int) -> npt.NDArray[np.int64]:
    rounds: dict[str, Callable[[Floats], Floats]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda p: np.ceil(p - 0.5),
        "round_prefer_ceil": lambda p: np.floor(p + 0.5),
    }
    rounded: npt.NDArray[np.int64] = rounds[rounding](places).astype(np.int64)
    return np.clip(rounded, 0, extent - 1)


def _weights(call: Call, places: Floats, extent: int, scale: float) -> Floats:
    """The matrix [size, extent] of linear or cubic interpolation."""
    mode = call.get("mode")
    coefficient = call.get("cubic_coeff_a", -0.75)
    # Shrinking with `antialias` stretches the filter over all that it stands for.
    stretch = min(1.0, scale) if call.get("antialias", 0) else 1.0
    if mode == "linear":
        reach = 1.0
    elif mode == "cubic":
        reach = 2.0
    else:
        raise UnsupportedError(f"mode {mode} is not known")
    exclude = bool(call.get("exclude_outside", 0))
    matrix = np.zeros((len(places), extent))
    for row, place in enumerate(places):
        first = math.floor(place - reach / stretch) + (0 if stretch < 1.0 else 1)
        taps = np.arange(first, first + 2 * math.ceil(reach / stretch) + (2 if stretch < 1 else 0))
        distance = np.abs((place - taps) * stretch)
        weights = 1 - distance if mode == "linear" else _cubic(distance, coefficient)
        weights = np.where(distance < reach, weights, 0.0)
        if exclude:
            weights = np.where((taps >= 0) & (taps < extent), weights, 0.0)
        if exclude or stretch < 1.0:
            weights = weights / weights.sum()
        np.add.at(matrix[row], np.clip(taps, 0, extent - 1), weights)
    return matrix


def _cubic(distance: Floats, a: float) -> Floats:
    """Keys' cubic kernel."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, far)


def grid_sample(call: Call) -> torch.Tensor:
    """GridSample over two or three spatial axes."""
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    mode = call.get("mode", "linear")
    return functional.grid_sample(
        call.x,
        call.input(1),
        mode=modes.get(mode, mode),
        padding_mode=call.get("padding_mode", "zeros"),
        align_corners=bool(call.get("align_corners", 0)),
    )


OPERATORS: dict[str, Operator] = {
    "GridSample": grid_sample,
    "Resize": resize,
    "Upsample": upsample,
}
