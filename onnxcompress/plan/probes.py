"""What candidates do to the outputs, from what they do to their layer and a few real probes.

A pass predicts the relative error of a layer, for every candidate of a site. What that means for
the outputs is measured at one candidate in the middle of the ladder. Outputs that are lost stay at
an error of about 1, whatever else is done to the layer: where the probe finds them lost, gentler
candidates are probed as well, and errors between two probes follow a power of the damage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.search import Sites, Trial

_LOST = 0.1
"""Relative squared error up to which outputs answer about in proportion."""

_LEAST = 1e-12
"""Below this an error is rounding, and has no logarithm worth anything."""


def predicted(sites: Sites) -> list[list[float]]:
    """The passes' own predictions, for when there is nothing to probe with."""
    return [[candidate.damage for candidate in offers] for offers in sites]


def expected_errors(
    sites: Sites, trial: Trial, *, progress: Callable[[int, int], None] | None = None
) -> list[list[float]]:
    """Relative squared error of the outputs that every candidate is expected to cause, by itself.

    Args:
        sites: candidates per site.
        trial: carries a probe out and measures the outputs.
        progress: told how many sites are done.
    """
    found = []
    for number, offers in enumerate(sites):
        damages = [candidate.damage for candidate in offers]
        lossy = [candidate for candidate in offers if candidate.damage > 0]
        found.append(_along(damages, _probed(lossy, trial)) if lossy else damages)
        if progress is not None:
            progress(number + 1, len(sites))
    return found


def _probed(ladder: Sequence[Candidate[Any]], trial: Trial) -> list[tuple[float, float]]:
    """(damage, error) of some candidates: of the middle one, and of gentler ones as is needed."""
    at = len(ladder) // 2
    points: list[tuple[float, float]] = []
    while True:
        error = trial((ladder[at],), probe=True).error
        points.append((ladder[at].damage, error))
        if error <= _LOST or at == 0:
            return points
        at //= 2


def _along(damages: Sequence[float], points: Sequence[tuple[float, float]]) -> list[float]:
    """Errors through the points: in proportion outside of them, by powers between."""
    known = np.array(sorted(points))
    # A gentler candidate is never expected to do more than one that was found to do less.
    x, y = known[:, 0], np.maximum.accumulate(np.maximum(known[:, 1], _LEAST))

    def error(damage: float) -> float:
        if damage <= x[0]:
            return float(y[0] * damage / x[0])
        if damage >= x[-1]:
            return float(y[-1] * damage / x[-1])
        return float(np.exp(np.interp(np.log(damage), np.log(x), np.log(y))))

    return [error(damage) for damage in damages]
