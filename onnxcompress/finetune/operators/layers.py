"""Layers with weights: convolutions and matrix products."""

from __future__ import annotations

import torch
from torch.nn import functional

from onnxcompress.finetune.operators.call import Call, Operator
from onnxcompress.finetune.operators.windows import CONVOLUTIONS, OfRank, of_rank, windows

_TRANSPOSED: OfRank = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def conv(call: Call) -> torch.Tensor:
    """Conv of one to three spatial axes."""
    weight = call.input(1)
    function = of_rank(CONVOLUTIONS, weight.dim() - 2)
    found = windows(call, weight.shape[2:])
    x = call.x if found.even else found.padded(call.x)
    return function(
        x,
        weight,
        call.optional(2),
        stride=found.strides,
        padding=found.begins if found.even else 0,
        dilation=found.dilations,
        groups=call.get("group", 1),
    )


def conv_transpose(call: Call) -> torch.Tensor:
    """ConvTranspose of one to three spatial axes.

    It is computed without padding; then what padding takes away is cut off, and output padding
    and `output_shape` are made good.
    """
    weight = call.input(1)
    rank = weight.dim() - 2
    function = of_rank(_TRANSPOSED, rank)
    kernel = weight.shape[2:]
    strides = call.get("strides") or [1] * rank
    dilations = call.get("dilations") or [1] * rank
    extra = call.get("output_padding") or [0] * rank
    sizes = call.x.shape[2:]
    full = [
        (sizes[at] - 1) * strides[at] + (kernel[at] - 1) * dilations[at] + 1 for at in range(rank)
    ]
    automatic = call.get("auto_pad", "NOTSET") or "NOTSET"
    pads = call.get("pads") or [0] * (2 * rank)
    begins = list(pads[:rank])
    wanted = [full[at] + extra[at] - pads[at] - pads[rank + at] for at in range(rank)]
    shape = call.get("output_shape")
    if shape or automatic in {"SAME_UPPER", "SAME_LOWER"}:
        wanted = list(shape) if shape else [n * s for n, s in zip(sizes, strides, strict=True)]
        wanted = wanted[-rank:]
        for at in range(rank):
            total = max(0, full[at] + extra[at] - wanted[at])
            lower = automatic == "SAME_LOWER"
            begins[at] = total - total // 2 if lower else total // 2
    elif automatic == "VALID":
        begins = [0] * rank
        wanted = [full[at] + extra[at] for at in range(rank)]
    y = function(
        call.x,
        weight,
        None,
        stride=tuple(strides),
        dilation=tuple(dilations),
        groups=call.get("group", 1),
    )
    for at in range(rank):
        missing = begins[at] + wanted[at] - y.shape[2 + at]
        if missing > 0:
            y = functional.pad(y, [0, 0] * (rank - 1 - at) + [0, missing])
        y = y.narrow(2 + at, begins[at], wanted[at])
    bias = call.optional(2)
    return y if bias is None else y + bias.reshape(1, -1, *[1] * rank)


def gemm(call: Call) -> torch.Tensor:
    """Gemm."""
    a = call.x.T if call.get("transA", 0) else call.x
    b = call.input(1).T if call.get("transB", 0) else call.input(1)
    y = a @ b
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if alpha != 1.0:
        y = alpha * y
    c = call.optional(2)
    return y if c is None else y + (c if beta == 1.0 else beta * c)


def einsum(call: Call) -> torch.Tensor:
    """Einsum."""
    operands = [call.input(at) for at in range(len(call.inputs))]
    return torch.einsum(call.get("equation").replace(" ", ""), *operands)


OPERATORS: dict[str, Operator] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": lambda call: torch.matmul(call.x, call.input(1)),
}
