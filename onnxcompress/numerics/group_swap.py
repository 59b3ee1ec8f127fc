"""Exchanges between groups that are kept and those that are not, while the refitted error falls.

Backward elimination never takes a removal back. Here a removed group a enters and the kept group
that is then worth least leaves. With B = R_SS^{-1}, P = T_S B, V = B R_Sa, E = T_a - P R_Sa and
G = R_aa - R_aS V, its entry lowers the error by tr(E G^{-1} E^T) and turns B into B + V G^{-1} V^T
and P into P - E G^{-1} V^T (bordering); what a leaving group costs follows as in `elimination`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcompress.numerics.cholesky import Factored
from onnxcompress.numerics.elimination import problem_scales
from onnxcompress.numerics.low_rank import Array
from onnxcompress.numerics.quadratic import Indices, Quadratic, debias, group_count

# An exchange must lower the error by more than rounding does.
_LEAST_GAIN = 1e-9


@dataclass(frozen=True, eq=False)
class Swapped:
    """What is kept after the exchanges.

    Attributes:
        kept: Groups, ascending; as many as before.
        errors: sum_i E||y_i - P_i x_i||^2 / scale_i, before and after each exchange; falling.
        settled: Whether no further exchange was found, as opposed to too few rounds.
    """

    kept: tuple[int, ...]
    errors: Array
    settled: bool


def swap(
    problems: Sequence[Quadratic],
    kept: Collection[int],
    *,
    scales: Sequence[float] | None = None,
    fixed: Collection[int] = (),
    ridge: float = 1e-6,
    rounds: int = 10,
    candidates: int = 16,
) -> Swapped:
    """Exchange one kept group for a removed one as long as the error falls.

    Args:
        problems: One or more that number their groups together.
        kept: Groups to begin from.
        scales: What to divide each problem's error by; its energy by default.
        fixed: Groups that are neither taken in nor given up.
        ridge: Relative to each column's variance.
        rounds: Most exchanges.
        candidates: Removed groups looked at closely in each round, those of largest gain.

    Returns:
        The groups and the errors, each worked out from the exact moments.

    Raises:
        ValueError: A scale is not above 0.
    """
    count = group_count(problems)
    divisors = problem_scales(problems, scales)
    now = sorted(set(kept))
    errors = [refit_error(problems, now, divisors, ridge)]
    for _ in range(rounds):
        gone = [g for g in range(count) if g not in set(now) and g not in set(fixed)]
        loose = [g for g in now if g not in set(fixed)]
        pair = _best_pair(problems, divisors, now, gone, loose, ridge, candidates)
        if pair is None:
            return Swapped(tuple(now), np.array(errors), settled=True)
        after = sorted({*now, pair[0]} - {pair[1]})
        error = refit_error(problems, after, divisors, ridge)
        if not error < errors[-1] * (1.0 - _LEAST_GAIN):
            return Swapped(tuple(now), np.array(errors), settled=True)
        now = after
        errors.append(error)
    return Swapped(tuple(now), np.array(errors), settled=False)


def refit_error(
    problems: Sequence[Quadratic], kept: Collection[int], scales: Sequence[float], ridge: float
) -> float:
    """Measure what a choice of groups costs after refitting.

    Args:
        problems: One or more that number their groups together.
        kept: Groups.
        scales: What to divide each problem's error by.
        ridge: Relative to each column's variance.

    Returns:
        sum_i E||y_i - P_i x_i||^2 / scale_i.
    """
    return sum(
        max(problem.error(debias(problem, kept, ridge)), 0.0) / scale
        for problem, scale in zip(problems, scales, strict=True)
    )


def _best_pair(
    problems: Sequence[Quadratic],
    scales: Sequence[float],
    kept: Sequence[int],
    gone: Sequence[int],
    loose: Sequence[int],
    ridge: float,
    candidates: int,
) -> tuple[int, int] | None:
    """Find who should enter and who leave; None where no pair lowers the error."""
    if not gone or not loose:
        return None
    fits = [
        _Bordered(problem, kept, scale, ridge)
        for problem, scale in zip(problems, scales, strict=True)
    ]
    gains = np.sum([[fit.gain(group) for group in gone] for fit in fits], axis=0)
    best, pair = 0.0, None
    for index in np.argsort(-gains, kind="stable")[:candidates]:
        rises = np.sum([fit.rises(gone[index], loose) for fit in fits], axis=0)
        leaver = int(np.argmin(rises))
        change = float(rises[leaver] - gains[index])
        if change < best:
            best, pair = change, (gone[index], loose[leaver])
    return pair


class _Bordered:
    """The fit of one problem on the kept groups, about to be bordered by another."""

    def __init__(self, problem: Quadratic, kept: Sequence[int], scale: float, ridge: float) -> None:
        self._problem, self._scale, self._ridge = problem, scale, ridge
        self._columns = problem.columns(kept)
        gram = problem.gram[np.ix_(self._columns, self._columns)]
        self._inverse = Factored(gram, ridge).inverse()
        self._fit = problem.cross[:, self._columns] @ self._inverse
        self._groups = problem.groups[self._columns]

    def gain(self, group: int) -> float:
        """By how much the scaled error falls when a group enters."""
        _, residual, weighted = self._border(group)
        return float(np.vdot(residual, weighted)) / self._scale

    def rises(self, entering: int, leaving: Sequence[int]) -> Array:
        """By how much it rises again when each of some groups leaves, [n]."""
        strip, _, weighted = self._border(entering)
        fit = self._fit - weighted @ strip.T
        bent = self._bend(entering, strip)
        result = np.zeros(len(leaving))
        for number, group in enumerate(leaving):
            places = np.flatnonzero(self._groups == group)
            block = self._inverse[np.ix_(places, places)] + bent[places] @ strip[places].T
            alive = block.diagonal() > 0
            places, block = places[alive], block[np.ix_(alive, alive)]
            part = fit[:, places]
            result[number] = np.vdot(part, np.linalg.solve(block, part.T).T) / self._scale
        return result

    def _entering(self, group: int) -> Indices:
        """The columns of a group that the data excites at all."""
        columns = np.flatnonzero(self._problem.groups == group)
        return columns[self._problem.gram.diagonal()[columns] > 0]

    def _border(self, group: int) -> tuple[Array, Array, Array]:
        """V [s, k], E [h, k] and E G^{-1} [h, k]."""
        columns = self._entering(group)
        coupling = self._problem.gram[np.ix_(self._columns, columns)]
        residual = self._problem.cross[:, columns] - self._fit @ coupling
        strip = self._inverse @ coupling
        pivot = self._pivot(columns, coupling, strip)
        weighted = np.asarray(np.linalg.solve(pivot, residual.T).T)
        return strip, residual, weighted

    def _bend(self, group: int, strip: Array) -> Array:
        """V G^{-1}, [s, k]."""
        columns = self._entering(group)
        coupling = self._problem.gram[np.ix_(self._columns, columns)]
        return np.asarray(np.linalg.solve(self._pivot(columns, coupling, strip), strip.T).T)

    def _pivot(self, columns: Indices, coupling: Array, strip: Array) -> Array:
        """G with the ridge, [k, k]."""
        block = self._problem.gram[np.ix_(columns, columns)]
        pivot = block - coupling.T @ strip
        # The ridge is at least what rounding takes: twins of kept columns leave nothing else.
        lift = max(self._ridge, 1e-12) * block.diagonal()
        return np.asarray(pivot + np.diag(lift))
