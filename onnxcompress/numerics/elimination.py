"""Greedy backward elimination of groups, scored by the exact rise of the refitted error.

With B = R^{-1} and the least-squares fit P = T B, leaving out the columns of group g and refitting
the others raises the error by tr(P_g (B_gg)^{-1} P_g^T); afterwards B and P are the Schur
complements B - B_:g (B_gg)^{-1} B_g: and P - P_g (B_gg)^{-1} B_g:. Over several problems the rises
add up, each divided by its scale.

R is taken with a ridge relative to each column's variance, so the order does not depend on units.
B is kept as a base less the products of recent removals: only its diagonal blocks are needed at
once. It is factored anew from the exact moments whenever half of the columns are gone.

References:
    B. Hassibi and D. Stork, "Second order derivatives for network pruning: optimal brain surgeon",
    NIPS 5 (1992). S. Kung and Y. Hu, "A Frobenius approximation reduction method for determining
    optimal number of hidden units", IJCNN (1991), for groups with refit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from onnxcompress.numerics.cholesky import Factored
from onnxcompress.numerics.low_rank import Array
from onnxcompress.numerics.quadratic import FREE, Indices, Quadratic, group_count

# Columns removed before their products are worked into the base: a large product is fast.
_PENDING = 256


@dataclass(frozen=True, eq=False)
class Elimination:
    """The order in which groups go.

    Attributes:
        order: Groups, the first to remove first.
        errors: sum_i E||y_i - P_i x_i||^2 / scale_i of the refitted problems, [len(order) + 1]:
            before any removal, then after each.
    """

    order: tuple[int, ...]
    errors: Array


def eliminate(
    problems: Sequence[Quadratic],
    *,
    scales: Sequence[float] | None = None,
    keep: int = 1,
    fixed: Collection[int] = (),
    ridge: float = 1e-6,
) -> Elimination:
    """Remove, one at a time, the group whose removal raises the error least.

    Args:
        problems: One or more that number their groups together.
        scales: What to divide each problem's error by; its energy by default.
        keep: How many groups to leave at least, the fixed ones included.
        fixed: Groups that are never removed.
        ridge: Relative to each column's variance. The errors are those of the fits with the ridge.

    Returns:
        The order and the errors along it. Of equal rises the lower group goes first.

    Raises:
        ValueError: A scale is not above 0, or keep is negative.
    """
    count = group_count(problems)
    if keep < 0:
        raise ValueError(f"keep is {keep}; it takes 0 or more")
    fits = [
        _Fit(problem, scale, ridge)
        for problem, scale in zip(problems, problem_scales(problems, scales), strict=True)
    ]
    removable = np.ones(count, dtype=bool)
    removable[list(fixed)] = False
    order: list[int] = []
    errors = [sum(fit.error() for fit in fits)]
    for _ in range(min(count - keep, int(removable.sum()))):
        rises = np.sum([fit.rises(count) for fit in fits], axis=0)
        group = int(np.argmin(np.where(removable, rises, np.inf)))
        removable[group] = False
        for fit in fits:
            fit.remove(group)
        order.append(group)
        errors.append(sum(fit.error() for fit in fits))
    return Elimination(tuple(order), np.array(errors))


def problem_scales(
    problems: Sequence[Quadratic], scales: Sequence[float] | None
) -> tuple[float, ...]:
    """Settle what each problem's error is divided by.

    Args:
        problems: The problems.
        scales: Given ones, or None.

    Returns:
        Them, or the problems' energies, or 1 where that is 0.

    Raises:
        ValueError: They are not as many, or not above 0.
    """
    if scales is None:
        return tuple(problem.energy or 1.0 for problem in problems)
    if len(scales) != len(problems) or not all(0 < scale < np.inf for scale in scales):
        raise ValueError(f"scales is {list(scales)}; it takes a number above 0 for each problem")
    return tuple(scales)


@dataclass(eq=False)
class _Stack:
    """The groups of one size that are still there.

    Attributes:
        groups: [n].
        places: Where their columns are in the fit's arrays, [n, k].
        blocks: Their diagonal blocks of B, [n, k, k].
    """

    groups: Indices
    places: Indices
    blocks: Array

    def without(self, row: int) -> _Stack:
        left = np.delete(np.arange(self.groups.size), row)
        return _Stack(self.groups[left], self.places[left], self.blocks[left])


class _Fit:
    """The least-squares fit of one problem while groups are taken from it."""

    def __init__(self, problem: Quadratic, scale: float, ridge: float) -> None:
        self._scale, self._ridge = scale, ridge
        self._energy = problem.energy
        # Rows of T beyond the columns' number add nothing: their span is enough.
        height, width = problem.cross.shape
        self._cross = problem.cross
        if height > width:
            self._cross = scipy.linalg.qr(problem.cross, mode="r")[0][:width]
        self._gram, self._groups = problem.gram, problem.groups
        self._start(np.arange(width))

    def _start(self, columns: Indices) -> None:
        """Factor anew from the exact moments of the columns still there."""
        self._columns = columns
        self._half = columns.size // 2
        factored = Factored(self._gram[np.ix_(columns, columns)], self._ridge)
        self._lift = factored.ridge * factored.diagonal
        cross = self._cross[:, columns]
        self._base = factored.inverse()
        # Transposed, so that a group's part is contiguous.
        self._fit = np.ascontiguousarray((cross @ self._base).T)
        self._lifted_error = self._energy - float(np.vdot(self._fit.T, cross))
        self._arrange()

    def _arrange(self) -> None:
        """Find where each group's columns are, by size; nothing is pending."""
        groups = self._groups[self._columns]
        order = np.argsort(groups, kind="stable")
        numbers, sizes = np.unique(groups, return_counts=True)
        starts = np.cumsum(sizes) - sizes
        self._stacks: list[_Stack] = []
        for size in np.unique(sizes[numbers != FREE]):
            chosen = (sizes == size) & (numbers != FREE)
            places = order[starts[chosen][:, None] + np.arange(size)]
            blocks = self._base[places[:, :, None], places[:, None, :]]
            # A dead column has no row in B; a one on the diagonal lets it go at no rise.
            dead = np.einsum("nkk->nk", blocks)
            dead[dead == 0] = 1.0
            self._stacks.append(_Stack(numbers[chosen], places, blocks))
        self._left = np.ones(groups.size, dtype=bool)
        self._pending = np.empty((groups.size, _PENDING + int(sizes.max(initial=0))))
        self._used = 0

    def rises(self, count: int) -> Array:
        """By how much the scaled error rises when a group goes, [G]; 0 where it has no column."""
        result = np.zeros(count)
        for stack in self._stacks:
            parts = self._fit[stack.places]
            moments = parts @ parts.transpose(0, 2, 1)
            solved = np.linalg.solve(stack.blocks, moments)
            result[stack.groups] = np.einsum("nkk->n", solved) / self._scale
        return np.maximum(result, 0.0)

    def error(self) -> float:
        """The scaled error of the fit, without the ridge's part."""
        part = float(self._lift @ np.einsum("kh,kh->k", self._fit, self._fit))
        return max(self._lifted_error - part, 0.0) / self._scale

    def remove(self, group: int) -> None:
        """Take a group's columns out and refit."""
        number = next(
            (n for n, stack in enumerate(self._stacks) if (stack.groups == group).any()), None
        )
        if number is None:
            return
        stack = self._stacks[number]
        row = int(np.flatnonzero(stack.groups == group)[0])
        places = stack.places[row]
        lower = scipy.linalg.cholesky(stack.blocks[row], lower=True)
        pending = self._pending[:, : self._used]
        strip = self._base[:, places] - pending @ pending[places].T
        # With V = B_:g C^{-T}, C C^T = B_gg: B falls by V V^T, and P^T by V C^{-1} P_g^T.
        strip = scipy.linalg.solve_triangular(lower, strip.T, lower=True).T
        part = scipy.linalg.solve_triangular(lower, self._fit[places], lower=True)
        self._fit -= strip @ part
        self._fit[places] = 0.0
        self._lifted_error += float(np.vdot(part, part))
        self._stacks[number] = stack.without(row)
        for other in self._stacks:
            rows_of = strip[other.places]
            other.blocks -= rows_of @ rows_of.transpose(0, 2, 1)
        self._left[places] = False
        self._pending[:, self._used : self._used + places.size] = strip
        self._used += places.size
        if self._used >= _PENDING:
            self._settle()

    def _settle(self) -> None:
        """Drop the columns that are gone, and work the pending products into the base."""
        left = np.flatnonzero(self._left)
        if left.size <= self._half:
            self._start(self._columns[left])
            return
        pending = self._pending[left, : self._used]
        self._columns = self._columns[left]
        self._base = self._base[np.ix_(left, left)] - pending @ pending.T
        self._fit, self._lift = self._fit[left], self._lift[left]
        self._arrange()
