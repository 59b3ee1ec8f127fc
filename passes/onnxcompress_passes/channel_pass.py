"""What passes that remove channels share: sites, ladders of widths, and the removal itself.

The coupling engine says which channels must go together; a subclass says in which order the
channels of a group go, and what that damages; the plan says how many stay. What a removed channel
leaves behind as a constant moves into the next bias, so that the result equals the original with
these channels forced to zero.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx

from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import UsageError
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editing import apply_edits
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.view import GraphView
from onnxcompress.plan.channels.cost import Toll, toll
from onnxcompress.plan.channels.excerpt import excerpts
from onnxcompress.plan.channels.known import coupling_of
from onnxcompress.plan.channels.plan_cuts import plan_cuts
from onnxcompress.plan.channels.remove import left_of_lanes, zero_in
from onnxcompress.plan.contract import Candidate, NoCandidate, Pass, Refusal, Site
from onnxcompress.plan.correspondence import Kept
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
from onnxcompress_passes.prune_groups import group_sites
from onnxcompress_passes.prune_setting import (
    KeptChannels,
    dearer,
    read_setting,
    removed_channels,
    widths,
)


@dataclass(frozen=True)
class ChannelPass(Pass[KeptChannels]):
    """Base of the passes that remove channels of coupled groups of layers."""

    channels: float = field(
        default=0.0,
        kw_only=True,
        metadata={"help": "fraction of the channels that stays; 0 lets the plan choose widths"},
    )
    round_to: int = field(
        default=0,
        kw_only=True,
        metadata={"help": "widths are multiples of this; 0 takes the measured latency steps"},
    )
    branches: bool = field(
        default=True,
        kw_only=True,
        metadata={"help": "offer residual branches at width zero: replaced by their mean"},
    )

    # Channels that go take accuracy along; what repairs it needs data: only on request.
    in_balanced: ClassVar[bool] = False
    setting_type: ClassVar[type] = KeptChannels

    def __post_init__(self) -> None:
        if isinstance(self.channels, bool) or not isinstance(self.channels, (int, float)):
            raise UsageError(f"{self.name}: channels={self.channels!r} is not a number")
        if not 0.0 <= self.channels <= 1.0:
            raise UsageError(f"{self.name}: channels={self.channels!r} must lie between 0 and 1")
        if not isinstance(self.branches, bool):
            raise UsageError(f"{self.name}: branches={self.branches!r} must be true or false")
        if type(self.round_to) is not int or self.round_to < 0:
            raise UsageError(f"{self.name}: round_to={self.round_to!r} must be a whole number >= 0")

    @abc.abstractmethod
    def order(self, group: Group, facts: Facts, coupling: Coupling) -> tuple[int, ...]:
        """The channels of a group that may go, in the order in which they go."""

    @abc.abstractmethod
    def damage(self, group: Group, gone: Sequence[int], facts: Facts, coupling: Coupling) -> float:
        """What it damages when these channels go: relative errors of what reads them, added up."""

    def _reweighted(
        self, candidates: Sequence[Candidate[KeptChannels]], edit: Editor
    ) -> onnx.ModelProto:
        """Give layers the weights that the pass works out for them, before anything is removed.

        Returns:
            The original model with these weights.
        """
        return edit.model

    def objection(self, group: Group, facts: Facts, coupling: Coupling) -> str:
        """Why this pass leaves a group alone that could be cut, or an empty string."""
        return ""

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        """The first layer of every group; other layers with the group they go with, or why not."""
        yield from group_sites(
            self.name, facts, lambda group, coupling: self.objection(group, facts, coupling)
        )
        if self.branches and not self.channels:
            for add, branch in branches(facts).items():
                mean = branch_mean(facts, branch)
                changed = (add, *branch_cost(facts, branch, mean).touches) if facts.excluded else ()
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
        order = self.order(group, facts, coupling)

        # All candidates are set against the same nodes, so that their costs can be compared.
        whole = self._toll(group, order, facts, coupling).before

        def offer(count: int, *, recommended: bool = False) -> Candidate[KeptChannels]:
            return self.offer(
                site, group, order[:count], whole, facts, coupling, recommended=recommended
            )

        if self.channels:
            count = min(self._demanded(group, facts, coupling), len(order))
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

    def offer(
        self,
        site: Site,
        group: Group,
        gone: Sequence[int],
        whole: Cost,
        facts: Facts,
        coupling: Coupling,
        *,
        recommended: bool = False,
    ) -> Candidate[KeptChannels]:
        """The candidate that removes these channels.

        Args:
            site: of the group.
            group: whose channels go.
            gone: their numbers.
            whole: cost of all nodes that any candidate of the group touches.
            facts: about the model.
            coupling: of the model.
            recommended: whether the pass's own rule picks it.
        """
        cost = self._toll(group, gone, facts, coupling)
        setting = KeptChannels(tuple(sorted(set(range(group.width)) - set(gone))))
        return Candidate(
            site,
            setting,
            tuple(dict.fromkeys((site.node, *cost.touches))),
            whole,
            whole - (cost.before - cost.after),
            self.damage(group, gone, facts, coupling),
            recommended,
            # Weights that the pass fits itself are not those that others would factor.
            narrows=() if self.needs_data(setting) else cost.narrows,
        )

    @staticmethod
    def _toll(group: Group, gone: Sequence[int], facts: Facts, coupling: Coupling) -> Toll:
        edits = plan_cuts(facts.view, coupling, {group.name: tuple(gone)}, counting=True)
        return toll(facts, edits)

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
        self.remove(candidates, edit)

    def remove(self, candidates: Sequence[Candidate[KeptChannels]], edit: Editor) -> None:
        """What `rewrite_together` does to a graph that was claimed.

        Raises:
            PassError: the graph does not have these channels.
        """
        coupling = coupling_of(edit)
        removed = removed_channels(candidates, coupling)
        view = GraphView(self._reweighted(candidates, edit))
        apply_edits(plan_cuts(view, coupling, removed), edit)
        gone = coupling.classes(removed)
        means = chosen_means(candidates, view, coupling)
        replace_by_means(edit, [(b, m[staying_channels(b, m, coupling, gone)]) for b, m in means])

    def reference(self, candidates: Sequence[Candidate[KeptChannels]], edit: Editor) -> bool:
        """The original with these channels forced to zero, and these branches to their means."""
        coupling = coupling_of(edit)
        self._reweighted(candidates, edit)
        gone = coupling.classes(removed_channels(candidates, coupling))
        zero_in(edit, coupling, gone)
        means = chosen_means(candidates, GraphView(edit.model), coupling)
        force_to_means(edit, [(b, forced(b, m, coupling, gone)) for b, m in means])
        return True

    def kept_channels(self, candidates: Sequence[Candidate[KeptChannels]], edit: Editor) -> Kept:
        """Of every tensor that loses channels, the indices that stay."""
        coupling = coupling_of(edit)
        return left_of_lanes(coupling, coupling.classes(removed_channels(candidates, coupling)))

    def excerpts(
        self, candidate: Candidate[KeptChannels], facts: Facts
    ) -> Sequence[tuple[onnx.ModelProto, onnx.ModelProto]]:
        """Every layer that changes, at both widths."""
        branch = branches(facts).get(candidate.site.node)
        if branch is not None:
            return branch_excerpt(facts, branch, np.array(candidate.setting.mean))
        return excerpts(facts, removed_channels([candidate], facts.coupling()))

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
        cost = branch_cost(facts, branch, mean)
        if cost.before.macs <= cost.after.macs:
            raise NoCandidate("nothing is saved without this branch")
        setting = KeptChannels((), tuple(mean.tolist()))
        damage = branch_damage(facts, branch)
        touches = tuple(dict.fromkeys((site.node, *cost.touches)))
        return [
            Candidate(
                site,
                setting,
                touches,
                cost.before,
                cost.after,
                damage,
                removes=branch.nodes,
                shifts=cost.shifts,
            )
        ]

    def _demanded(self, group: Group, facts: Facts, coupling: Coupling) -> int:
        """How many channels of a group go when the fraction `channels` stays."""
        return self._rounded(group, group.width - max(1, round(self.channels * group.width)))

    def _rounded(self, group: Group, count: int) -> int:
        if self.round_to:
            kept = -(-(group.width - count) // self.round_to) * self.round_to
            count = max(0, group.width - kept)
        return count
