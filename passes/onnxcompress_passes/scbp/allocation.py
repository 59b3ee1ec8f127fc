"""How many channels every group of a superblock gives up, so that together they save enough.

Evenly, as the paper does it, all groups give up the same share. Weighed, they give up by what it
costs: step by step those channels go that damage least for what they save, until as much is saved
as evenly, in parameters and in multiplications. A smaller ratio only goes on from there, so that
what stays at it stayed at the larger one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Counts = tuple[int, ...]
"""Per group, how many channels go."""

Floats = NDArray[np.float64]
_ENOUGH = 1.0 - 1e-9


@dataclass(frozen=True)
class Bill:
    """What is saved when channels go: a layer loses with what it reads times what it makes.

    Attributes:
        linear: per channel of a group, [groups, kinds of cost].
        products: per channel of one times channel of another group, [groups, groups, kinds],
            each pair once; a group that a layer both reads and makes stands on the diagonal.
    """

    linear: Floats
    products: Floats

    @classmethod
    def of(cls, most: Sequence[int], saved: Callable[[Counts], Floats]) -> Bill:
        """Find the numbers by counting single groups at two widths, and pairs.

        Args:
            most: per group, how many channels may go.
            saved: counts what is saved, by kind of cost.
        """
        count = len(most)

        def some(*numbers: tuple[int, int]) -> Floats:
            chosen = dict(numbers)
            return saved(tuple(chosen.get(at, 0) for at in range(count)))

        kinds = len(some())
        linear, products = np.zeros((count, kinds)), np.zeros((count, count, kinds))
        alone: dict[int, Floats] = {}
        for at, width in enumerate(most):
            if not width:
                continue
            alone[at] = some((at, width))
            first = some((at, 1))
            # saved(n) = a n + b n^2, from n = 1 and n = width.
            curve = (alone[at] / width - first) / (width - 1) if width > 1 else np.zeros(kinds)
            products[at, at] = curve
            linear[at] = first - curve
        for one, other in combinations(alone, 2):
            besides = some((one, most[one]), (other, most[other])) - alone[one] - alone[other]
            products[one, other] = besides / (most[one] * most[other])
        return cls(linear, products)

    def saved(self, counts: Sequence[int]) -> Floats:
        """What is saved, by kind of cost."""
        gone = np.array(counts, dtype=np.float64)
        return np.asarray(gone @ self.linear + np.einsum("i,ijk,j->k", gone, self.products, gone))


def weighed(
    bill: Bill,
    evenly: Sequence[Counts],
    most: Sequence[int],
    step: Sequence[int],
    damage: Callable[[int, int], float],
) -> list[Counts]:
    """Counts that save as much as others do, one after the other, and damage no more.

    Args:
        bill: what is saved.
        evenly: counts that say how much is to be saved, each no less than the one before it.
        most: per group, how many channels may go.
        step: per group, how many go at a time.
        damage: what it costs when so many channels of a group are gone.

    Returns:
        As many counts, none of them less than the one before it; where groups have no more to
        give, what they have.
    """

    def total(counts: Counts) -> float:
        return sum(damage(at, count) for at, count in enumerate(counts))

    found: list[Counts] = [(0,) * len(most)]
    for even in evenly:
        counts = _enough(bill, bill.saved(even), found[-1], most, step, damage)
        goes_on = all(a >= b for a, b in zip(even, found[-1], strict=True))
        # Steps that each cost least need not be the cheapest way altogether.
        found.append(even if goes_on and total(even) < total(counts) else counts)
    return found[1:]


def _enough(
    bill: Bill,
    demand: Floats,
    begun: Counts,
    most: Sequence[int],
    step: Sequence[int],
    damage: Callable[[int, int], float],
) -> Counts:
    """Go on from some counts, step by step where it costs least, until a demand is met."""
    counts, kinds = list(begun), demand > 0
    while True:
        saved = bill.saved(counts)
        # What is saved beyond a demand counts no more.
        lacking = np.maximum(demand * _ENOUGH - saved, 0.0)[kinds]
        if not np.any(lacking):
            return tuple(counts)
        best, least = -1, np.inf
        for at, after in enumerate(np.add(counts, step).tolist()):
            if after > most[at]:
                continue
            gained = bill.saved([*counts[:at], after, *counts[at + 1 :]]) - saved
            worth = float((np.minimum(gained[kinds], lacking) / demand[kinds]).sum())
            price = max(0.0, damage(at, after) - damage(at, counts[at]))
            if worth > 0.0 and price / worth < least:
                best, least = at, price / worth
        if best < 0:
            return tuple(counts)
        counts[best] += step[best]
