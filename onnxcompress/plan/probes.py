"""What candidates do to the outputs, from what they do to their layer and a few real probes.

A pass predicts the relative error of a layer, for every candidate of a site. What that means for
the outputs is measured at one candidate in the middle of the ladder. Outputs that are lost stay at
an error of about 1, whatever else is done to the layer: where the probe finds them lost, gentler
candidates are probed as well, and errors between two probes follow a power of the damage.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.search import Sites

_LOST = 0.1
"""Relative squared error up to which outputs answer about in proportion."""

_BEGUN = 2
"""Probes that are under way at once: one is carried out while the outputs of another are seen."""

_LEAST = 1e-12
"""Below this an error is rounding, and has no logarithm worth anything."""

Probe: TypeAlias = Callable[[Candidate[Any]], Callable[[], float]]
"""Begins to carry a candidate out; what it returns waits for the outputs' error."""


def predicted(sites: Sites) -> list[list[float]]:
    """The passes' own predictions, for when there is nothing to probe with."""
    return [[candidate.damage for candidate in offers] for offers in sites]


def expected_errors(
    sites: Sites, probe: Probe, *, progress: Callable[[int, int], None] | None = None
) -> list[list[float]]:
    """Relative squared error of the outputs that every candidate is expected to cause, by itself.

    Args:
        sites: candidates per site.
        probe: carries a candidate out by itself and measures the outputs.
        progress: told how many sites are done.
    """
    ladders = [[candidate for candidate in offers if candidate.damage > 0] for offers in sites]
    points: list[list[tuple[float, float]]] = [[] for _ in sites]
    waiting = deque((site, len(ladder) // 2) for site, ladder in enumerate(ladders) if ladder)
    begun: deque[tuple[int, int, Callable[[], float]]] = deque()
    done = len(sites) - len(waiting)
    while waiting or begun:
        while waiting and len(begun) < _BEGUN:
            site, at = waiting.popleft()
            begun.append((site, at, probe(ladders[site][at])))
        site, at, answer = begun.popleft()
        error = answer()
        points[site].append((ladders[site][at].damage, error))
        if error > _LOST and at > 0:
            waiting.appendleft((site, at // 2))
            continue
        done += 1
        if progress is not None:
            progress(done, len(sites))
    found = []
    for offers, known in zip(sites, points, strict=True):
        damages = [candidate.damage for candidate in offers]
        found.append(_along(damages, known) if known else damages)
    return found


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
