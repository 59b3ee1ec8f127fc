"""Structured pruning: channels go everywhere at once, through residuals, concatenations, shuffles.

The coupling engine says which channels must go together; a criterion says which matter least
(Molchanov et al. 2017, arXiv 1611.06440); the plan says how many of each group stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts, Need
from onnxcompress.errors import UsageError
from onnxcompress.plan.channels.damage import channel_damage
from onnxcompress.plan.saliency.criteria import CRITERIA
from onnxcompress.plan.saliency.filters import NORMS
from onnxcompress.plan.saliency.normalise import NORMALISATIONS
from onnxcompress_passes.channel_pass import ChannelPass
from onnxcompress_passes.channel_ranking import (
    COMBINATIONS,
    SCOPES,
    Ranking,
    Removals,
    order_within,
    removal_sequence,
)


@dataclass(frozen=True)
class Prune(ChannelPass):
    """Remove the least important channels of coupled groups of layers."""

    criterion: str = field(default="weight", metadata={"help": f"one of {', '.join(CRITERIA)}"})
    norm: str = field(
        default="l2", metadata={"help": "criterion=weight: l2, l1, or min (mean square)"}
    )
    normalise: str = field(
        default="l2", metadata={"help": "scores within a layer: none, l1, l2 or minmax"}
    )
    combine: str = field(
        default="sum", metadata={"help": "scores of a group's layers: sum, mean or max"}
    )
    scope: str = field(
        default="layer",
        metadata={"help": "channels=F: of every group (layer), or of all together (global)"},
    )
    per_step: int = field(
        default=0,
        metadata={"help": "score again after this many channels (iterative); 0 is one shot"},
    )
    flops: float = field(
        default=0.0,
        metadata={"help": "taken off normalised scores per million operations of a channel"},
    )
    seed: int = field(default=0, metadata={"help": "of criterion=random"})

    name: ClassVar[str] = "prune"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need.SHAPES, Need.COUPLING, Need.ACTIVATIONS, Need.GRADIENTS}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, value, known in (
            ("criterion", self.criterion, tuple(CRITERIA)),
            ("norm", self.norm, NORMS),
            ("normalise", self.normalise, NORMALISATIONS),
            ("combine", self.combine, COMBINATIONS),
            ("scope", self.scope, SCOPES),
        ):
            if value not in known:
                raise UsageError(f"prune: {option}={value!r} is none of {', '.join(known)}")
        if isinstance(self.flops, bool) or not isinstance(self.flops, (int, float)):
            raise UsageError(f"prune: flops={self.flops!r} is not a number")
        if not 0.0 <= self.flops < float("inf"):
            raise UsageError(f"prune: flops={self.flops!r} must be a number >= 0")
        if self.scope == "global" and not self.channels and not self.per_step:
            raise UsageError(
                "prune: scope=global goes with channels=F or per_step=N; without them the plan "
                "weighs all groups against each other anyway"
            )
        if self.flops and self.scope != "global":
            raise UsageError(
                "prune: flops goes with scope=global: within a layer all channels cost the same"
            )
        whole = {"per_step": self.per_step, "seed": self.seed}
        for option, number in whole.items():
            if type(number) is not int or number < 0:
                raise UsageError(f"prune: {option}={number!r} must be a whole number >= 0")

    def order(self, group: Group, facts: Facts, coupling: Coupling) -> tuple[int, ...]:
        """The channels of a group that may go, in the order in which they go."""
        return order_within(self._sequence(facts, coupling), group.name)

    def damage(self, group: Group, gone: Sequence[int], facts: Facts, coupling: Coupling) -> float:
        """What it damages when these channels go."""
        each = facts.recall(
            ("channel damage", group.name), lambda: channel_damage(facts, coupling, group)
        )
        return float(each[list(gone)].sum())

    def _sequence(self, facts: Facts, coupling: Coupling) -> Removals:
        ranking = Ranking(
            self.criterion,
            self.norm,
            self.normalise,
            self.combine,
            self.scope,
            self.per_step,
            self.seed,
            self.flops,
        )
        return facts.recall(ranking, lambda: removal_sequence(facts, coupling, ranking))

    def _demanded(self, group: Group, facts: Facts, coupling: Coupling) -> int:
        """How many channels of a group go when the fraction `channels` stays."""
        if self.scope != "global":
            return super()._demanded(group, facts, coupling)
        total = sum(each.width for each in coupling.groups)
        first = self._sequence(facts, coupling)[: total - max(1, round(self.channels * total))]
        return self._rounded(group, sum(name == group.name for name, _ in first))
