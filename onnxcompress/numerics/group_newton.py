"""Newton's method for the group lasso on groups that are not zero, in one variable for each group.

With ||M_g|| = min over eta > 0 of (||M_g||^2 / eta + eta) / 2, the best M for given eta is
M = T (R + diag(c_g / eta_g))^{-1}, c_g = lambda w_g, and what is left to minimise,

    f(eta) = 1/2 sum_g c_g eta_g - 1/2 sum_i tr(T_i (R_i + diag(c / eta))^{-1} T_i^T),

is smooth and convex in as many variables as there are groups. With S = diag(sqrt(eta_g / c_g)),
K = S R S + I and N = T S K^{-1}: M = N S; in relative changes of eta the gradient is
(c_g eta_g - ||N_g||^2) / 2, and the Hessian is diag(||N_g||^2) less the sums over blocks of
K^{-1} * (N^T N), entry by entry. Unlike gradient steps, it is indifferent to how badly R is
conditioned; a step costs one inverse of the order of the columns at work.

References:
    F. Bach et al., "Optimization with sparsity-inducing penalties", Found. Trends Mach. Learn. 4
    (2012), section 1.4 and chapter 5 (the variational form and reweighted least squares).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from onnxcompress.numerics.low_rank import Array
from onnxcompress.numerics.quadratic import Indices, Quadratic

_STEPS = 20
_HALVINGS = 8
_COST = 64


def worthwhile(problems: Sequence[Quadratic]) -> bool:
    """Tell whether a Newton step is cheap beside the gradient steps it saves.

    Args:
        problems: Restricted to the groups at work.

    Returns:
        Whether inverting R, d^3, is within a fixed number of products with it, h d^2.
    """
    return all(problem.groups.size <= _COST * (len(problem.cross) + 8) for problem in problems)


def newton(
    problems: Sequence[Quadratic], penalty: Array, start: Sequence[Array], goal: float
) -> tuple[list[Array], int]:
    """Lower the group lasso's objective, to the minimum where no group has to enter.

    Args:
        problems: Their columns ascend by group; none is free.
        penalty: c, [G], above 0.
        start: The M_i, [h_i, d_i]. Groups that are zero stay so; others may become zero.
        goal: The violation of the optimality conditions to reach.

    Returns:
        The M_i of an objective no higher than at the start, and the number of steps.
    """
    squares = np.zeros(penalty.size)
    for problem, matrix in zip(problems, start, strict=True):
        columns = np.einsum("ij,ij->j", matrix, matrix)
        squares += np.bincount(problem.groups, weights=columns, minlength=penalty.size)
    eta = np.sqrt(squares)
    if not eta.any():
        return list(start), 0
    here = _Point(problems, penalty, eta)
    steps = 0
    while steps < _STEPS and here.violation() > goal:
        change = here.direction()
        length = 1.0
        for _ in range(_HALVINGS):
            factor = 1.0 + length * change
            # A group that the step takes through zero leaves, if its gradient agrees.
            factor = np.where(factor > 0, factor, np.where(here.shrinks(), 0.0, 0.1))
            there = _Point(problems, penalty, here.eta * factor)
            if there.value < here.value:
                break
            length *= 0.5
        else:
            break
        here = there
        steps += 1
    return here.matrices(), steps


class _Point:
    """One eta, and all that follows from it.

    Attributes:
        eta: [G]; 0 for groups that are left out.
        value: f(eta).
    """

    def __init__(self, problems: Sequence[Quadratic], penalty: Array, eta: Array) -> None:
        self.eta = eta
        self._penalty = penalty
        self._parts = [_Part(problem, penalty, eta) for problem in problems]
        self._squares = np.zeros(eta.size)
        for part in self._parts:
            columns = np.einsum("ij,ij->j", part.scaled, part.scaled)
            self._squares += np.bincount(part.groups, weights=columns, minlength=eta.size)
        explained = sum(part.explained for part in self._parts)
        self.value = 0.5 * (float(penalty @ eta) - explained)

    def violation(self) -> float:
        """The largest distance from the optimality conditions over the groups left in."""
        at_work = self.eta > 0
        ratio = self._squares[at_work] / (self._penalty * self.eta)[at_work]
        return float((self._penalty[at_work] * np.abs(1.0 - np.sqrt(ratio))).max(initial=0.0))

    def shrinks(self) -> NDArray[np.bool_]:
        """Which groups' gradient is below their penalty, [G]."""
        return self._squares < self._penalty * self.eta

    def direction(self) -> Array:
        """Newton's step in relative changes of eta, [G]."""
        at_work = np.flatnonzero(self.eta)
        hessian = np.diag(self._squares)
        for part in self._parts:
            part.subtract_curvature(hessian)
        slope = 0.5 * (self._squares - self._penalty * self.eta)[at_work]
        curvature = hessian[np.ix_(at_work, at_work)]
        # Curvature below rounding, of groups about to leave, must not make the step infinite.
        curvature[np.diag_indices_from(curvature)] += 1e-12 * self._squares[at_work].max()
        change = np.zeros(self.eta.size)
        change[at_work] = scipy.linalg.solve(curvature, slope, assume_a="sym")
        return change

    def matrices(self) -> list[Array]:
        """The M_i, [h_i, d_i]."""
        return [part.matrix() for part in self._parts]


class _Part:
    """What one problem adds.

    Attributes:
        groups: Of the columns at work, [a].
        scaled: N, [h, a].
        explained: tr(T S K^{-1} S T^T).
    """

    def __init__(self, problem: Quadratic, penalty: Array, eta: Array) -> None:
        self._width = problem.groups.size
        self._columns: Indices = np.flatnonzero(eta[problem.groups] > 0)
        self.groups = problem.groups[self._columns]
        self._root = np.sqrt(eta / penalty)[self.groups]
        gram = problem.gram[np.ix_(self._columns, self._columns)]
        lifted = gram * self._root[:, None] * self._root
        lifted[np.diag_indices_from(lifted)] += 1.0
        cross = problem.cross[:, self._columns] * self._root
        self._factor = scipy.linalg.cholesky(
            lifted, lower=True, overwrite_a=True, check_finite=False
        )
        solved = scipy.linalg.cho_solve((self._factor, True), cross.T, check_finite=False)
        self.scaled = np.asarray(solved.T)
        self.explained = float(np.vdot(self.scaled, cross))

    def subtract_curvature(self, hessian: Array) -> None:
        """Subtract the sums over blocks of K^{-1} * (N^T N) from a matrix, [G, G]."""
        if not self.groups.size:
            return
        lower, _ = scipy.linalg.lapack.dpotri(self._factor, lower=1)
        inverse = np.tril(lower) + np.tril(lower, -1).T
        products = inverse * (self.scaled.T @ self.scaled)
        starts = np.flatnonzero(np.diff(self.groups, prepend=-1))
        sums = np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)
        present = self.groups[starts]
        hessian[np.ix_(present, present)] -= sums

    def matrix(self) -> Array:
        """M, [h, d]."""
        result = np.zeros((len(self.scaled), self._width))
        result[:, self._columns] = self.scaled * self._root
        return result
