"""Reductions, arg-reductions, sorting and running sums."""

from __future__ import annotations

from collections.abc import Callable

import torch

from onnxcompress.finetune.operators.call import Call, Operator

Reduction = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def reduction(function: Reduction) -> Operator:
    """A reduction; axes became an input in operator set 13 (sums) and 18 (the rest)."""

    def operator(call: Call) -> torch.Tensor:
        axes = call.integers(1, "axes")
        if not axes:
            if call.get("noop_with_empty_axes", 0):
                # Nothing is summed, but a square or a logarithm is still taken.
                one = call.x.unsqueeze(0)
                return function(one, [0], False)
            axes = list(range(call.x.dim()))
        if not axes:
            return function(call.x.reshape(1), [0], False)
        return function(call.x, axes, bool(call.get("keepdims", 1)))

    return operator


def product(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    """The product along some axes."""
    y = x
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        y = y.prod(axis, keepdim=keep)
    return y.to(x.dtype)


def extreme(function: Callable[..., torch.Tensor]) -> Operator:
    """ArgMax and ArgMin."""

    def operator(call: Call) -> torch.Tensor:
        axis, keep = call.axis(0), bool(call.get("keepdims", 1))
        if not call.get("select_last_index", 0):
            return function(call.x, dim=axis, keepdim=keep)
        last = function(call.x.flip(axis), dim=axis, keepdim=keep)
        return call.x.shape[axis] - 1 - last

    return operator


def top_k(call: Call) -> list[torch.Tensor]:
    """TopK; equal values in their order, as ONNX Runtime has them."""
    count = call.integers(1)
    wanted = count[0] if count else int(call.get("k"))
    axis = call.axis(-1)
    largest = bool(call.get("largest", 1))
    order = torch.argsort(call.x, dim=axis, descending=largest, stable=True)
    chosen = order.narrow(axis, 0, wanted)
    return [torch.gather(call.x, axis, chosen), chosen]


def running_sum(call: Call) -> torch.Tensor:
    """CumSum."""
    axis = int(call.input(1).item())
    x = call.x.flip(axis) if call.get("reverse", 0) else call.x
    y = torch.cumsum(x, axis).to(x.dtype)
    if call.get("exclusive", 0):
        y = y - x
    return y.flip(axis) if call.get("reverse", 0) else y


OPERATORS: dict[str, Operator] = {
    "ArgMax": extreme(torch.argmax),
    "ArgMin": extreme(torch.argmin),
    "CumSum": running_sum,
    "ReduceL1": reduction(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep).to(x.dtype)),
    "ReduceL2": reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "ReduceLogSum": reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    "ReduceLogSumExp": reduction(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ReduceMax": reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMean": reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMin": reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceProd": reduction(product),
    "ReduceSum": reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep).to(x.dtype)),
    "ReduceSumSquare": reduction(
        lambda x, axes, keep: x.square().sum(axes, keepdim=keep).to(x.dtype)
    ),
    "TopK": top_k,
}
