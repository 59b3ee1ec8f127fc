"""Which residual branches go, one after the other, each judged on a network that was repaired.

What a branch costs before anything makes up for it says little about what it costs afterwards, and
a branch that could be spared may not be once its neighbour is gone. So the network is repaired
after every removal, and the next branch is the one whose absence the repaired network minds least
for what it saves. A branch is tried only when it comes up as the best: removals before it seldom
make it cheaper, and at first it stands where its probe put it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from onnxcompress.plan.contract import Candidate
from onnxcompress.plan.search import Chosen

HOPELESS = 1.0
"""Relative squared error of the outputs at which nothing is left of what they say."""

_LEAST = 1e-9

_TRUST = 0.5
"""What share of the error that a probe found is taken for granted: it saw few samples."""


class Step(Protocol):
    """The network without some branches, repaired."""

    @property
    def error(self) -> float:
        """Relative squared error of its outputs."""

    def without(self, branch: Candidate[Any]) -> float:
        """The error once another branch goes, too, before anything makes up for it."""


def branch_path(
    branches: Sequence[Candidate[Any]],
    worth: Sequence[float],
    errors: Sequence[float],
    barred: Callable[[Candidate[Any], Candidate[Any]], bool],
    step: Callable[[Chosen], Step],
    enough: Callable[[Chosen], bool],
    *,
    start: Chosen = (),
    progress: Callable[[int, int], None] | None = None,
) -> Chosen:
    """Branches in the order in which they go, until they save enough or nothing is left to say.

    Args:
        branches: every branch that may go.
        worth: what each of them saves.
        errors: of the outputs without each of them, as probes expect.
        barred: whether two of them cannot both go.
        step: removes some and repairs.
        enough: whether these save as much as is asked.
        start: those that go first, and are not enough.
        progress: told how many are gone, of as many as there are.
    """
    able = [at for at, saved in enumerate(worth) if saved > 0.0 and branches[at] not in start]
    path = list(start)
    now = step(start)
    waiting = [(_TRUST * errors[at] / worth[at], at, -1) for at in able]
    heapq.heapify(waiting)
    while waiting and now.error < HOPELESS and (path == list(start) or not enough(tuple(path))):
        _, at, known = heapq.heappop(waiting)
        branch = branches[at]
        if any(barred(branch, other) for other in path):
            continue
        if known < len(path):
            more = max(now.without(branch) - now.error, _LEAST)
            heapq.heappush(waiting, (more / worth[at], at, len(path)))
            continue
        path.append(branch)
        now = step(tuple(path))
        if progress is not None:
            progress(len(path), len(branches))
    return tuple(path)
