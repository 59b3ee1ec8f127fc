"""Least squares that are only known by what they do to a vector, a few steps towards the answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg

Array = NDArray[np.float64]

_STEPS = 12


def descended(normal: Callable[[Array], Array], right: Array, start: Array) -> Array:
    """Some steps of conjugate gradients: never farther from the answer than the start.

    Args:
        normal: applies the matrix of the normal equations, positive semi-definite.
        right: right hand side, of any shape.
        start: where to start, of the same shape.
    """

    def apply(values: Array) -> Array:
        return normal(values.reshape(right.shape)).ravel()

    matrix = LinearOperator((right.size, right.size), matvec=apply, dtype=np.float64)
    # As far as it gets: what is left goes on in the next turn.
    found, _ = cg(matrix, right.ravel(), x0=start.ravel(), rtol=1e-12, maxiter=_STEPS)
    return np.asarray(found.reshape(right.shape))
