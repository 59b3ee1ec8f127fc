"""Normalisations."""

from __future__ import annotations

import torch
from torch.nn import functional

from onnxcompress.finetune.operators.call import Call, Operator, UnsupportedError


def batch_normalization(call: Call) -> torch.Tensor:
    """BatchNormalization at inference; the interpreter takes it over when it trains."""
    if call.get("training_mode", 0) or call.outputs > 1:
        raise UnsupportedError("it is in training mode")
    if call.opset < 9 and not call.get("spatial", 1):
        raise UnsupportedError("statistics per element are not known")
    scale, bias, mean, variance = (call.input(at) for at in range(1, 5))
    return functional.batch_norm(
        call.x, mean, variance, scale, bias, training=False, eps=call.get("epsilon", 1e-5)
    )


def instance_normalization(call: Call) -> torch.Tensor:
    """InstanceNormalization."""
    x, scale, bias = call.x, call.input(1), call.input(2)
    return functional.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


def layer_normalization(call: Call) -> list[torch.Tensor]:
    """LayerNormalization with its optional outputs."""
    axis, epsilon = call.axis(-1), call.get("epsilon", 1e-5)
    axes = tuple(range(axis, call.x.dim()))
    mean = call.x.mean(axes, keepdim=True)
    inverse = torch.rsqrt(call.x.var(axes, unbiased=False, keepdim=True) + epsilon)
    y = (call.x - mean) * inverse * call.input(1)
    bias = call.optional(2)
    return [y if bias is None else y + bias, mean, inverse]


def rms_normalization(call: Call) -> torch.Tensor:
    """RMSNormalization."""
    axes = tuple(range(call.axis(-1), call.x.dim()))
    squares = call.x.square().mean(axes, keepdim=True)
    return call.x * torch.rsqrt(squares + call.get("epsilon", 1e-5)) * call.input(1)


def group_normalization(call: Call) -> torch.Tensor:
    """GroupNormalization; scale and bias are per group before operator set 21."""
    groups, scale, bias = call.get("num_groups"), call.input(1), call.input(2)
    channels = call.x.shape[1]
    if scale.numel() != channels:
        scale = scale.repeat_interleave(channels // groups)
        bias = bias.repeat_interleave(channels // groups)
    return functional.group_norm(call.x, groups, scale, bias, eps=call.get("epsilon", 1e-5))


def local_response(call: Call) -> torch.Tensor:
    """LRN; of an even window one channel more lies behind than in front."""
    size = call.get("size")
    squares = call.x.square().reshape(call.x.shape[0], 1, call.x.shape[1], -1)
    around = functional.pad(squares, [0, 0, (size - 1) // 2, size // 2])
    sums = functional.avg_pool2d(around, (size, 1), stride=1) * size
    total = sums.reshape(call.x.shape)
    scale = call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * total
    return call.x / torch.pow(scale, call.get("beta", 0.75))


def lp_normalization(call: Call) -> torch.Tensor:
    """LpNormalization; zeros stay."""
    norm = torch.linalg.vector_norm(call.x, call.get("p", 2), call.axis(-1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(call.x), call.x / norm)


def mean_variance(call: Call) -> torch.Tensor:
    """MeanVarianceNormalization."""
    axes = tuple(call.get("axes", [0, 2, 3]))
    mean = call.x.mean(axes, keepdim=True)
    deviation = (call.x.square().mean(axes, keepdim=True) - mean.square()).sqrt()
    return (call.x - mean) / (deviation + 1e-9)


OPERATORS: dict[str, Operator] = {
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LRN": local_response,
    "LayerNormalization": layer_normalization,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance,
    "RMSNormalization": rms_normalization,
}
