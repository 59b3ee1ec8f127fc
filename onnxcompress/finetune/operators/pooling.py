"""Poolings."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

from onnxcompress.finetune.operators.call import Call, Operator, UnsupportedError
from onnxcompress.finetune.operators.windows import (
    CONVOLUTIONS,
    OfRank,
    Windows,
    of_rank,
    rounded_up,
    windows,
)

_MAX: OfRank = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_MEAN: OfRank = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def max_pool(call: Call) -> torch.Tensor:
    """MaxPool; padding never wins."""
    if call.outputs > 1:
        raise UnsupportedError("its indices are used")
    kernel = call.get("kernel_shape")
    function = of_rank(_MAX, len(kernel))
    found = rounded_up(call, windows(call, kernel))
    least = -math.inf if call.x.is_floating_point() else torch.iinfo(call.x.dtype).min
    x = found.padded(call.x, least)
    # PyTorch on a CPU pools floating numbers only; small integers are exact in single precision.
    whole = x if x.is_floating_point() else x.to(torch.float32)
    y = function(whole, found.kernel, stride=found.strides, dilation=found.dilations)
    return y.to(x.dtype)


def average_pool(call: Call) -> torch.Tensor:
    """AveragePool; whether padding counts is `count_include_pad`."""
    kernel = call.get("kernel_shape")
    plain = windows(call, kernel)
    found = rounded_up(call, plain)
    if not any((*found.begins, *found.ends)) and set(found.dilations) == {1}:
        return of_rank(_MEAN, len(kernel))(call.x, found.kernel, stride=found.strides)
    counted = torch.ones((1, 1, *call.x.shape[2:]), dtype=call.x.dtype, device=call.device)
    if call.get("count_include_pad", 0):
        # What `ceil_mode` adds behind the padding never counts.
        counted = plain.padded(counted, 1.0)
        rest = [e - p for e, p in zip(found.ends, plain.ends, strict=True)]
        zeros = (0,) * len(kernel)
        counted = Windows(found.kernel, found.strides, found.dilations, zeros, tuple(rest)).padded(
            counted
        )
    else:
        counted = found.padded(counted)
    return _sums(found.padded(call.x), found) / _sums(counted, found)


def _sums(x: torch.Tensor, found: Windows) -> torch.Tensor:
    """Sums over windows, channel by channel."""
    ones = torch.ones((1, 1, *found.kernel), dtype=x.dtype, device=x.device)
    rows = x.reshape(-1, 1, *x.shape[2:])
    function = of_rank(CONVOLUTIONS, len(found.kernel))
    y = function(rows, ones, stride=found.strides, dilation=found.dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


def lp_pool(call: Call) -> torch.Tensor:
    """LpPool."""
    p = call.get("p", 2)
    found = rounded_up(call, windows(call, call.get("kernel_shape")))
    return torch.pow(_sums(found.padded(call.x).abs() ** p, found), 1 / p)


def global_pool(function: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]) -> Operator:
    """A pooling over all spatial axes."""
    return lambda call: function(call.x, tuple(range(2, call.x.dim())))


OPERATORS: dict[str, Operator] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_pool(lambda x, axes: x.mean(axes, keepdim=True)),
    "GlobalMaxPool": global_pool(lambda x, axes: x.amax(axes, keepdim=True)),
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}
