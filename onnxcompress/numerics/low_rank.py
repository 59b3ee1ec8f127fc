"""Truncated singular value decomposition of a matrix, with signs that do not depend on LAPACK.

Eckart–Young: of all matrices of rank r, the one nearest to A in the Frobenius norm is
A_r = U_r diag(s_1..s_r) V_r^T, and ||A - A_r||_F^2 = sum of the discarded s_h^2.

References:
    C. Eckart and G. Young, "The approximation of one matrix by another of lower rank",
    Psychometrika 1 (1936).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# Entries this close to the largest one count as equal to it. Rounding decides which of two equal
# entries is the larger, so the first of them carries the sign, not the largest.
_TIE = 1e-6


@dataclass(frozen=True, eq=False)
class LowRank:
    """A matrix [m, n] as the product of two thinner ones, in float64.

    Attributes:
        left: [m, r], orthonormal columns.
        right: [r, n], orthogonal rows whose norms are the singular values, largest first.
        relative_error: ||A - left right||_F / ||A||_F; 0 for the zero matrix.
    """

    left: Array
    right: Array
    relative_error: float

    def reconstruct(self) -> Array:
        """Multiply the two factors.

        Returns:
            The approximation, [m, n].
        """
        return self.left @ self.right


def truncated_svd(matrix: ArrayLike, rank: int) -> LowRank:
    """Find the best approximation of a matrix by one of a given rank.

    Args:
        matrix: [m, n], finite.
        rank: Number of singular values to keep, 1 to min(m, n).

    Returns:
        The two factors; the entry of largest magnitude in each column of the left one is positive.

    Raises:
        ValueError: The matrix is not a finite matrix, or the rank is out of range.
    """
    source = finite_array(matrix, name="matrix", least_axes=2)
    if source.ndim != 2:
        raise ValueError(f"matrix has shape {source.shape}; truncated_svd takes two axes")
    check_rank(rank, full=min(source.shape), name="rank")
    left, values, right = scipy.linalg.svd(source, full_matrices=False)
    left, right = left[:, :rank], values[:rank, None] * right[:rank]
    signs = column_signs(left)
    left, right = left * signs, right * signs[:, None]
    return LowRank(left=left, right=right, relative_error=relative_error(source, left @ right))


def column_signs(factor: Array) -> Array:
    """Choose the sign of each column so that its entry of largest magnitude becomes positive.

    Args:
        factor: [m, r].

    Returns:
        One of -1 and +1 for each column, [r]. Of entries that tie, the first decides.
    """
    magnitude = np.abs(factor)
    leading = np.argmax(magnitude >= (1 - _TIE) * magnitude.max(axis=0), axis=0)
    return np.where(np.take_along_axis(factor, leading[None], axis=0)[0] < 0, -1.0, 1.0)


def relative_error(source: Array, approximation: Array) -> float:
    """Measure ||source - approximation||_F / ||source||_F.

    Args:
        source: The array approximated, of any shape.
        approximation: Of the same shape.

    Returns:
        The quotient; 0 where both arrays are zero.
    """
    residual = float(np.linalg.norm(source - approximation))
    return residual / float(np.linalg.norm(source)) if residual else 0.0


def finite_array(values: ArrayLike, *, name: str, least_axes: int) -> Array:
    """Bring an array to float64, and refuse what no decomposition can take.

    Args:
        values: Real numbers.
        name: What to call the array in the message.
        least_axes: Fewest axes it may have.

    Returns:
        The array in float64.

    Raises:
        ValueError: Too few axes, an axis of length 0, complex numbers, a NaN or an infinity.
    """
    source: NDArray[Any] = np.asarray(values)
    if np.iscomplexobj(source):
        raise ValueError(f"{name} is complex; only real weights can be decomposed")
    array = source.astype(np.float64)
    if array.ndim < least_axes or array.size == 0:
        raise ValueError(
            f"{name} has shape {array.shape}; it takes {least_axes} axes or more, none empty"
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} holds a NaN or an infinity; only finite weights can be decomposed"
        )
    return array


def check_rank(rank: int, *, full: int, name: str) -> None:
    """Refuse a rank that the array does not have.

    Args:
        rank: The rank asked for.
        full: The largest there is.
        name: What to call the rank in the message.

    Raises:
        ValueError: The rank is below 1 or above the largest.
    """
    if not 1 <= rank <= full:
        raise ValueError(f"{name} is {rank}; it takes 1 to {full}")
