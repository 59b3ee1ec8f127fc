"""The search space: a set of ratios per superblock, all combinations of them, and constraints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, product
from math import comb, prod
from typing import Any

import numpy as np

from onnxcompress.errors import UsageError
from onnxcompress.plan.contract import Candidate
from onnxcompress.search.constraints import Constraint

Vector = tuple[int, ...]
"""Per superblock, which of its ratios; 0 is the whole width."""

_TRIES = 200


@dataclass(frozen=True)
class Space:
    """All combinations of one ratio per superblock that a constraint allows.

    Attributes:
        ratios: per superblock, falling; the first is 1.
        constraint: what combinations must satisfy.
    """

    ratios: tuple[tuple[float, ...], ...]
    constraint: Constraint

    @property
    def size(self) -> int:
        """How many combinations there are, whether they are allowed or not."""
        return prod(len(each) for each in self.ratios)

    def values(self, vector: Vector) -> tuple[float, ...]:
        """The ratios of a combination."""
        return tuple(each[at] for each, at in zip(self.ratios, vector, strict=True))

    def vector(self, ratios: Sequence[float]) -> Vector:
        """The combination with these ratios.

        Raises:
            UsageError: a superblock does not have such a ratio.
        """
        told = labelled(ratios)
        if len(ratios) != len(self.ratios):
            raise UsageError(f"{told}: there are {len(self.ratios)} superblocks")
        for ratio, known in zip(ratios, self.ratios, strict=True):
            if ratio not in known:
                raise UsageError(f"{told}: {ratio:g} is none of {labelled(known)}")
        return tuple(known.index(r) for r, known in zip(ratios, self.ratios, strict=True))

    def allows(self, vector: Vector) -> bool:
        """Whether the constraint holds."""
        return self.constraint.allows(self.values(vector))

    @property
    def listed(self) -> int:
        """How many combinations `vectors` goes through."""
        if not self.falls:
            return self.size
        count, kinds = len(self.ratios), len(self.ratios[0])
        return comb(count + kinds - 1, count)

    def vectors(self) -> Iterator[Vector]:
        """All allowed combinations, one after the other; nothing is kept."""
        if self.falls:
            every: Iterator[Vector] = combinations_with_replacement(
                range(len(self.ratios[0])), len(self.ratios)
            )
        else:
            every = product(*(range(len(each)) for each in self.ratios))
        return (vector for vector in every if self.allows(vector))

    def draw(self, generator: np.random.Generator) -> Vector:
        """An allowed combination at random.

        Raises:
            UsageError: none was found: the constraint leaves next to nothing.
        """
        for _ in range(_TRIES):
            vector = self._drawn(generator)
            if self.allows(vector):
                return vector
        raise UsageError(
            f"--constraint '{self.constraint.text}' holds for none of {_TRIES} random combinations"
        )

    def _drawn(self, generator: np.random.Generator) -> Vector:
        if not self.falls:
            return tuple(int(generator.integers(len(each))) for each in self.ratios)
        # Stars and bars: every falling combination is as likely as any other.
        count, kinds = len(self.ratios), len(self.ratios[0])
        places = np.sort(generator.choice(count + kinds - 1, count, replace=False))
        return tuple(int(place) for place in places - np.arange(count))

    def settled(self, vector: Sequence[int]) -> Vector:
        """A combination with its ratios in falling order, where the constraint asks for that."""
        return tuple(sorted(vector)) if self.falls else tuple(vector)

    @cached_property
    def falls(self) -> bool:
        """Whether ratios are to fall, and all superblocks have the same."""
        return self.constraint.falling and len(set(self.ratios)) == 1


def labelled(ratios: Sequence[float]) -> str:
    """Ratios as they stand in file names and tables."""
    return "-".join(f"{ratio:g}" for ratio in ratios)


def chosen_by(
    vector: Vector, sites: Sequence[Sequence[Candidate[Any]]]
) -> tuple[Candidate[Any], ...]:
    """The candidates of a combination; superblocks at their whole width are left out."""
    return tuple(offers[at] for offers, at in zip(sites, vector, strict=True) if at)
