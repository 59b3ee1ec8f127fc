"""Scores of one layer, comparable between layers (Molchanov et al. 2017, section 2.2)."""

from __future__ import annotations

import numpy as np

from onnxcompress.plan.saliency.question import Array

NORMALISATIONS = ("l2", "l1", "minmax", "none")


def normalised(scores: Array, how: str) -> Array:
    """Scores of one layer, comparable between layers.

    Args:
        scores: raw scores [channels].
        how: `none`; `l1` and `l2` divide by the norm of all scores of the layer; `minmax` maps
            the smallest to 0 and the largest to 1. Equal scores stay as they are where the
            divisor would be zero.
    """
    match how:
        case "none":
            return scores
        case "minmax":
            shifted: Array = scores - scores.min(initial=np.inf)
            span = float(shifted.max(initial=0.0))
            return shifted / span if span else shifted
        case "l1":
            total = float(np.abs(scores).sum())
        case _:
            total = float(np.sqrt(np.square(scores).sum()))
    return scores / total if total else scores
