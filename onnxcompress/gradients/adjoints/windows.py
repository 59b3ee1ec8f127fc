"""The geometry of sliding windows at fixed sizes: explicit pads, whatever the attributes say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxcompress.errors import GradientError
from onnxcompress.gradients.known import Shape


@dataclass(frozen=True)
class Windows:
    """Kernel, strides, dilations and pads of every spatial axis."""

    kernel: Shape
    strides: Shape
    dilations: Shape
    begins: Shape
    ends: Shape

    @property
    def pads(self) -> list[int]:
        """Pads in ONNX order."""
        return [*self.begins, *self.ends]

    @property
    def reach(self) -> Shape:
        """How far a window extends behind its first element."""
        return tuple(d * (k - 1) for d, k in zip(self.dilations, self.kernel, strict=True))


def windows(
    attributes: Mapping[str, Any],
    kernel: Sequence[int],
    wide: Sequence[int],
    narrow: Sequence[int],
    *,
    transposed: bool = False,
) -> Windows:
    """Read the attributes of Conv, ConvTranspose or a pooling operator.

    Args:
        attributes: of the node.
        kernel: spatial extents of the kernel.
        wide: spatial extents of what the windows slide over.
        narrow: spatial extents of what there is one element per window of.
        transposed: whether it is a ConvTranspose, whose pads are decided by its output's extents.

    Raises:
        GradientError: the pads are given in a way that is not known.
    """
    rank = len(kernel)
    strides = tuple(attributes.get("strides", (1,) * rank))
    dilations = tuple(attributes.get("dilations", (1,) * rank))
    mode = str(attributes.get("auto_pad", "NOTSET") or "NOTSET")
    begins: list[int] = []
    ends: list[int] = []
    given = list(attributes.get("pads", (0,) * (2 * rank)))
    extra = list(attributes.get("output_padding", (0,) * rank))
    for axis in range(rank):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        total = (narrow[axis] - 1) * strides[axis] + reach - wide[axis]
        if transposed:
            total += extra[axis]
        free = mode in {"SAME_UPPER", "SAME_LOWER"} or "output_shape" in attributes
        if not free:
            pads = (0, 0) if mode == "VALID" else (given[axis], given[axis + rank])
        elif transposed:
            total = max(total, 0)
            half = total // 2
            pads = (half, total - half) if mode == "SAME_UPPER" else (total - half, half)
        else:
            total = max(total, 0)
            half = total // 2
            pads = (total - half, half) if mode == "SAME_LOWER" else (half, total - half)
        begins.append(int(pads[0]))
        ends.append(int(pads[1]))
    if transposed and mode.startswith("SAME") and "output_shape" not in attributes and any(extra):
        raise GradientError(f"auto_pad={mode} with output_padding")
    if mode not in {"NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"}:
        raise GradientError(f"auto_pad={mode} is not known")
    return Windows(tuple(kernel), strides, dilations, tuple(begins), tuple(ends))
