"""Plans that meet the same targets in different ways, of which trials take the best.

Expected errors are added up, as if they were independent and small; that is what they are compared
for. With more and with fewer branches removed (whose errors compare badly with those of a few
channels), by one pass alone, with no layer that bears much of the error by itself, or with ranks on
top of widths (whose savings overlap), other plans meet the targets, and may lose less once they are
repaired.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnxcompress.latency.table import LayerTiming
from onnxcompress.plan.gate import Key
from onnxcompress.plan.search import Choice, Chosen, Damages, Sites, Trial, savings

_CLOSE_CALL = 1.6
_FINALISTS = 3
"""Errors after brief repair that are this close, and how many of them are repaired thoroughly."""

_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
"""Parts of a path that are tried first."""

_RISES = 2
"""After how many worse ones in a row the rest of them is left out."""

_ROOM = 2.0
"""How much larger than it has to be the error of a single layer may be."""


@dataclass(frozen=True)
class Way:
    """How a choice is made.

    Attributes:
        gone: how many branches of the path it begins with.
        free: whether it may take any other branch, too.
        only: the pass whose candidates it is made of, besides; empty for all.
        most: the largest error that one candidate may be expected to make; None for any.
        together: whether widths and ranks may meet in one layer.
    """

    gone: int = 0
    free: bool = False
    only: str = ""
    most: float | None = None
    together: bool = False

    @property
    def words(self) -> str:
        """What is peculiar to it."""
        parts = [f"{self.gone} branch{'es' if self.gone > 1 else ''}"] if self.gone else []
        parts += ["branches where cheap"] if self.free else []
        parts += [f"{self.only} alone"] if self.only else []
        parts += ["errors spread"] if self.most is not None else []
        parts += ["ranks on widths"] if self.together else []
        return ", ".join(parts) or "no branch"


@dataclass(frozen=True)
class Rival:
    """A choice, and how it was made."""

    way: Way
    choice: Choice


class Tournament:
    """Makes choices, and compares those that differ by trials; each is tried once.

    Args:
        choose: the best choice of a way.
        trial: carries a choice out, repairs it briefly, and measures the outputs.
        judge: the outputs' error after a repair as thorough as the result's; among those that are
            close it decides, because a brief repair makes up for less of what branches leave.
        progress: told how many were tried, of how many at most.
    """

    def __init__(
        self,
        choose: Callable[[Way], Choice],
        trial: Trial,
        judge: Callable[[Chosen], float],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._choose, self._trial, self._judge = choose, trial, judge
        self._progress = progress
        self._rivals: dict[Way, Rival] = {}
        self._admitted: list[Rival] = []
        self._errors: dict[Chosen, float] = {(): 0.0}
        self._most = 0

    def expect(self, more: int) -> None:
        """Say how many more ways there may be."""
        self._most = len(self._rivals) + more

    def enter(self, way: Way) -> Rival:
        """Make the choice of a way."""
        if way not in self._rivals:
            self._rivals[way] = Rival(way, self._choose(way))
            if self._progress is not None:
                self._progress(len(self._rivals), max(self._most, len(self._rivals)))
        return self._rivals[way]

    def admit(self, rival: Rival) -> None:
        """Let a choice take part that was made before, and meets what is asked now."""
        if rival.choice.chosen not in {other.choice.chosen for other in self.every}:
            self._admitted.append(rival)

    @property
    def every(self) -> list[Rival]:
        """All that take part."""
        return [*self._rivals.values(), *self._admitted]

    def along_path(self, length: int) -> Rival:
        """The best of choices that begin with more or fewer branches of a path."""
        grid = sorted({round(length * share) for share in _SHARES}, reverse=True)
        if not length:
            return self.enter(Way())
        self.expect(len(grid) + 2)
        best, worse = grid[0], 0
        # The error falls and rises again along the path.
        for gone in grid:
            rank = self._rank(self.enter(Way(gone)))
            better = rank <= self._rank(self.enter(Way(best)))
            best, worse = (gone, 0) if better else (best, worse + 1)
            if worse == _RISES:
                break
        # Its least lies beside that of the grid.
        beside = [at for at in grid if at != best]
        for nearest in (
            max((at for at in beside if at < best), default=best),
            min((at for at in beside if at > best), default=best),
        ):
            if abs(nearest - best) > 1:
                self.enter(Way((nearest + best) // 2))
        return self.leader

    def beside(self, rival: Rival, length: int) -> Rival:
        """The best, once a way was also gone with more, with fewer and with no branches of a path.

        Along the path itself it was gone in the plain way, for which other numbers are best.
        """
        if rival.way.gone:
            self.enter(replace(rival.way, gone=0))
        for turn in (-1, 1):
            best, gone = rival, rival.way.gone + turn
            while 0 <= gone <= length:
                other = self.enter(replace(rival.way, gone=gone))
                if self._rank(other) >= self._rank(best):
                    break
                best, gone = other, gone + turn
        return self.leader

    def error(self, rival: Rival) -> float:
        """Relative squared error of the outputs after a brief repair."""
        chosen = rival.choice.chosen
        if chosen not in self._errors:
            self._errors[chosen] = self._trial(chosen).error
        return self._errors[chosen]

    @property
    def leader(self) -> Rival:
        """The best so far, by brief repair."""
        return min(self.every, key=self._rank) if self._differ else self.every[0]

    def winner(self) -> Rival:
        """The best of all, with what was measured of the others."""
        best = self.leader
        if self._differ:
            limit = _CLOSE_CALL * self._errors[best.choice.chosen]
            ranked = sorted(self._in_order, key=self._rank)
            able = [r for r in ranked if r.choice.meets and self._errors[r.choice.chosen] <= limit]
            finalists = {rival.choice.chosen: rival for rival in reversed(able)}
            if len(finalists) > 1:
                last = list(finalists.values())[-_FINALISTS:]
                best = min(last, key=lambda rival: self._judge(rival.choice.chosen))
        seen = tuple(p for rival in self._in_order for p in rival.choice.predictions)
        return replace(best, choice=replace(best.choice, predictions=seen))

    @property
    def findings(self) -> tuple[str, ...]:
        """What trials found, in words."""
        if not self._differ:
            return ()
        told = "; ".join(self._words(rival) for rival in self._in_order)
        return (f"errors of plans after brief repair: {told}",)

    @property
    def _in_order(self) -> list[Rival]:
        return sorted(self.every, key=lambda rival: rival.way.gone)

    @property
    def _differ(self) -> bool:
        return len({rival.choice.chosen for rival in self.every}) > 1

    def _rank(self, rival: Rival) -> tuple[bool, float]:
        """What meets the targets comes first, then what errs least."""
        able = any(other.choice.meets for other in self.every)
        if able and not rival.choice.meets:
            # It cannot win, whatever it errs.
            return True, float("inf")
        return not rival.choice.meets, self.error(rival)

    def _words(self, rival: Rival) -> str:
        error = self._errors.get(rival.choice.chosen)
        found = [f"{error:.3g}"] if error is not None else []
        return " ".join([rival.way.words, *found, *([] if rival.choice.meets else ["(misses)"])])


def spread(
    sites: Sites,
    damages: Damages,
    demands: Mapping[str, float],
    timings: Mapping[Key, LayerTiming],
) -> float | None:
    """An error that no single candidate need exceed: about twice the least that is enough.

    Args:
        sites: candidates per site.
        damages: expected error of every candidate.
        demands: per kind of target, the sum of savings that is needed.
        timings: measured layer timings.

    Returns:
        None where all candidates together do not save enough.
    """
    steps = sorted({value for one in damages for value in one})
    least = 0.0
    for kind, demand in demands.items():
        saved = savings(sites, kind, timings)
        # What can be saved grows with the error that is allowed.
        enough = bisect_left(steps, demand, key=partial(_reach, saved, damages))
        if enough == len(steps):
            return None
        least = max(least, steps[enough])
    return _ROOM * least


def _reach(saved: Sequence[Sequence[float]], damages: Damages, most: float) -> float:
    """The sum of what every site saves at best, by candidates that err no more than that."""
    total = 0.0
    for gains, errors in zip(saved, damages, strict=True):
        allowed = np.array(gains)[np.array(errors) <= most]
        total += max(float(allowed.max(initial=0.0)), 0.0)
    return total
