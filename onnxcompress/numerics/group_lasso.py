"""The group lasso on moments, jointly over all consumers of the same channels.

min sum_i 1/2 E||y_i - M_i x_i||^2 + lambda sum_g w_g sqrt(sum_i ||M_i,g||_F^2), with M_i,g the
columns of channel g in consumer i (Linear Neural Reconstruction, D. A. R. Robin 2019, eq. 1 and 2
with the factor 1/2 of its algorithm). Groups are either zero in every consumer or in none.

The problem is solved on a working set of groups, which grows by those whose gradient is above the
penalty until none is left: a solution of few channels costs products of few columns.

References:
    M. Yuan and Y. Lin, "Model selection and estimation in regression with grouped variables",
    J. R. Statist. Soc. B 68 (2006).
    F. Bach et al., "Optimization with sparsity-inducing penalties", Found. Trends Mach. Learn. 4
    (2012), chapter 6 (working sets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxcompress.errors import OnnxCompressError
from onnxcompress.numerics.group_descent import descend, group_norms
from onnxcompress.numerics.low_rank import Array
from onnxcompress.numerics.quadratic import Quadratic, debias, group_count
from onnxcompress.numerics.standard_form import StandardForm, standard_form

__all__ = ["GroupLasso", "Solution", "debias", "lambda_max", "solve"]

Mask = NDArray[np.bool_]

# Groups that may join the working set at once, at least.
_LEAST_GROWTH = 32


@dataclass(frozen=True, eq=False)
class Solution:
    """The minimum at one lambda.

    Attributes:
        matrices: The M_i, [h_i, d_i].
        active: The groups that are not zero, ascending.
        norms: Each group's norm in the penalty, [G]; where the penalty is scale-invariant, the
            root of what the group contributes to the outputs' energy.
        lam: Lambda.
        objective: The objective's value.
        kkt: The largest violation of the optimality conditions over the groups, in the units of
            lambda (of the whitened problem where the penalty is scale-invariant).
        iterations: Steps of the accelerated gradient method, over all working sets.
    """

    matrices: tuple[Array, ...]
    active: tuple[int, ...]
    norms: Array
    lam: float
    objective: float
    kkt: float
    iterations: int


class GroupLasso:
    """One or more problems made ready, to be solved at several lambdas.

    Attributes:
        problems: The problems.
        count: The number of groups, G.
        weights: w, [G].
        forms: The problems in the form they are solved in.
        scale: max_g sqrt(sum_i ||T_i,g||_F^2), what violations are measured against.
        lambda_max: The smallest lambda whose solution is zero.
    """

    def __init__(
        self,
        problems: Sequence[Quadratic],
        weights: Array | None = None,
        *,
        scale_invariant: bool = False,
    ) -> None:
        """Make the problems ready.

        Args:
            problems: One or more that number their groups together.
            weights: w, [G], above 0; 1 by default.
            scale_invariant: Whether to penalise ||M_g R_gg^{1/2}||_F, which does not depend on the
                units of the columns, in place of ||M_g||_F.

        Raises:
            ValueError: There is no problem, or the weights do not fit.
        """
        self.problems = tuple(problems)
        self.count = group_count(problems)
        self.forms: tuple[StandardForm, ...] = tuple(
            standard_form(problem, whiten=scale_invariant) for problem in problems
        )
        self._inner = [form.problem for form in self.forms]
        self._pull = group_norms([part.cross for part in self._inner], self._inner, self.count)
        self.scale = float(self._pull.max(initial=0.0))
        self.reweigh(np.ones(self.count) if weights is None else weights)

    def reweigh(self, weights: Array) -> None:
        """Put other weights in the penalty.

        Args:
            weights: w, [G], finite and above 0.

        Raises:
            ValueError: They are not.
        """
        self.weights = np.asarray(weights, np.float64)
        valid = np.isfinite(self.weights) & (self.weights > 0)
        if self.weights.shape != (self.count,) or not valid.all():
            raise ValueError(f"weights takes {self.count} numbers above 0, one for each group")
        self.lambda_max = float((self._pull / self.weights).max(initial=0.0))

    def solve(
        self,
        lam: float,
        *,
        start: Sequence[Array] | None = None,
        tolerance: float = 1e-8,
        max_iterations: int = 20_000,
    ) -> Solution:
        """Minimise at one lambda.

        Args:
            lam: Lambda, 0 or more; at 0, least squares.
            start: Matrices to begin from, [h_i, d_i]; zero by default.
            tolerance: Largest violation of the optimality conditions, relative to `scale`.
            max_iterations: Most steps, over all working sets.

        Returns:
            The solution.

        Raises:
            ValueError: Lambda is negative.
            OnnxCompressError: The steps did not suffice.
        """
        if not 0 <= lam < np.inf:
            raise ValueError(f"lambda is {lam}; it takes a finite number, 0 or more")
        penalty = lam * self.weights
        if lam == 0:
            inner = [debias(part, range(self.count)) for part in self._inner]
            gradients = [part.gradient(m) for part, m in zip(self._inner, inner, strict=True)]
            kkt = self._violations(inner, gradients, penalty)
            return self._solution(inner, lam, float(kkt.max(initial=0.0)), 0)
        if start is None or lam >= self.lambda_max:
            inner = [np.zeros_like(part.cross) for part in self._inner]
        else:
            inner = [form.enter(m) for form, m in zip(self.forms, start, strict=True)]
        working = np.zeros(self.count, dtype=bool)
        goal, used = tolerance * self.scale, 0
        while True:
            norms = group_norms(inner, self._inner, self.count)
            gradients = self._gradients(inner, norms > 0)
            violations = self._violations(inner, gradients, penalty)
            worst = float(violations.max(initial=0.0))
            if worst <= goal:
                return self._solution(inner, lam, worst, used)
            if used >= max_iterations:
                raise OnnxCompressError(
                    f"the group lasso at lambda {lam:.3g} violates its optimality conditions by "
                    f"{worst:.1e} of {goal:.1e} after {used} iterations; "
                    "raise lambda, max_iterations or tolerance"
                )
            working |= norms > 0
            outside = np.where(working, 0.0, violations)
            room = max(_LEAST_GROWTH, int(working.sum()))
            strongest = np.argsort(-outside, kind="stable")[:room]
            working[strongest[outside[strongest] > 0]] = True
            # As precise as the groups still outside deserve; each round narrows it down.
            inner, steps = self._improve(
                inner, working, penalty, max(0.5 * goal, 0.05 * worst), max_iterations - used
            )
            used += steps

    def _gradients(self, inner: list[Array], working: Mask) -> list[Array]:
        """M_i R_i - T_i, [h_i, a_i], where all other groups are zero."""
        result = []
        for part, matrix in zip(self._inner, inner, strict=True):
            columns = np.flatnonzero(working[part.groups])
            result.append(matrix[:, columns] @ part.gram[columns] - part.cross)
        return result

    def _violations(self, inner: list[Array], gradients: list[Array], penalty: Array) -> Array:
        """How far each group is from its optimality condition, [G]."""
        norms = group_norms(inner, self._inner, self.count)
        pull = np.divide(penalty, norms, out=np.zeros_like(norms), where=norms > 0)
        sums = [
            gradient + matrix * pull[part.groups]
            for gradient, matrix, part in zip(gradients, inner, self._inner, strict=True)
        ]
        found = group_norms(sums, self._inner, self.count)
        return np.where(norms > 0, found, np.maximum(found - penalty, 0.0))

    def _improve(
        self, inner: list[Array], working: Mask, penalty: Array, goal: float, budget: int
    ) -> tuple[list[Array], int]:
        """Minimise over the groups of the working set alone, up to a violation or a budget."""
        local = np.cumsum(working) - 1
        places = [np.flatnonzero(working[part.groups]) for part in self._inner]
        parts = []
        for part, columns in zip(self._inner, places, strict=True):
            small = part.restricted(columns)
            parts.append(replace(small, groups=local[small.groups]))
        start = [matrix[:, columns] for matrix, columns in zip(inner, places, strict=True)]
        found, used = descend(parts, penalty[working], start, goal=goal, budget=budget)
        result = []
        for matrix, values, columns in zip(inner, found, places, strict=True):
            full = np.zeros_like(matrix)
            full[:, columns] = values
            result.append(full)
        return result, used

    def _solution(self, inner: list[Array], lam: float, kkt: float, iterations: int) -> Solution:
        norms = group_norms(inner, self._inner, self.count)
        errors = sum(part.error(m) for part, m in zip(self._inner, inner, strict=True))
        matrices = tuple(form.leave(m) for form, m in zip(self.forms, inner, strict=True))
        active = tuple(int(group) for group in np.flatnonzero(norms))
        objective = 0.5 * errors + lam * float(self.weights @ norms)
        return Solution(matrices, active, norms, lam, objective, kkt, iterations)


def lambda_max(
    problems: Sequence[Quadratic], weights: Array | None = None, *, scale_invariant: bool = False
) -> float:
    """Find the smallest lambda whose solution is zero.

    Args:
        problems: One or more that number their groups together.
        weights: w, [G].
        scale_invariant: As in `GroupLasso`.

    Returns:
        max_g sqrt(sum_i ||T_i,g||_F^2) / w_g, once free columns are fitted.
    """
    return GroupLasso(problems, weights, scale_invariant=scale_invariant).lambda_max


def solve(
    problems: Sequence[Quadratic],
    lam: float,
    *,
    weights: Array | None = None,
    start: Sequence[Array] | None = None,
    tolerance: float = 1e-8,
    max_iterations: int = 20_000,
    scale_invariant: bool = False,
) -> Solution:
    """Minimise at one lambda; see `GroupLasso` for the arguments.

    Returns:
        The solution.
    """
    ready = GroupLasso(problems, weights, scale_invariant=scale_invariant)
    return ready.solve(lam, start=start, tolerance=tolerance, max_iterations=max_iterations)
