"""Windows of convolutions and poolings: strides, dilations, and padding of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from onnxcompress.finetune.operators.call import Call, UnsupportedError

OfRank = dict[int, Callable[..., torch.Tensor]]
"""What to call, by the number of spatial axes."""
CONVOLUTIONS: OfRank = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def of_rank(functions: OfRank, rank: int) -> Callable[..., torch.Tensor]:
    """The function for so many spatial axes.

    Raises:
        UnsupportedError: there is none.
    """
    if rank not in functions:
        raise UnsupportedError(f"{rank} spatial axes are not known")
    return functions[rank]


@dataclass(frozen=True)
class Windows:
    """Where windows lie; one entry per spatial axis.

    Attributes:
        kernel: extent of a window, without dilation.
        strides: steps between windows.
        dilations: steps within a window.
        begins: padding in front.
        ends: padding behind.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def even(self) -> bool:
        """Whether both sides are padded alike."""
        return self.begins == self.ends

    def padded(self, x: torch.Tensor, value: float = 0.0) -> torch.Tensor:
        """The operand with its padding."""
        if not any((*self.begins, *self.ends)):
            return x
        pairs = zip(reversed(self.begins), reversed(self.ends), strict=True)
        return functional.pad(x, [side for pair in pairs for side in pair], value=value)


def windows(call: Call, kernel: Sequence[int]) -> Windows:
    """The windows of Conv or a pooling over its first input.

    Args:
        call: the operator.
        kernel: extents of a window.
    """
    rank = len(kernel)
    strides = call.get("strides") or [1] * rank
    dilations = call.get("dilations") or [1] * rank
    automatic = call.get("auto_pad", "NOTSET") or "NOTSET"
    begins, ends = [0] * rank, [0] * rank
    if automatic == "NOTSET":
        pads = call.get("pads") or [0] * (2 * rank)
        begins, ends = list(pads[:rank]), list(pads[rank:])
    elif automatic in {"SAME_UPPER", "SAME_LOWER"}:
        for at, size in enumerate(call.x.shape[2:]):
            reach = (kernel[at] - 1) * dilations[at] + 1
            total = max(0, (-(-size // strides[at]) - 1) * strides[at] + reach - size)
            less, more = total // 2, total - total // 2
            begins[at], ends[at] = (less, more) if automatic == "SAME_UPPER" else (more, less)
    elif automatic != "VALID":
        raise UnsupportedError(f"auto_pad {automatic} is not known")
    return Windows(tuple(kernel), tuple(strides), tuple(dilations), tuple(begins), tuple(ends))


def rounded_up(call: Call, found: Windows) -> Windows:
    """The same with as much padding behind as `ceil_mode` needs, if it is set.

    A window that would begin in the padding behind is left out, as in ONNX Runtime and PyTorch.
    """
    if not call.get("ceil_mode", 0):
        return found
    ends = list(found.ends)
    for at, size in enumerate(call.x.shape[2:]):
        reach = (found.kernel[at] - 1) * found.dilations[at] + 1
        whole = size + found.begins[at] + found.ends[at]
        steps = -(-(whole - reach) // found.strides[at])
        if steps * found.strides[at] >= size + found.begins[at]:
            steps -= 1
        ends[at] = found.ends[at] + max(0, steps * found.strides[at] + reach - whole)
    return Windows(found.kernel, found.strides, found.dilations, found.begins, tuple(ends))
