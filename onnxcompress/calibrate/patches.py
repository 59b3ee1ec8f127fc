"""What a layer reads and answers at some of its positions.

Row r of a layer's input is the patch that output position r is computed from, zero padding
included, in the order of the weight: [channels / group, *kernel]. For dense layers it is a row of
features. Positions are drawn at random, the same number from every sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from onnxcompress.analyse.linear import LinearLayer
from onnxcompress.errors import ModelError
from onnxcompress.graph.spec import ConvSpec

Array = NDArray[np.generic]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Positions:
    """Positions of a layer's output in one batch.

    Attributes:
        sample: index along the batch axis [rows].
        place: index along every other axis that is not the channel axis, [axes, rows].
    """

    sample: Indices
    place: tuple[Indices, ...]

    @classmethod
    def draw(
        cls, extents: Sequence[int], samples: int, per_sample: int, generator: np.random.Generator
    ) -> Positions:
        """Draw from every sample, without repetition; all of them where there are no more.

        Args:
            extents: of the axes that are neither batch nor channels; empty for [N, K].
            samples: how many samples the batch has.
            per_sample: how many positions are wanted of each.
            generator: source of chance.
        """
        total = prod(extents)
        if per_sample >= total:
            flat = np.tile(np.arange(total), samples)
            each = total
        else:
            # One draw per sample: positions of different samples are independent.
            flat = np.argpartition(generator.random((samples, total)), per_sample - 1, axis=1)
            flat = np.sort(flat[:, :per_sample], axis=1).ravel()
            each = per_sample
        place = np.unravel_index(flat, tuple(extents)) if extents else ()
        return cls(np.repeat(np.arange(samples), each), tuple(np.asarray(p) for p in place))


def spatial_extents(layer: LinearLayer, answers: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a layer's output that are neither batch nor channels."""
    return answers[2:] if layer.convolves else answers[1:-1]


def answers_at(layer: LinearLayer, values: Array, at: Positions) -> Array:
    """Rows [rows, channels] of a tensor that has the layer's output shape."""
    return _picked(values, at.sample, at.place, channels_last=not layer.convolves)


def _picked(
    values: Array, sample: Indices, place: Sequence[Indices], *, channels_last: bool
) -> Array:
    """What lies at some places: [rows, channels, ...]."""
    index: tuple[Any, ...] = (sample, *place) if channels_last else (sample, slice(None), *place)
    return np.asarray(values[index])


def patches_at(layer: LinearLayer, values: Array, at: Positions) -> Array:
    """What the layer reads at these positions, [rows, groups, features].

    Args:
        layer: the layer.
        values: its input, [N, C, *spatial], or [N, ..., features].
        at: positions of its output.

    Raises:
        ModelError: padding is decided by an auto_pad that is not known.
    """
    spec = layer.spec
    if not isinstance(spec, ConvSpec):
        return _picked(values, at.sample, at.place, channels_last=True)[:, np.newaxis]
    padding = resolved_pads(spec, values.shape[2:])
    padded = values
    if any(sum(pair) for pair in padding):
        padded = np.pad(values, [(0, 0), (0, 0), *padding])
    rows = len(at.sample)
    place = [p * s for p, s in zip(at.place, spec.strides, strict=True)]
    if not spec.pointwise:
        axes = tuple(range(2, values.ndim))
        reach = tuple((k - 1) * d + 1 for k, d in zip(spec.kernel, spec.dilations, strict=True))
        taps: tuple[Any, ...] = (..., *(slice(None, None, d) for d in spec.dilations))
        padded = sliding_window_view(padded, reach, axis=axes)[taps]
    picked = _picked(padded, at.sample, place, channels_last=False)
    return picked.reshape(rows, layer.groups, layer.features)


def resolved_pads(spec: ConvSpec, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Padding (begin, end) of every spatial axis for an input of these sizes.

    Raises:
        ModelError: the auto_pad is unknown.
    """
    spatial = spec.spatial
    if spec.auto_pad == "NOTSET":
        return [(spec.pads[a], spec.pads[a + spatial]) for a in range(spatial)]
    if spec.auto_pad == "VALID":
        return [(0, 0)] * spatial
    if spec.auto_pad not in {"SAME_UPPER", "SAME_LOWER"}:
        raise ModelError(f"auto_pad '{spec.auto_pad}' of '{spec.node}' is not known")
    found = []
    for size, kernel, stride, dilation in zip(
        sizes, spec.kernel, spec.strides, spec.dilations, strict=True
    ):
        reach = (kernel - 1) * dilation + 1
        whole = max(0, (-(-size // stride) - 1) * stride + reach - size)
        less, more = whole // 2, whole - whole // 2
        found.append((less, more) if spec.auto_pad == "SAME_UPPER" else (more, less))
    return found
