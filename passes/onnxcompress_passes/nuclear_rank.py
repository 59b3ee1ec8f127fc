"""Ranks from the soft relaxation: min 1/2 E|W x - M x|^2 + lambda |M|_* decides how many stay.

The low-rank cousin of Linear Neural Reconstruction (SEEDS: Robin 2019). As with the group lasso
only the support is taken from it, here the number of components; the factors themselves are the
unpenalised best ones of that rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxcompress.numerics import nuclear
from onnxcompress.numerics.quadratic import FREE, Quadratic

Array = NDArray[np.float64]
NUCLEAR = "nuclear:"


def nuclear_fraction(text: str) -> float | None:
    """The fraction of lambda_max in `nuclear:F`; None for other texts and numbers out of range."""
    if not text.startswith(NUCLEAR):
        return None
    try:
        fraction = float(text.removeprefix(NUCLEAR))
    except ValueError:
        return None
    return fraction if 0.0 < fraction < 1.0 else None


def nuclear_rank(blocks: Sequence[Array], covariances: Array, fraction: float) -> int:
    """The largest rank that a group is left with.

    Args:
        blocks: weights, one per group, [h, ...].
        covariances: of what each group reads, [groups, d, d].
        fraction: lambda as a fraction of the one at which nothing is left.
    """
    ranks = []
    for block, covariance in zip(blocks, covariances, strict=True):
        weight = block.reshape(len(block), -1)
        cross = weight @ covariance
        energy = max(0.0, float(np.einsum("hd,hd->", cross, weight)))
        problem = Quadratic(covariance, cross, energy, np.full(weight.shape[1], FREE))
        ranks.append(nuclear.solve(problem, fraction * nuclear.lambda_max(problem)).rank)
    return max(ranks)
