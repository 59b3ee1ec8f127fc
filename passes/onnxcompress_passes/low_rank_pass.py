"""What the low-rank passes share: the option `rank`, and how ranks become candidates.

A layer's weight is a list of equal blocks, one per group, which get equal ranks. A table of lost
energy predicts the damage of every choice of ranks at once; of all of them the Pareto front of
cost against damage is offered.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxcompress.analyse.facts import Facts, Need
from onnxcompress.errors import UsageError
from onnxcompress.graph.cost import Cost
from onnxcompress.numerics.ranks import RankPolicy, parse_rank_policy
from onnxcompress.plan.contract import Candidate, NoCandidate, Pass, Site
from onnxcompress_passes.frontier import Rung, ladder

Array = NDArray[np.float64]
Ranks = tuple[int, ...]
L = TypeVar("L")
S = TypeVar("S")

AUTO = "auto"


@dataclass(frozen=True)
class LowRankPass(Pass[S], Generic[L, S]):
    """Base of the passes that replace a layer by factors; L is the layer's spec, S the setting."""

    rank: str = field(
        default=AUTO,
        metadata={
            "help": "auto (a ladder of ranks to plan with; EVBMF decides when there is nothing to "
            "plan by), evbmf, weakened:K, energy:P, ratio:P, R, ROUTxRIN (tucker2), or full"
        },
    )
    round_to: int = field(
        default=8, metadata={"help": "rank=auto offers multiples of this many channels"}
    )

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SHAPES})

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", str(self.rank))
        if self.rank != AUTO:
            parse_rank_policy(self.rank)
        if type(self.round_to) is not int or self.round_to < 1:
            raise UsageError(f"{self.name}: round_to={self.round_to!r} must be a whole number >= 1")

    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[S]]:
        """Lossless factors first, then falling ranks; with `rank` given, that choice alone."""
        layer, blocks = self._layer(site.node, facts)
        before, lost, full = facts.cost(site.node), self._lost_energy(blocks), self._full(blocks)

        def offer(ranks: Ranks, *, recommended: bool = False) -> Candidate[S]:
            setting = self._setting(ranks, lossless=ranks == full)
            after = self._cost(layer, facts, setting)
            damage = 0.0 if ranks == full else float(lost[ranks])
            return Candidate(site, setting, (site.node,), before, after, damage, recommended)

        if self.rank != AUTO:
            return [offer(self._demanded(blocks, full), recommended=True)]
        rungs = [
            Rung(ranks, offer(ranks).after, float(lost[ranks]))
            for ranks in product(*(_multiples(size, self.round_to) for size in full))
            if ranks != full
        ]
        kept = ladder(rungs, before)
        # The cheapest rung that keeps at least the energy that EVBMF calls signal.
        signal = self._ranks(parse_rank_policy("evbmf"), blocks)
        fitting = [r for r in kept if 0 not in signal and r.damage <= lost[signal] * (1 + 1e-9)]
        chosen = fitting[-1].setting if fitting else None
        return [offer(full), *(offer(r.setting, recommended=r.setting == chosen) for r in kept)]

    def _demanded(self, blocks: Sequence[Array], full: Ranks) -> Ranks:
        policy = parse_rank_policy(self.rank)
        if str(policy) == "full":
            return full
        try:
            ranks = self._ranks(policy, blocks)
        except UsageError as error:
            raise NoCandidate(str(error)) from error
        if 0 in ranks:
            raise NoCandidate(f"{policy} gives rank 0: no direction stands out from the noise")
        if all(rank >= size for rank, size in zip(ranks, full, strict=True)):
            sizes = "x".join(map(str, full))
            raise NoCandidate(f"{policy} gives full rank ({sizes}): nothing to remove")
        return ranks

    @abc.abstractmethod
    def _layer(self, node: str, facts: Facts) -> tuple[L, list[Array]]:
        """The layer's spec, and its weight in float64 as one block per group."""

    @abc.abstractmethod
    def _full(self, blocks: Sequence[Array]) -> Ranks:
        """The ranks at which nothing is lost."""

    @abc.abstractmethod
    def _ranks(self, policy: RankPolicy, blocks: Sequence[Array]) -> Ranks:
        """The ranks a policy gives: in each mode the largest that one of the groups needs."""

    @abc.abstractmethod
    def _lost_energy(self, blocks: Sequence[Array]) -> Array:
        """Relative squared error of the weight, indexed by ranks."""

    @abc.abstractmethod
    def _setting(self, ranks: Ranks, *, lossless: bool) -> S:
        """The pass's setting for these ranks."""

    @abc.abstractmethod
    def _cost(self, layer: L, facts: Facts, setting: S) -> Cost:
        """Counted cost of the factors."""


def _multiples(full: int, step: int) -> list[int]:
    return [*range(step, full, step), full]
