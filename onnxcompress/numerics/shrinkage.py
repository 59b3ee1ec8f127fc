"""Covariances from few rows: correlations that are drawn towards none.

From fewer rows than features every feature follows from the others exactly, and any choice looks
free. Variances of single features are known well from the same rows; what is drawn in is what they
have in common (Schaefer and Strimmer 2005, target D), by the intensity that Chen, Wiesel, Eldar and
Hero derive for Gaussian rows (2010, arXiv 0907.4698, equation 23), here of the correlation matrix.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ENOUGH = 1.5
"""Rows per feature from which on a covariance is taken as it is, exact dependences and all.

With as many rows a third of what does not follow from the other features still shows.
"""


def shrunk(covariance: Array, rows: int) -> Array:
    """The covariance [d, d] of `rows` rows, with smaller correlations where they are few."""
    size = len(covariance)
    if rows >= ENOUGH * size:
        return covariance
    found = (1.0 - intensity(covariance, rows)) * covariance
    found[np.diag_indices(size)] = np.diag(covariance)
    return found


def intensity(covariance: Array, rows: int) -> float:
    """How much of the correlations [d, d] is not to be believed, 0 to 1."""
    scale = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    varies = scale > 0.0
    size = int(varies.sum())
    if size < 2:
        return 0.0
    part = covariance[np.ix_(varies, varies)] / np.outer(scale[varies], scale[varies])
    squares = float(np.square(part).sum())
    above = (1.0 - 2.0 / size) * squares + size**2
    below = (rows + 1.0 - 2.0 / size) * (squares - size)
    return 1.0 if below <= above else above / below
