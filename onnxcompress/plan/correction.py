"""From the sum of what candidates save to what the network saves: straight lines between findings.

Sums are wrong by a factor (layers were timed by themselves, perhaps in another hour) and by what
candidates that share layers save twice. A factor is found by the first measurement; what remains
is local, so later ones are interpolated.
"""

from __future__ import annotations

import numpy as np

_FAR = 1.25
"""How many times as much as is wanted may be saved at one end of a line that is believed."""


class Correction:
    """What was measured of choices, by the sum of what their candidates save.

    Args:
        start: how much more than the original the network costs without any candidate.
        slope: what the network is expected to save for a unit in sum, before anything is measured.
    """

    def __init__(self, start: float = 0.0, slope: float = 1.0) -> None:
        self._first = slope
        self._points: dict[float, float] = {0.0: -start}

    def add(self, total: float, saved: float) -> None:
        """Remember that a choice whose candidates save `total` in sum really saves `saved`."""
        if total > 0.0:
            self._points[total] = saved

    def saved(self, total: float) -> float:
        """What a choice with that sum is expected to save."""
        sums = sorted(self._points)
        if total <= sums[-1]:
            return float(np.interp(total, sums, [self._points[s] for s in sums]))
        return self._points[sums[-1]] + self._slope_to(sums[-1]) * (total - sums[-1])

    def sum_for(self, saved: float) -> float:
        """The sum of savings by which a choice is expected to save that much."""
        below = [s for s, found in self._points.items() if found < saved]
        above = [s for s, found in self._points.items() if found >= saved]
        if not below:
            return 0.0
        low = max(below)
        missing = saved - self._points[low]
        if not above:
            return low + missing / self._slope_to(low)
        high = min(above)
        share = missing / (self._points[high] - self._points[low])
        nothing_below = low == 0.0 and len(above) > 1
        if self._points[high] > _FAR * saved or nothing_below:
            # Perhaps a step lies in between, and not a slope: halving finds it soon.
            share = min(share, 0.5)
        return low + share * (high - low)

    @property
    def slope(self) -> float:
        """What is saved for a unit in sum, by the largest sum that was measured."""
        return self._slope_to(max(self._points))

    def _slope_to(self, total: float) -> float:
        if total <= 0.0:
            return self._first
        # Nothing saved at all says nothing about what more of it would save.
        return max((self._points[total] - self._points[0.0]) / total, 0.1)
