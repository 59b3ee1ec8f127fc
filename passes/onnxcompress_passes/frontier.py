"""From many possible ranks to a short ladder: the Pareto front of cost against damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from onnxcompress.graph.cost import Cost

S = TypeVar("S")


@dataclass(frozen=True)
class Rung(Generic[S]):
    """One setting with its counted cost and predicted damage."""

    setting: S
    after: Cost
    damage: float


def ladder(rungs: Sequence[Rung[S]], before: Cost, *, steps: int = 8) -> list[Rung[S]]:
    """The rungs worth considering, loosest first.

    Every rung kept is cheaper than the layer as it is, in MACs and in parameters, and costs no
    more and damages no less than the one before it; at most `steps` are kept, spread evenly over
    the logarithm of the MACs.
    """
    front: list[Rung[S]] = []
    ordered = sorted(rungs, key=lambda rung: (rung.damage, rung.after.macs, rung.after.params))
    for rung in ordered:
        limit = front[-1].after if front else before
        if rung.after.macs < limit.macs and rung.after.params < limit.params:
            front.append(rung)
    if len(front) <= steps:
        return front
    # Geometric spacing: from 90 % to 80 % matters as much as from 9 % to 8 %.
    low, high = front[-1].after.macs, front[0].after.macs
    chosen: dict[int, Rung[S]] = {}
    for step in range(steps):
        wanted = high * (low / high) ** (step / max(1, steps - 1))
        index = min(range(len(front)), key=lambda i: abs(front[i].after.macs - wanted))
        chosen[index] = front[index]
    return [chosen[index] for index in sorted(chosen)]
