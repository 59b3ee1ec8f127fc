"""Structured pruning: channels go everywhere at once, through residuals, concatenations, shuffles.

The coupling engine says which channels must go together; a criterion says which matter least
(Molchanov et al. 2017, arXiv 1611.06440); the plan says how many of each group stay. What a
removed channel leaves behind as a constant moves into the next bias, so that the result equals
the original with these channels forced to zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx

from onnxcompress.analyse.coupling.grouping import LAYERS
from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts, Need
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.graph.editing import apply_edits
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.view import GraphView
from onnxcompress.plan.channels.cost import Toll, toll
from onnxcompress.plan.channels.damage import channel_damage
from onnxcompress.plan.channels.excerpt import excerpts
from onnxcompress.plan.channels.known import coupling_of
from onnxcompress.plan.channels.plan_cuts import plan_cuts
from onnxcompress.plan.channels.remove import zero_in
from onnxcompress.plan.contract import Candidate, NoCandidate, Pass, Refusal, Site
from onnxcompress.plan.saliency.criteria import CRITERIA
from onnxcompress.plan.saliency.filters import NORMS
from onnxcompress.plan.saliency.normalise import NORMALISATIONS
from onnxcompress_passes.channel_ranking import (
    COMBINATIONS,
    SCOPES,
    Ranking,
    Removals,
    order_within,
    removal_sequence,
)
from onnxcompress_passes.eligibility import QUANTISED, quantised_layers
from onnxcompress_passes.prune_branches import (
    branch_cost,
    branch_damage,
    branch_excerpt,
    branch_mean,
    branches,
    chosen_means,
    force_to_means,
    forced,
    replace_by_means,
    staying_channels,
)
from onnxcompress_passes.prune_groups import reason_to_keep
from onnxcompress_passes.prune_setting import (
    KeptChannels,
    dearer,
    read_setting,
    removed_channels,
    widths,
)


@dataclass(frozen=True)
class Prune(Pass[KeptChannels]):
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
    channels: float = field(
        default=0.0,
        metadata={"help": "fraction of the channels that stays; 0 lets the plan choose widths"},
    )
    scope: str = field(
        default="layer",
        metadata={"help": "channels=F: of every group (layer), or of all together (global)"},
    )
    round_to: int = field(
        default=0,
        metadata={"help": "widths are multiples of this; 0 takes the measured latency steps"},
    )
    per_step: int = field(
        default=0,
        metadata={"help": "score again after this many channels (iterative); 0 is one shot"},
    )
    branches: bool = field(
        default=True,
        metadata={"help": "offer residual branches at width zero: replaced by their mean"},
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
    # Channels that go take accuracy along that nothing repairs yet: only on request.
    in_balanced: ClassVar[bool] = False
    setting_type: ClassVar[type] = KeptChannels

    def __post_init__(self) -> None:
        for option, value, known in (
            ("criterion", self.criterion, tuple(CRITERIA)),
            ("norm", self.norm, NORMS),
            ("normalise", self.normalise, NORMALISATIONS),
            ("combine", self.combine, COMBINATIONS),
            ("scope", self.scope, SCOPES),
        ):
            if value not in known:
                raise UsageError(f"prune: {option}={value!r} is none of {', '.join(known)}")
        for option, number in (("channels", self.channels), ("flops", self.flops)):
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise UsageError(f"prune: {option}={number!r} is not a number")
        if not 0.0 <= self.flops < float("inf"):
            raise UsageError(f"prune: flops={self.flops!r} must be a number >= 0")
        if not 0.0 <= self.channels <= 1.0:
            raise UsageError(f"prune: channels={self.channels!r} must lie between 0 and 1")
        if self.scope == "global" and not self.channels and not self.per_step:
            raise UsageError(
                "prune: scope=global goes with channels=F or per_step=N; without them the plan "
                "weighs all groups against each other anyway"
            )
        if not isinstance(self.branches, bool):
            raise UsageError(f"prune: branches={self.branches!r} must be true or false")
        if self.flops and self.scope != "global":
            raise UsageError(
                "prune: flops goes with scope=global: within a layer all channels cost the same"
            )
        whole = {"round_to": self.round_to, "per_step": self.per_step, "seed": self.seed}
        for option, number in whole.items():
            if type(number) is not int or number < 0:
                raise UsageError(f"prune: {option}={number!r} must be a whole number >= 0")

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        """The first layer of every group; other layers with the group they go with, or why not."""
        try:
            coupling = facts.coupling()
        except ModelError as error:
            for node in facts.model.graph.node:
                if node.op_type in LAYERS:
                    yield Refusal(self.name, node.name, f"coupling cannot be found: {error}")
            return
        for node in facts.model.graph.node:
            if node.op_type in LAYERS and node.domain in {"", "ai.onnx"}:
                yield self._found(node, coupling, facts)
        for name, reason in quantised_layers(facts, QUANTISED):
            yield Refusal(self.name, name, reason)
        if self.branches and not self.channels:
            for add, branch in branches(facts).items():
                mean = branch_mean(facts, branch)
                changed = (add, *branch_cost(facts, branch, mean)[0]) if facts.excluded else ()
                kept = [name for name in changed if name in facts.excluded]
                if kept:
                    yield Refusal(self.name, add, f"excluded by the user with '{kept[0]}'")
                else:
                    yield Site(self.name, add)

    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[KeptChannels]]:
        """All channels first, then falling widths; with `channels` given, that width alone."""
        if site.node in branches(facts):
            return self._without_branch(site, facts)
        coupling = facts.coupling()
        group = coupling.group(site.node)
        sequence = self._sequence(facts, coupling)
        order = order_within(sequence, group.name)
        damage = channel_damage(facts, coupling, group)

        def cut(count: int) -> Toll:
            gone = {group.name: order[:count]}
            return toll(facts, plan_cuts(facts.view, coupling, gone, counting=True))

        # All candidates are set against the same nodes, so that their costs can be compared.
        whole = cut(len(order)).before

        def offer(count: int, *, recommended: bool = False) -> Candidate[KeptChannels]:
            gone, cost = order[:count], cut(count)
            return Candidate(
                site,
                KeptChannels(tuple(sorted(set(range(group.width)) - set(gone)))),
                tuple(dict.fromkeys((site.node, *cost.touches))),
                whole,
                whole - (cost.before - cost.after),
                float(damage[list(gone)].sum()),
                recommended,
            )

        if self.channels:
            count = self._demanded(coupling, group, sequence, len(order))
            if not count:
                raise NoCandidate(f"all {group.width} channels stay at channels={self.channels:g}")
            return [offer(count, recommended=True)]
        offers = [offer(0)]
        for width in widths(group.width, group.width - len(order), self.round_to):
            rung = offer(group.width - width)
            if not dearer(rung.after, offers[-1].after):
                offers.append(rung)
        if len(offers) == 1:
            raise NoCandidate(f"{group.width} channels: no smaller width is on offer")
        return offers

    def rewrite(self, candidate: Candidate[KeptChannels], edit: Editor) -> None:
        """Remove the channels of one group."""
        self.rewrite_together([candidate], edit)

    def rewrite_together(self, candidates: Sequence[Candidate[KeptChannels]], edit: Editor) -> None:
        """Remove the channels of several groups: all edits are worked out on the original graph.

        Raises:
            ModelError: the graph was pruned already.
            PassError: it does not have these channels.
        """
        edit.claim(self.name)
        coupling = coupling_of(edit)
        removed = removed_channels(candidates, coupling)
        view = GraphView(edit.model)
        apply_edits(plan_cuts(view, coupling, removed), edit)
        gone = coupling.classes(removed)
        means = chosen_means(candidates, view, coupling)
        replace_by_means(edit, [(b, m[staying_channels(b, m, coupling, gone)]) for b, m in means])

    def reference(self, candidates: Sequence[Candidate[KeptChannels]], edit: Editor) -> bool:
        """The original with these channels forced to zero, and these branches to their means."""
        coupling = coupling_of(edit)
        gone = coupling.classes(removed_channels(candidates, coupling))
        zero_in(edit, coupling, gone)
        means = chosen_means(candidates, GraphView(edit.model), coupling)
        force_to_means(edit, [(b, forced(b, m, coupling, gone)) for b, m in means])
        return True

    def excerpts(
        self, candidate: Candidate[KeptChannels], facts: Facts
    ) -> Sequence[tuple[onnx.ModelProto, onnx.ModelProto]]:
        """Every layer that changes, at both widths."""
        branch = branches(facts).get(candidate.site.node)
        if branch is not None:
            return branch_excerpt(facts, branch, np.array(candidate.setting.mean))
        coupling = facts.coupling()
        removed = removed_channels([candidate], coupling)
        edits = plan_cuts(facts.view, coupling, removed)
        return excerpts(facts.view, coupling, coupling.classes(removed), edits, facts.shapes())

    def describe(self, setting: KeptChannels) -> str:
        """How many channels stay."""
        return f"{len(setting.kept)} channels" if setting.kept else "the branch's mean"

    def load_setting(self, values: dict[str, Any]) -> KeptChannels:
        """A setting from the plan file.

        Raises:
            UsageError: the values do not fit this pass.
        """
        return read_setting(values)

    def _without_branch(self, site: Site, facts: Facts) -> list[Candidate[KeptChannels]]:
        branch = branches(facts)[site.node]
        mean = branch_mean(facts, branch)
        touches, before, after = branch_cost(facts, branch, mean)
        if before.macs <= after.macs:
            raise NoCandidate("nothing is saved without this branch")
        setting = KeptChannels((), tuple(mean.tolist()))
        damage = branch_damage(facts, branch)
        touches = tuple(dict.fromkeys((site.node, *touches)))
        return [Candidate(site, setting, touches, before, after, damage, removes=branch.nodes)]

    def _found(self, node: onnx.NodeProto, coupling: Coupling, facts: Facts) -> Site | Refusal:
        group = coupling.group_of(node.name)
        if group is None:
            reason = coupling.refusals.get(node.name, "it makes no channels that can be cut")
            return Refusal(self.name, node.name, reason)
        if group.name != node.name:
            return Refusal(self.name, node.name, f"goes with '{group.name}'", see=self.name)
        reason = reason_to_keep(group, coupling, facts)
        return Refusal(self.name, node.name, reason) if reason else Site(self.name, node.name)

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

    def _demanded(self, coupling: Coupling, group: Group, sequence: Removals, most: int) -> int:
        """How many channels of a group go when the fraction `channels` stays."""
        if self.scope == "global":
            total = sum(each.width for each in coupling.groups)
            first = sequence[: total - max(1, round(self.channels * total))]
            count = sum(name == group.name for name, _ in first)
        else:
            count = group.width - max(1, round(self.channels * group.width))
        if self.round_to:
            kept = -(-(group.width - count) // self.round_to) * self.round_to
            count = max(0, group.width - kept)
        return min(count, most)
