"""One least-squares reconstruction problem, kept as moments: its cost is free of the sample count.

A layer's inputs x [d] and targets y [h] enter E||y - M x||^2 only through R = E[x x^T],
T = E[y x^T] and tr E[y y^T] (Linear Neural Reconstruction, D. A. R. Robin 2019, eq. 2). Every
moment may be centred, which leaves a constant to the bias: b' = b + (mu_y - M mu_x).

Rows may be weighted by a positive definite H [h, h], E[(y - M x)^T H (y - M x)]: with H = L L^T,
put L^T y for y, that is T <- L^T T and tr E[y y^T] <- tr(H E[y y^T]); the solution of the original
problem is then L^{-T} M.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcompress.numerics.cholesky import Factored
from onnxcompress.numerics.low_rank import Array

Indices = NDArray[np.intp]

FREE = -1
"""The group of a column that belongs to none: never penalised, always kept."""


@dataclass(frozen=True, eq=False)
class Quadratic:
    """E||y - M x||^2 as a function of M [h, d].

    Attributes:
        gram: R = E[x x^T], [d, d], float64.
        cross: T = E[y x^T], [h, d], float64.
        energy: tr E[y y^T].
        groups: The group of each column, [d], 0 or more, or FREE.
    """

    gram: Array
    cross: Array
    energy: float
    groups: Indices

    def __post_init__(self) -> None:
        """Check that the parts fit together.

        Raises:
            ValueError: They do not, or something is not finite.
        """
        width = self.groups.size
        if self.gram.shape != (width, width) or self.cross.shape[1:] != (width,):
            raise ValueError(
                f"gram {self.gram.shape}, cross {self.cross.shape} and {width} groups do not fit; "
                "they take [d, d], [h, d] and [d]"
            )
        if not (np.isfinite(self.gram).all() and np.isfinite(self.cross).all()):
            raise ValueError("gram or cross holds a NaN or an infinity")
        if not 0 <= self.energy < np.inf:
            raise ValueError(f"energy is {self.energy}; it takes a finite number, 0 or more")
        if (self.groups < FREE).any():
            raise ValueError(f"groups holds {self.groups.min()}; it takes {FREE} or more")

    def error(self, matrix: Array) -> float:
        """Work out E||y - M x||^2 exactly.

        Args:
            matrix: M, [h, d].

        Returns:
            tr E[y y^T] - 2 tr(M T^T) + tr(M R M^T).
        """
        return self.energy + float(np.vdot(matrix, matrix @ self.gram - 2 * self.cross))

    def gradient(self, matrix: Array) -> Array:
        """Differentiate half the error.

        Args:
            matrix: M, [h, d].

        Returns:
            M R - T, [h, d].
        """
        return matrix @ self.gram - self.cross

    def columns(self, kept: Collection[int]) -> Indices:
        """Find the columns of some groups.

        Args:
            kept: Groups.

        Returns:
            Their columns and the free ones, ascending.
        """
        chosen = np.isin(self.groups, np.fromiter(kept, dtype=np.intp, count=len(kept)))
        return np.flatnonzero(chosen | (self.groups == FREE))

    def restricted(self, columns: Indices) -> Quadratic:
        """Leave out columns of x.

        Args:
            columns: Those to keep, ascending.

        Returns:
            The smaller problem.
        """
        gram = self.gram[np.ix_(columns, columns)]
        return Quadratic(gram, self.cross[:, columns], self.energy, self.groups[columns])


def group_count(problems: Sequence[Quadratic]) -> int:
    """Count the groups that problems number together.

    Args:
        problems: One or more.

    Returns:
        One more than the highest number of a group.

    Raises:
        ValueError: There is no problem.
    """
    if not problems:
        raise ValueError("there is no problem to solve; give one or more")
    return 1 + max(int(problem.groups.max(initial=FREE)) for problem in problems)


def debias(problem: Quadratic, kept: Collection[int], ridge: float = 0.0) -> Array:
    """Fit by unpenalised least squares on the kept groups and the free columns.

    Args:
        problem: The problem.
        kept: Groups.
        ridge: Relative to each column's variance. A singular problem takes a tiny one by itself
            and refines it away.

    Returns:
        M, [h, d], zero in the columns of all other groups.
    """
    columns = problem.columns(kept)
    part = problem.restricted(columns)
    matrix = np.zeros_like(problem.cross)
    matrix[:, columns] = Factored(part.gram, ridge).solve(part.cross)
    return matrix
