"""What combinations are expected to be like, before any of them is built.

Errors of the outputs are those of single superblocks at single ratios, added up. Parameters, bytes
and MACs are counted: a layer between two superblocks loses on both sides, so that what two of them
save together differs from the sum; what three save together follows from the pairs. Milliseconds
saved by single superblocks are measured, and those of pairs corrected as their MACs are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcompress.analyse.facts import Facts
from onnxcompress.graph.cost import Cost
from onnxcompress.plan.contract import Candidate, Pass

Floats = NDArray[np.float64]
Sites = Sequence[Sequence[Candidate[Any]]]
KINDS = ("macs", "params", "weight_bytes")
OBJECTIVES = 3
"""Error, bytes and milliseconds."""


@dataclass(frozen=True)
class Sums:
    """A quantity that superblocks save: by themselves, and what pairs save besides.

    Attributes:
        single: per superblock, by ratio.
        pairs: by two superblocks, [ratios of the one, ratios of the other]; pairs that save nothing
            besides are left out.
    """

    single: tuple[Floats, ...]
    pairs: Mapping[tuple[int, int], Floats]

    def of(self, vectors: NDArray[np.intp]) -> Floats:
        """What combinations [n, superblocks] save, [n]."""
        total = np.zeros(len(vectors))
        for at, each in enumerate(self.single):
            total += each[vectors[:, at]]
        for (one, other), table in self.pairs.items():
            total += table[vectors[:, one], vectors[:, other]]
        return total


@dataclass(frozen=True)
class Estimates:
    """Expected objectives of combinations.

    Attributes:
        error: relative squared error of the outputs, by superblock and ratio.
        counted: what is saved, by kind of cost.
        ms: milliseconds that are saved.
        file_bytes: of the network that ratios are taken of.
        latency_ms: of the same.
    """

    error: tuple[Floats, ...]
    counted: Mapping[str, Sums]
    ms: Sums
    file_bytes: int
    latency_ms: float

    def objectives(self, vectors: NDArray[np.intp]) -> Floats:
        """Error, bytes and milliseconds of combinations [n, superblocks], as [n, 3]."""
        error = Sums(self.error, {}).of(vectors)
        octets = self.file_bytes - self.counted["weight_bytes"].of(vectors)
        return np.stack([error, octets, self.latency_ms - self.ms.of(vectors)], axis=1)


def count(sites: Sites, owner: Pass[Any], facts: Facts) -> dict[str, Sums]:
    """What superblocks save, alone and in pairs, by kind of cost.

    Args:
        sites: candidates per superblock; the first takes nothing.
        owner: the pass whose candidates they are.
        facts: about the model, with all that the pass needs.
    """
    view = facts.restricted(owner.needs)
    single = [[_values(candidate.saving) for candidate in offers] for offers in sites]

    def besides(one: int, first: int, other: int, second: int) -> Floats:
        together = owner.saving_together([sites[one][first], sites[other][second]], view)
        return _values(together) - single[one][first] - single[other][second]

    pairs: dict[tuple[int, int], Floats] = {}
    for one, other in combinations(range(len(sites)), 2):
        last = len(sites[one]) - 1, len(sites[other]) - 1
        if not np.any(besides(one, last[0], other, last[1])):
            continue
        table = np.zeros((last[0] + 1, last[1] + 1, len(KINDS)))
        for first, second in np.ndindex(*last):
            table[first + 1, second + 1] = besides(one, first + 1, other, second + 1)
        pairs[one, other] = table
    return {
        kind: Sums(
            tuple(np.array(rows)[:, at] for rows in single),
            {pair: table[..., at] for pair, table in pairs.items()},
        )
        for at, kind in enumerate(KINDS)
    }


def in_proportion(saved_ms: Sequence[Floats], macs: Sums) -> Sums:
    """Milliseconds that pairs save besides: as many of theirs as of their MACs.

    Args:
        saved_ms: measured, per superblock and ratio.
        macs: counted.
    """
    pairs = {}
    for (one, other), table in macs.pairs.items():
        both = macs.single[one][:, np.newaxis] + macs.single[other]
        ms = saved_ms[one][:, np.newaxis] + saved_ms[other]
        pairs[one, other] = table * np.divide(ms, both, out=np.zeros_like(ms), where=both > 0)
    return Sums(tuple(saved_ms), pairs)


def singles(sites: Sites) -> list[tuple[int, ...]]:
    """The combinations with one superblock narrower, from which all others are estimated."""
    return [
        tuple(ratio if number == at else 0 for number in range(len(sites)))
        for at, offers in enumerate(sites)
        for ratio in range(1, len(offers))
    ]


def by_superblock(sites: Sites, value: Callable[[tuple[int, ...]], float]) -> tuple[Floats, ...]:
    """A quantity of the single combinations, as [ratios] per superblock; 0 at the whole width."""
    tables = tuple(np.zeros(len(offers)) for offers in sites)
    for vector in singles(sites):
        at = int(np.flatnonzero(vector)[0])
        tables[at][vector[at]] = value(vector)
    return tables


def _values(cost: Cost) -> Floats:
    return np.array([float(getattr(cost, kind)) for kind in KINDS])
