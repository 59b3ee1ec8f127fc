"""A tensor of channel ids, held compactly: an axis along which nothing changes has extent 1."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

N = TypeVar("N", bound=np.generic)
Ids = NDArray[np.int64]
Values = NDArray[np.float64]

FIXED = 0
"""The id of elements that belong to no channel: they are never removed."""

UNKNOWN = float("nan")
"""The value of an element that is not constant when its channel is zero."""


@dataclass(frozen=True)
class Flow:
    """What flows through one tensor.

    Attributes:
        shape: the tensor's real shape at the representative sizes.
        ids: channel id of every element; of the tensor's rank, with extent 1 where uniform.
        values: what every element is when its own channel is zero at its producers, NaN when that
            is not a constant; compact like `ids`, but by itself.
    """

    shape: tuple[int, ...]
    ids: Ids
    values: Values

    @property
    def varying(self) -> tuple[int, ...]:
        """The axes along which ids change."""
        return tuple(axis for axis, extent in enumerate(self.ids.shape) if extent > 1)

    @property
    def tracked(self) -> bool:
        """Whether any element belongs to a channel."""
        return bool(self.ids.any())

    def along(self, axis: int) -> Ids:
        """The ids along one axis, which must be the only one along which they change."""
        line = np.moveaxis(self.ids, axis, 0).reshape(self.ids.shape[axis], -1)[:, 0]
        return np.broadcast_to(line, (self.shape[axis],)) if len(line) == 1 else line

    def values_along(self, axis: int) -> Values:
        """The value of each index along `axis`; NaN where it is not the same everywhere else."""
        rows = np.moveaxis(self.values, axis, 0).reshape(self.values.shape[axis], -1)
        line = np.where((rows == rows[:, :1]).all(axis=1), rows[:, 0], UNKNOWN)
        return np.broadcast_to(line, (self.shape[axis],)) if len(line) == 1 else line


def channel_flow(shape: Sequence[int], axis: int, ids: Ids, values: Values | float = 0.0) -> Flow:
    """The flow of a tensor whose channels lie along one axis."""
    lined = [1] * len(shape)
    lined[axis] = len(ids)
    spread = np.broadcast_to(np.asarray(values, dtype=np.float64), ids.shape)
    return Flow(tuple(shape), ids.reshape(lined), compact(spread.reshape(lined)))


def compact(array: NDArray[N]) -> NDArray[N]:
    """Reduce every axis along which nothing changes to extent 1 (NaN equals NaN)."""
    for axis in range(array.ndim):
        if array.shape[axis] > 1:
            first = array.take([0], axis)
            same = array == first
            if array.dtype.kind == "f":
                same |= np.isnan(array) & np.isnan(first)
            if same.all():
                array = first
    return array


def expand(array: NDArray[N], shape: Sequence[int], axes: Collection[int]) -> NDArray[N]:
    """Give the named axes of a compact array their real extents."""
    target = [shape[a] if a in axes else array.shape[a] for a in range(array.ndim)]
    return np.ascontiguousarray(np.broadcast_to(array, target))


def make_flow(shape: Sequence[int], ids: NDArray[np.generic], values: Values) -> Flow:
    """A flow from arrays that need not be compact yet."""
    return Flow(
        tuple(shape),
        np.asarray(compact(np.rint(ids).astype(np.int64)), dtype=np.int64),
        np.asarray(compact(values), dtype=np.float64),
    )
