"""Which channels of a group the layers behind can do without, and what that costs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts
from onnxcompress.numerics.elimination import eliminate, problem_scales
from onnxcompress.numerics.group_lasso import GroupLasso
from onnxcompress.numerics.group_path import path, select
from onnxcompress.numerics.group_swap import refit_error, swap
from onnxcompress.numerics.quadratic import Quadratic
from onnxcompress.plan.channels.consumers import consumers, problems_of, readers
from onnxcompress.plan.known_moments import layer_moments

SELECTORS = ("obs", "lasso")
RIDGE = 1e-6
_FRACTIONS = tuple(float(f) for f in np.geomspace(0.97, 1e-3, 40))


@dataclass(frozen=True)
class Selection:
    """How channels are chosen.

    Attributes:
        selector: "obs" (backward elimination) or "lasso" (group lasso).
        strength: lambda as a fraction of lambda_max; 0 where a number of channels is asked for.
        scale_invariant: penalise what a channel contributes, not its weights.
        reweighted: rounds of reweighted penalties.
    """

    selector: str
    strength: float
    scale_invariant: bool
    reweighted: int

    def kept(self, problems: Sequence[Quadratic], width: int, count: int | None) -> list[int]:
        """The channels that stay, at least one.

        Args:
            problems: what reads them.
            width: how many there are.
            count: how many stay; None lets `strength` decide.
        """
        if count is None:
            lasso = GroupLasso(problems, scale_invariant=self.scale_invariant)
            found = lasso.solve(self.strength * lasso.lambda_max)
            return list(found.active) or [int(np.argmax(found.norms))]
        if self.selector == "lasso":
            chosen = select(
                problems,
                min(count, width),
                scale_invariant=self.scale_invariant,
                reweighted=self.reweighted,
            )
            return sorted(chosen.kept)
        order = eliminate(problems, keep=count, ridge=RIDGE).order
        left = sorted(set(range(width)) - set(order))
        return sorted(swap(problems, left, ridge=RIDGE).kept)


@dataclass(frozen=True)
class Leaving:
    """How the channels of a group go.

    Attributes:
        order: the channels in the order in which they go; those that must stay are not in it.
        errors: relative squared errors of all that reads the group, refitted, after so many of
            them, [n]; as far as they are known.
    """

    order: tuple[int, ...]
    errors: Sequence[float]


def leaving(facts: Facts, coupling: Coupling, group: Group, selection: Selection) -> Leaving:
    """The order in which the channels of a group go."""
    problems = _problems(facts, coupling, group)
    errors: Sequence[float] = ()
    if selection.selector == "lasso":
        whole = _order_of_leaving(problems, group.width, selection)
    else:
        found = eliminate(problems, keep=0, ridge=RIDGE)
        whole = list(found.order)
        errors = found.errors.tolist() if len(whole) == group.width else ()
    whole = [*sorted(set(range(group.width)) - set(whole)), *whole]
    last = _last_ones(coupling, group, whole)
    order = tuple(channel for channel in whole if channel not in last)
    # Behind a channel that stays the elimination went on without it.
    same = sum(1 for _ in takewhile(lambda channel: channel not in last, whole))
    return Leaving(order, errors[: same + 1])


def rebuilt(facts: Facts, coupling: Coupling, group: Group, gone: Sequence[int]) -> float:
    """Relative squared errors of all that reads a group, refitted without some channels."""
    if not gone:
        return 0.0
    problems = _problems(facts, coupling, group)
    scales = problem_scales(problems, None)
    kept = sorted(set(range(group.width)) - set(gone))
    return max(0.0, refit_error(problems, kept, scales, RIDGE))


def _problems(facts: Facts, coupling: Coupling, group: Group) -> tuple[Quadratic, ...]:
    found = consumers(facts, coupling, group)
    return tuple(problems_of(found, layer_moments(facts, readers(facts, coupling))))


def _order_of_leaving(problems: Sequence[Quadratic], width: int, selection: Selection) -> list[int]:
    """Channels in the order in which the group lasso lets go of them as lambda grows."""
    entered = np.zeros(width)
    norms = np.zeros(width)
    for solution in path(problems, _FRACTIONS, scale_invariant=selection.scale_invariant):
        for channel in solution.active:
            entered[channel] = max(entered[channel], solution.lam)
        norms[: len(solution.norms)] = solution.norms
    return sorted(range(width), key=lambda channel: (entered[channel], norms[channel], channel))


def _last_ones(coupling: Coupling, group: Group, order: Sequence[int]) -> set[int]:
    """Of every set of channels of which one has to stay, the one that would go last."""
    covers = [set(cover) for cover in group.covers] + [set(range(group.width))]
    for joint in coupling.joint_covers:
        own = {channel for name, channel in joint if name == group.name}
        if own:
            covers.append(own)
    late = {channel: at for at, channel in enumerate(order)}
    kept: set[int] = set()
    for cover in sorted(covers, key=len):
        if kept.isdisjoint(cover):
            kept.add(max(cover, key=lambda channel: late.get(channel, -1)))
    return kept
