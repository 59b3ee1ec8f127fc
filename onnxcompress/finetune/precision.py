"""Mixed precision: layers in bfloat16, weights and losses in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

Values = dict[str, torch.Tensor]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """What a step is computed in.

    Args:
        precision: float32, bfloat16, or auto: the latter on GPUs that have it.
        device: where.
    """
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    half = has_it if precision == "auto" else precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def single(values: Values) -> Values:
    """Answers as losses take them: float32 in place of bfloat16."""
    return {n: v.float() if v.dtype is torch.bfloat16 else v for n, v in values.items()}
