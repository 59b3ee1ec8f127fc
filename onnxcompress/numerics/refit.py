"""Least squares from moments, drawn towards the weights that are there.

min_A  tr(A R A') - 2 tr(A T') + rho * tr(R) / d * |A - A0|^2  is solved by
A = A0 + (T - A0 R) (R + rho tr(R)/d I)^-1.  With rho -> 0 it is plain least squares (the debiased
refit of Linear Neural Reconstruction), with rho -> infinity the weights stay as they are: where
there are fewer rows than unknowns, rho decides how far they may be believed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.float64]

SHRINKAGES = (1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Values of rho to choose from."""

FEW_SHRINKAGES = (1e-5, 1e-3, 1e-1)
"""The same, where a rough choice will do."""


def refit(gram: Array, cross: Array, prior: Array, shrinkage: float) -> Array:
    """Least squares drawn towards a prior.

    Args:
        gram: R [g, d, d], positive semidefinite.
        cross: T [g, h, d].
        prior: A0 [g, h, d].
        shrinkage: rho, relative to the mean of the diagonal of R.

    Returns:
        A [g, h, d]; the prior where R is zero.
    """
    found = np.array(prior)
    for at in range(len(gram)):
        size = gram.shape[1]
        level = float(np.trace(gram[at])) / size
        if not level > 0.0:
            continue
        rest = cross[at] - prior[at] @ gram[at]
        shifted = gram[at].copy(order="F")
        shifted[np.diag_indices(size)] += max(shrinkage, 1e-12) * level
        factor = cho_factor(shifted, lower=True, overwrite_a=True, check_finite=False)
        found[at] += cho_solve(factor, rest.T, check_finite=False).T
    return found
