"""What the low-rank passes share: the option `rank`, and how ranks become candidates.

A layer's weight is a list of equal blocks, one per group, which get equal ranks. A table of lost
energy, of the weights or of the layer's answers on calibration inputs, predicts the damage of every
choice of ranks at once; of all of them the Pareto front of cost against damage is offered.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxcompress.analyse.facts import Facts, Need
from onnxcompress.analyse.linear import linear_layer
from onnxcompress.errors import UsageError
from onnxcompress.graph.cost import Cost
from onnxcompress.numerics.ranks import RankPolicy, parse_rank_policy
from onnxcompress.plan.contract import Candidate, NoCandidate, Pass, Site
from onnxcompress.plan.known_moments import MOST_FEATURES, layer_moments
from onnxcompress_passes.frontier import Rung, ladder
from onnxcompress_passes.nuclear_rank import NUCLEAR, nuclear_fraction, nuclear_rank
from onnxcompress_passes.recentred import metric_of

Array = NDArray[np.float64]
Ranks = tuple[int, ...]
L = TypeVar("L")
S = TypeVar("S")

AUTO = "auto"
DATA, WEIGHTS = "data", "weights"
METRICS = (AUTO, DATA, WEIGHTS)


@dataclass(frozen=True)
class LowRankPass(Pass[S], Generic[L, S]):
    """Base of the passes that replace a layer by factors; L is the layer's spec, S the setting."""

    rank: str = field(
        default=AUTO,
        metadata={
            "help": "auto (a ladder of ranks to plan with; EVBMF decides when there is nothing to "
            "plan by), evbmf, weakened:K, energy:P, ratio:P, nuclear:F (what a penalty of F times "
            "the one that leaves nothing leaves), R, ROUTxRIN (tucker2), or full"
        },
    )
    round_to: int = field(
        default=8, metadata={"help": "rank=auto offers multiples of this many channels"}
    )

    rungs: int = field(
        default=8,
        kw_only=True,
        metadata={"help": "rank=auto offers at most this many ranks per layer to plan with"},
    )
    metric: str = field(
        default="auto",
        kw_only=True,
        metadata={
            "help": "what an error counts: weights (no data needed), data (what it changes in the "
            "layer's answers on calibration inputs), or auto (data where there is some)"
        },
    )

    needs: ClassVar[frozenset[Need]] = frozenset({Need.SHAPES, Need.MOMENTS})

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", str(self.rank))
        if self.rank.startswith(NUCLEAR):
            if nuclear_fraction(self.rank) is None or self.metric == WEIGHTS:
                raise UsageError(
                    f"{self.name}: rank={self.rank!r} takes a fraction between 0 and 1, and goes "
                    "with metric=data"
                )
        elif self.rank != AUTO:
            parse_rank_policy(self.rank)
        if type(self.round_to) is not int or self.round_to < 1:
            raise UsageError(f"{self.name}: round_to={self.round_to!r} must be a whole number >= 1")
        if type(self.rungs) is not int or self.rungs < 1:
            raise UsageError(f"{self.name}: rungs={self.rungs!r} must be a whole number >= 1")
        if self.metric not in METRICS:
            raise UsageError(f"{self.name}: metric={self.metric!r} is none of {', '.join(METRICS)}")

    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[S]]:
        """Lossless factors first, then falling ranks; with `rank` given, that choice alone."""
        layer, blocks = self._layer(site.node, facts)
        before, full = facts.cost(site.node), self._full(blocks)
        covariances = self._covariances(site.node, facts)
        lost = self._lost_energy(blocks, covariances)

        def offer(ranks: Ranks, *, recommended: bool = False) -> Candidate[S]:
            lossless = ranks == full
            metric = DATA if covariances is not None and not lossless else WEIGHTS
            setting = self._setting(ranks, metric, lossless=lossless)
            after = self._cost(layer, facts, setting)
            damage = 0.0 if ranks == full else float(lost[ranks])
            return Candidate(
                site,
                setting,
                (site.node,),
                before,
                after,
                damage,
                recommended,
                follows=len(blocks) == 1,
            )

        if self.rank != AUTO:
            return [offer(self._demanded(blocks, full, covariances), recommended=True)]
        rungs = [
            Rung(ranks, offer(ranks).after, float(lost[ranks]))
            for ranks in product(*(_multiples(size, self.round_to) for size in full))
            if ranks != full
        ]
        kept = ladder(rungs, before, steps=self.rungs)
        if covariances is not None:
            exact = [replace(r, damage=self._damage(blocks, covariances, r)) for r in kept]
            kept = ladder(exact, before, steps=self.rungs)
        # The cheapest rung that keeps at least the energy that EVBMF calls signal.
        signal = self._ranks(parse_rank_policy("evbmf"), blocks)
        fitting = [r for r in kept if 0 not in signal and r.damage <= lost[signal] * (1 + 1e-9)]
        chosen = fitting[-1].setting if fitting else None
        return [offer(full), *(offer(r.setting, recommended=r.setting == chosen) for r in kept)]

    def _demanded(self, blocks: Sequence[Array], full: Ranks, covariances: Array | None) -> Ranks:
        fraction = nuclear_fraction(self.rank)
        if fraction is not None:
            if covariances is None:
                raise NoCandidate("rank=nuclear needs calibration inputs: give --data")
            rank = nuclear_rank(blocks, covariances, fraction)
            if not 0 < rank < full[0]:
                raise NoCandidate(f"the nuclear norm leaves rank {rank} of {full[0]}")
            return (rank, *full[1:])
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

    def describe(self, setting: S) -> str:
        """The ranks, and what they were measured by where that is the data."""
        values = dataclasses.asdict(setting)  # type: ignore[call-overload]
        ranks = "x".join(str(v) for v in values.values() if type(v) is int)
        return f"{ranks} by data" if values["metric"] == DATA else ranks

    def needs_data(self, setting: S) -> bool:
        """Factors in the metric of the data are worked out from it."""
        return bool(dataclasses.asdict(setting)["metric"] == DATA)  # type: ignore[call-overload]

    @abc.abstractmethod
    def _layer(self, node: str, facts: Facts) -> tuple[L, list[Array]]:
        """The layer's spec, and its weight in float64 as one block per group."""

    @abc.abstractmethod
    def _full(self, blocks: Sequence[Array]) -> Ranks:
        """The ranks at which nothing is lost."""

    @abc.abstractmethod
    def _ranks(self, policy: RankPolicy, blocks: Sequence[Array]) -> Ranks:
        """The ranks a policy gives: in each mode the largest that one of the groups needs."""

    def _covariances(self, node: str, facts: Facts) -> Array | None:
        """Covariance of what the layer reads, one per group; None in the metric of the weights.

        Raises:
            NoCandidate: the data is asked for, and there is none, or the layer is too wide.
        """
        if self.metric == WEIGHTS:
            return None
        reason = ""
        if facts.moments() is None:
            reason = "metric=data needs calibration inputs: give --data"
        elif self._features(node, facts) > MOST_FEATURES:
            reason = f"it reads more than {MOST_FEATURES} numbers: metric=weights takes less memory"
        if reason and self.metric == DATA:
            raise NoCandidate(reason)
        if reason:
            return None
        every = [site.node for site in self.sites(facts) if isinstance(site, Site)]
        fitting = [name for name in every if self._features(name, facts) <= MOST_FEATURES]
        layer = linear_layer(facts.view.nodes[node], facts.view)
        return metric_of(layer, layer_moments(facts, fitting)[node], facts.view)

    @staticmethod
    def _features(node: str, facts: Facts) -> int:
        return linear_layer(facts.view.nodes[node], facts.view).features

    @abc.abstractmethod
    def _lost_energy(self, blocks: Sequence[Array], covariances: Array | None) -> Array:
        """Relative squared error of the weight, or of the answers, indexed by ranks."""

    def _damage(self, blocks: Sequence[Array], covariances: Array, rung: Rung[Ranks]) -> float:
        """What ranks really lose in the metric of the data, where the table only bounds it."""
        return rung.damage

    @abc.abstractmethod
    def _setting(self, ranks: Ranks, metric: str, *, lossless: bool) -> S:
        """The pass's setting for these ranks."""

    @abc.abstractmethod
    def _cost(self, layer: L, facts: Facts, setting: S) -> Cost:
        """Counted cost of the factors."""


def _multiples(full: int, step: int) -> list[int]:
    return [*range(step, full, step), full]
