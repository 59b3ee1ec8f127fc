"""A reconstruction problem brought to the form that the group lasso is solved in.

Free columns are minimised out: with u the free columns and g the others, the best M_u for a given
M_g is (T_u - M_g R_gu) R_uu^{-1}, and what is left is a quadratic in M_g alone (a Schur
complement). A column of ones among the free is centring.

Whitening puts N_g = M_g D_g^{1/2} for M_g, D_g = R_gg: then ||N_g||_F^2 = E||M_g x_g||^2 is what
the group contributes to the output, which no change of units x_g -> s x_g, M_g -> M_g / s alters.
In the directions that D_g does not excite, N_g is 0.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse

from onnxcompress.numerics.cholesky import DEAD, Factored
from onnxcompress.numerics.low_rank import Array
from onnxcompress.numerics.quadratic import FREE, Indices, Quadratic

# Eigenvalues of D_g below this share of its largest are directions that the data does not excite.
_UNEXCITED = 1e-10


@dataclass(frozen=True, eq=False)
class StandardForm:
    """A problem without free columns, and the way back.

    Attributes:
        problem: What is left to solve, [h, a]; columns in the order of their groups.
        columns: Which columns of the original those are, [a].
        free: The columns minimised out, [u].
        offset: T_u R_uu^{-1}, [h, u].
        slope: R_gu R_uu^{-1}, [a, u].
        root: The sparse block-diagonal D^{1/2}, [a, a]; None where nothing is whitened.
        inverse_root: Its pseudo-inverse.
    """

    problem: Quadratic
    columns: Indices
    free: Indices
    offset: Array
    slope: Array
    root: Any
    inverse_root: Any

    def enter(self, matrix: Array) -> Array:
        """Bring a solution of the original problem to this form.

        Args:
            matrix: M, [h, d].

        Returns:
            N, [h, a].
        """
        inner = matrix[:, self.columns]
        return inner if self.root is None else np.asarray((self.root @ inner.T).T)

    def leave(self, inner: Array) -> Array:
        """Bring a solution of this form back.

        Args:
            inner: N, [h, a].

        Returns:
            M, [h, d], with the best free columns.
        """
        matrix = np.zeros((len(inner), self.columns.size + self.free.size))
        if self.root is not None:
            inner = np.asarray((self.inverse_root @ inner.T).T)
        matrix[:, self.columns] = inner
        matrix[:, self.free] = self.offset - inner @ self.slope
        return matrix


def standard_form(problem: Quadratic, *, whiten: bool) -> StandardForm:
    """Minimise out the free columns, and whiten the groups if asked to.

    Args:
        problem: The problem.
        whiten: Whether the penalty shall not depend on the units of the columns.

    Returns:
        The form.
    """
    order = np.argsort(problem.groups, kind="stable")
    split = int((problem.groups == FREE).sum())
    free, columns = order[:split], order[split:]
    gram = problem.gram[np.ix_(columns, columns)]
    cross, energy = problem.cross[:, columns], problem.energy
    coupling = problem.gram[np.ix_(columns, free)]
    factored = Factored(problem.gram[np.ix_(free, free)])
    offset, slope = factored.solve(problem.cross[:, free]), factored.solve(coupling)
    if split:
        gram = gram - slope @ coupling.T
        cross = cross - offset @ coupling.T
        energy = max(energy - float(np.vdot(offset, problem.cross[:, free])), 0.0)
    groups = problem.groups[columns]
    root = inverse_root = None
    if whiten:
        root, inverse_root = _roots(gram, groups)
        gram = inverse_root @ (inverse_root @ gram).T
        cross = np.asarray((inverse_root @ cross.T).T)
    left = Quadratic(0.5 * (gram + gram.T), cross, energy, groups)
    return StandardForm(left, columns, free, offset, slope, root, inverse_root)


def _roots(gram: Array, groups: Indices) -> tuple[Any, Any]:
    """Find the square root of the diagonal blocks of a Gram matrix, and its pseudo-inverse.

    Args:
        gram: [a, a].
        groups: [a], ascending.

    Returns:
        Two sparse matrices, [a, a].
    """
    least = DEAD * gram.diagonal().max(initial=0.0)
    bounds = np.flatnonzero(np.diff(groups, prepend=FREE, append=groups.max(initial=0) + 1))
    roots, inverses = [], []
    for first, last in itertools.pairwise(bounds):
        values, vectors = scipy.linalg.eigh(gram[first:last, first:last])
        excited = values > max(least, _UNEXCITED * values[-1])
        root = np.sqrt(np.where(excited, values, 0.0))
        inverse = np.divide(1.0, root, out=np.zeros_like(root), where=excited)
        roots.append((vectors * root) @ vectors.T)
        inverses.append((vectors * inverse) @ vectors.T)
    if not roots:
        return scipy.sparse.csr_array((0, 0)), scipy.sparse.csr_array((0, 0))
    # Of no matter to the result, csr is what multiplies dense matrices fast.
    return (
        scipy.sparse.block_diag(roots, format="csr"),
        scipy.sparse.block_diag(inverses, format="csr"),
    )
