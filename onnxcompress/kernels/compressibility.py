"""How compressible a layer's kernels are: description length against error.

The poster's open question. A layer that repeats few patterns says the same with fewer bits; how
many fewer, at which error, is a curve, and its values at a few errors are the measure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcompress.kernels.induction import Induction, relative_error
from onnxcompress.kernels.search import Vocabulary

Array = NDArray[np.float64]

ERRORS = (0.01, 0.05, 0.1)
"""Relative squared errors at which the measure is taken."""

_LEVELS = tuple(float(level) for level in np.geomspace(3e-3, 30.0, 13))


@dataclass(frozen=True)
class Compressibility:
    """Of one layer.

    Attributes:
        errors: relative squared errors, rising.
        lengths: description length at each, as a part of that of the original kernels.
        shares: at the price whose error comes closest to 5 %, fraction of kernels by kinds of
            atoms.
    """

    errors: tuple[float, ...]
    lengths: tuple[float, ...]
    shares: dict[str, float]

    def at(self, error: float) -> float:
        """Part of the description length that is left at an error: by logarithms between points."""
        known = np.maximum(self.errors, 1e-12)
        return float(np.interp(np.log(error), np.log(known), self.lengths))


def compressibility(
    weight: Array,
    words: Vocabulary,
    metric: Array | None = None,
    levels: Sequence[float] = _LEVELS,
) -> Compressibility:
    """Find the curve.

    Args:
        weight: [outputs, channels, k * k].
        words: the programs on offer.
        metric: covariance of what the layer reads, [channels * k * k] squared; None weighs weights.
        levels: prices, as parts of the squared answer that the original kernels would cost.
    """
    whole = float(words.bits[-1]) * weight.shape[0] * weight.shape[1]
    find = Induction(weight, words, metric)
    points = []
    for level in levels:
        programs = find(level / whole)
        error = relative_error(weight, programs.weights, metric)
        points.append((error, programs.bits / whole, programs.shares()))
    points.sort(key=lambda point: point[:2])
    # Longer and worse than another one is no point of the curve.
    kept: list[tuple[float, float, dict[str, float]]] = []
    for error, length, shares in points:
        if not kept or length < kept[-1][1]:
            kept.append((error, length, shares))
    nearest = min(kept, key=lambda point: abs(np.log(max(point[0], 1e-12) / 0.05)))
    return Compressibility(
        tuple(error for error, _, _ in kept), tuple(length for _, length, _ in kept), nearest[2]
    )
