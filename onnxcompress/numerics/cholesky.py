"""Linear systems in a Gram matrix that may be singular, whatever the units of its columns.

Dead inputs (zero rows) and duplicated ones make a Gram matrix singular. It is factored on the scale
of correlations, D^{-1/2} R D^{-1/2} with D = diag(R), so that a ridge means the same for every
column whatever its units: a ridge e solves in R + e D. Dead columns get the coefficient 0. The
penalty e D is a ridge per column; Tikhonov's tr(R)/d would favour columns of large variance.

References:
    N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed. (2002), sections 10.1
    (scaling to unit diagonal) and 12.1 (iterative refinement).
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from onnxcompress.numerics.low_rank import Array

# Below this share of the largest variance, a variance is the rounding error of centring.
DEAD = 1e-13
# 1 - R^2 of a column given those before it: below, the column counts as a combination of them.
_COLLINEAR = 1e-11
_RIDGES = (1e-10, 1e-8, 1e-6, 1e-4)
_REFINEMENTS = 2


class Factored:
    """The Cholesky factor of R + ridge D on the scale of correlations.

    Attributes:
        gram: R, [d, d], symmetric and positive semi-definite up to rounding.
        diagonal: The diagonal of D, [d]; 0 where the column is dead.
        ridge: The ridge in use: the one asked for, or a tiny one where R is singular without.
    """

    def __init__(self, gram: Array, ridge: float = 0.0) -> None:
        """Factor a Gram matrix.

        Args:
            gram: [d, d], symmetric and positive semi-definite.
            ridge: Relative to each column's own variance, 0 or more.

        Raises:
            ValueError: The ridge is negative, or the matrix is far from positive semi-definite.
        """
        if not ridge >= 0:
            raise ValueError(f"ridge is {ridge}; it takes 0 or more")
        self.gram = gram
        variance = gram.diagonal()
        alive = variance > DEAD * variance.max(initial=0.0)
        self.diagonal = np.where(alive, variance, 0.0)
        self._scale = np.where(alive, 1.0 / np.sqrt(np.where(alive, variance, 1.0)), 0.0)
        correlation = gram * self._scale[:, None] * self._scale
        self.ridge, self._lower = _factor(correlation, ridge)
        self._refinements = 0 if self.ridge == ridge else _REFINEMENTS

    def solve(self, right: Array) -> Array:
        """Solve M (R + ridge D) = T; where R is singular without a ridge, nearly M R = T.

        Args:
            right: T, [h, d].

        Returns:
            M, [h, d]; zero in dead columns.
        """
        solution = self._solve(right)
        for _ in range(self._refinements):
            # Takes back what the ridge shrank in every direction that R does determine.
            solution = solution + self._solve(right - solution @ self.gram)
        return solution

    def inverse(self) -> Array:
        """Invert R + ridge D.

        Returns:
            [d, d], symmetric; zero rows and columns where the column is dead.
        """
        if not self.diagonal.size:
            return np.zeros((0, 0))
        lower, _ = scipy.linalg.lapack.dpotri(self._lower, lower=1)
        inverse = np.tril(lower) + np.tril(lower, -1).T
        return np.asarray(inverse * self._scale[:, None] * self._scale, dtype=np.float64)

    def _solve(self, right: Array) -> Array:
        if not self.diagonal.size:
            return np.zeros_like(right)
        scaled = (right * self._scale).T
        solved = scipy.linalg.cho_solve((self._lower, True), scaled, check_finite=False)
        return np.asarray(solved.T * self._scale, dtype=np.float64)


def _factor(correlation: Array, ridge: float) -> tuple[float, Array]:
    """Find the smallest ridge that makes a correlation matrix numerically definite.

    Args:
        correlation: [d, d], unit diagonal, or zero in dead columns.
        ridge: The least to take.

    Returns:
        The ridge, and the lower Cholesky factor, [d, d], with a unit diagonal in dead columns.
    """
    dead = correlation.diagonal() == 0
    for attempt in (ridge, *(larger for larger in _RIDGES if larger > ridge)):
        lifted = correlation.copy()
        np.fill_diagonal(lifted, np.where(dead, 1.0, 1.0 + attempt))
        if not lifted.size:
            return attempt, lifted
        lower, failed = scipy.linalg.lapack.dpotrf(lifted, lower=1, clean=1)
        if failed == 0 and (attempt > 0 or lower.diagonal().min() ** 2 > _COLLINEAR):
            return attempt, lower
    raise ValueError("the Gram matrix is not positive semi-definite; accumulate it in float64")
