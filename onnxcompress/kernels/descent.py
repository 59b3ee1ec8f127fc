"""Conjugate gradients for least squares that are only known by what they do to a vector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_STEPS = 12
_ENOUGH = 1e-20
_TINY = 1e-300


def descended(
    normal: Callable[[Array], Array], right: Array, start: Array, *, axis: int | None
) -> Array:
    """A few steps towards the solution of positive semi-definite normal equations.

    Args:
        normal: applies the matrix.
        right: right hand side.
        start: where to start.
        axis: None for one system; else every row is a system of its own, along this axis.
    """

    def inner(one: Array, other: Array) -> Array:
        return np.asarray((one * other).sum(axis=axis, keepdims=True))

    found = start.copy()
    left = right - normal(found)
    direction, length = left.copy(), inner(left, left)
    floor = _ENOUGH * np.maximum(inner(right, right), _TINY)
    for _ in range(_STEPS):
        if (length <= floor).all():
            break
        image = normal(direction)
        curve = inner(direction, image)
        # A system that is solved has no direction left.
        step = np.where((length > floor) & (curve > 0.0), length / np.maximum(curve, _TINY), 0.0)
        found += step * direction
        left -= step * image
        longer = inner(left, left)
        direction = left + longer / np.maximum(length, _TINY) * direction
        length = longer
    return found
