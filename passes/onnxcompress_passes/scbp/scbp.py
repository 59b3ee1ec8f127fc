"""Structured coarse block pruning: whole superblocks get narrower by one ratio each.

"Structured Coarse Block Pruning" (ICLR 2023 submission p3UGLrWofT) derives networks from one seed
network: its convolutions are binned into superblocks, each superblock has a set of width modifiers
(c-ratios), and every combination is a network. The paper trains each; here channels are selected
from the trained network, in an order that does not depend on the ratio, so that what a narrower
superblock keeps a wider one keeps, too; what is left is repaired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Any, ClassVar

import onnx

from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts, Need
from onnxcompress.errors import UsageError
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editor import Editor
from onnxcompress.plan.channels.cost import Toll, toll
from onnxcompress.plan.channels.excerpt import excerpts
from onnxcompress.plan.channels.plan_cuts import plan_cuts
from onnxcompress.plan.contract import Candidate, NoCandidate, Pass, Refusal, Site
from onnxcompress.plan.correspondence import Kept
from onnxcompress.plan.saliency.criteria import CRITERIA
from onnxcompress_passes.channel_pass import ChannelPass
from onnxcompress_passes.lnr import Lnr
from onnxcompress_passes.prune import Prune
from onnxcompress_passes.prune_groups import group_sites
from onnxcompress_passes.prune_setting import KeptChannels, dearer, removed_channels
from onnxcompress_passes.scbp.segmentation import (
    Superblock,
    check_segments,
    is_stream,
    superblocks,
)
from onnxcompress_passes.scbp.setting import Widths, parse_ratios, read_widths

_LNR = "lnr"
EVEN, INNER = "even", "inner"


@dataclass(frozen=True)
class Scbp(Pass[Widths]):
    """Narrow whole superblocks of layers, each by one ratio."""

    segments: str | int = field(
        default="auto",
        metadata={
            "help": "superblocks: widths (runs of one nominal width; residual stages), "
            "resolutions, a number (bins of equal MACs), FILE.yaml (names, and regular expressions "
            "of layers), or auto: the first of these that finds 2 to 8, else 4 bins"
        },
    )
    ratios: str | float = field(
        default="0.75+0.5+0.25", metadata={"help": "width modifiers on offer besides 1"}
    )
    widths: str | float = field(
        default="",
        metadata={"help": "a ratio per superblock, like 1+1+0.75+0.5; without, the plan chooses"},
    )
    ranking: str = field(
        default=_LNR,
        metadata={"help": f"which channels stay: lnr, or one of {', '.join(CRITERIA)}"},
    )
    within: str = field(
        default=INNER,
        metadata={
            "help": "what of a superblock is narrowed: inner (what is inside of residual branches; "
            "sums of branches keep their width), or even (everything, as in the paper)"
        },
    )
    round_to: int = field(
        default=8, metadata={"help": "widths are multiples of this, and no less; 1 is off"}
    )

    in_balanced: ClassVar[bool] = False
    name: ClassVar[str] = "scbp"
    needs: ClassVar[frozenset[Need]] = Lnr.needs | Prune.needs
    setting_type: ClassVar[type] = Widths

    def __post_init__(self) -> None:
        check_segments(self.segments)
        parse_ratios(self.ratios, "ratios")
        if self.widths != "":
            parse_ratios(self.widths, "widths")
        if self.ranking not in {_LNR, *CRITERIA}:
            known = ", ".join((_LNR, *CRITERIA))
            raise UsageError(f"scbp: ranking={self.ranking!r} is none of {known}")
        if self.within not in {EVEN, INNER}:
            raise UsageError(f"scbp: within={self.within!r} is none of {EVEN}, {INNER}")
        if type(self.round_to) is not int or self.round_to < 1:
            raise UsageError(f"scbp: round_to={self.round_to!r} must be a whole number >= 1")

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        """The first layer of every superblock; other layers with what they go with, or why not."""
        blocks = {block.groups[0]: block for block in self._superblocks(facts)}
        within = {name: block for block in blocks.values() for name in block.groups}
        for found in self._groups(facts):
            if isinstance(found, Refusal) or found.node in blocks:
                yield found
                continue
            block = within.get(found.node)
            if block is None:
                yield Refusal(self.name, found.node, self._outside(found.node, facts))
            else:
                reason = f"goes with superblock '{block.name}' at '{block.groups[0]}'"
                yield Refusal(self.name, found.node, reason, see=self.name)

    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[Widths]]:
        """All channels first, then falling ratios; with `widths` given, that ratio alone."""
        blocks = self._superblocks(facts)
        block = next(each for each in blocks if each.groups[0] == site.node)
        coupling = facts.coupling()
        groups = [coupling.group(name) for name in block.groups]
        ratios = sorted({1.0, *parse_ratios(self.ratios, "ratios")}, reverse=True)
        if self.widths != "":
            ratios = [self._given(blocks)[blocks.index(block)]]
        orders = {group.name: self._ranked.order(group, facts, coupling) for group in groups}

        def going(ratio: float) -> dict[str, tuple[int, ...]]:
            counts = {
                group.name: group.width - self._width(group, block, ratio) for group in groups
            }
            return {name: order[: counts[name]] for name, order in orders.items()}

        gone = {ratio: going(ratio) for ratio in ratios}
        # All candidates are set against the same nodes, so that their costs can be compared.
        whole = self._toll(gone[ratios[-1]], facts, coupling)
        offers: list[Candidate[Widths]] = []
        for ratio in ratios:
            cost = self._toll(gone[ratio], facts, coupling)
            kept = tuple((group.name, _rest(group, gone[ratio][group.name])) for group in groups)
            setting = Widths(block.name, ratio, kept)
            offer = Candidate(
                site,
                setting,
                tuple(dict.fromkeys((site.node, *cost.touches))),
                whole.before,
                whole.before - (cost.before - cost.after),
                self._damage(groups, gone[ratio], facts, coupling),
                self.widths != "",
                narrows=cost.narrows,
            )
            # Rounded, a ratio may be no other than the one before.
            if not offers or _less(offer, offers[-1]):
                offers.append(offer)
        if not any(gone[offers[-1].setting.ratio].values()):
            words = f"at ratio {ratios[-1]:g}, of widths in multiples of {self.round_to}"
            raise NoCandidate(f"all channels of superblock '{block.name}' stay {words}")
        return offers

    def rewrite(self, candidate: Candidate[Widths], edit: Editor) -> None:
        """Narrow one superblock."""
        self.rewrite_together([candidate], edit)

    def rewrite_together(self, candidates: Sequence[Candidate[Widths]], edit: Editor) -> None:
        """Narrow several superblocks: all edits are worked out on the original graph."""
        edit.claim(self.name)
        self._ranked.remove(self._parts(candidates), edit)

    def reference(self, candidates: Sequence[Candidate[Widths]], edit: Editor) -> bool:
        """The original with these channels forced to zero."""
        return self._ranked.reference(self._parts(candidates), edit)

    def kept_channels(self, candidates: Sequence[Candidate[Widths]], edit: Editor) -> Kept:
        """Of every tensor that loses channels, the indices that stay."""
        return self._ranked.kept_channels(self._parts(candidates), edit)

    def excerpts(
        self, candidate: Candidate[Widths], facts: Facts
    ) -> Sequence[tuple[onnx.ModelProto, onnx.ModelProto]]:
        """Every layer that changes, at both widths."""
        coupling = facts.coupling()
        return excerpts(facts, removed_channels(self._parts([candidate]), coupling))

    def saving_together(self, candidates: Sequence[Candidate[Widths]], facts: Facts) -> Cost:
        """What superblocks save together: a layer between two of them loses on both sides."""
        coupling = facts.coupling()
        cost = self._toll(removed_channels(self._parts(candidates), coupling), facts, coupling)
        return cost.before - cost.after

    def describe(self, setting: Widths) -> str:
        """The superblock, its ratio, and how many groups it holds for."""
        return f"superblock {setting.superblock} x {setting.ratio:g} ({len(setting.kept)} groups)"

    def load_setting(self, values: dict[str, Any]) -> Widths:
        """A setting from the plan file.

        Raises:
            UsageError: the values do not fit this pass.
        """
        return read_widths(values)

    @property
    def expected_failures(self) -> Mapping[str, str]:
        """What the contract's own small models cannot show."""
        return Lnr.expected_failures if self.ranking == _LNR else {}

    @property
    def _ranked(self) -> ChannelPass:
        """The pass that says which channels of a group go, and removes them."""
        if self.ranking == _LNR:
            return Lnr(branches=False)
        return Prune(criterion=self.ranking, branches=False)

    def _groups(self, facts: Facts) -> list[Site | Refusal]:
        def objection(group: Group, coupling: Coupling) -> str:
            why = self._ranked.objection(group, facts, coupling)
            return f"{why}; ranking=weight looks at nothing else" if why else ""

        return list(group_sites(self.name, facts, objection))

    def _superblocks(self, facts: Facts) -> tuple[Superblock, ...]:
        def find() -> tuple[Superblock, ...]:
            names = {found.node for found in self._groups(facts) if isinstance(found, Site)}
            if not names:
                return ()
            coupling = facts.coupling()
            groups = [group for group in coupling.groups if group.name in names]
            if self.within == INNER:
                groups = [group for group in groups if not is_stream(facts, group)]
            return superblocks(facts, coupling, groups, self.segments)

        return facts.recall(("superblocks", self.segments, self.ranking, self.within), find)

    def _outside(self, name: str, facts: Facts) -> str:
        """Why a group that could be cut is in no superblock."""
        if self.within == INNER and is_stream(facts, facts.coupling().group(name)):
            return "residual branches are summed here: within=even narrows it"
        return "no superblock has it"

    def _given(self, blocks: Sequence[Superblock]) -> tuple[float, ...]:
        given = parse_ratios(self.widths, "widths")
        if len(given) != len(blocks):
            names = ", ".join(f"'{block.name}' ({len(block.groups)} groups)" for block in blocks)
            raise UsageError(
                f"scbp: widths={self.widths} has {len(given)} ratios for {len(blocks)} "
                f"superblocks: {names}"
            )
        return given

    def _width(self, group: Group, block: Superblock, ratio: float) -> int:
        """How many channels stay: of the nominal width a multiple of `round_to`, never none."""
        scale = bool(block.nominal) and group.width % block.nominal == 0
        nominal = block.nominal if scale else group.width
        if ratio == 1.0:
            return group.width
        unit = min(self.round_to, nominal)
        kept = max(1, floor(ratio * nominal / unit + 0.5)) * unit
        return min(group.width, kept * (group.width // nominal))

    def _damage(
        self,
        groups: Sequence[Group],
        gone: dict[str, tuple[int, ...]],
        facts: Facts,
        coupling: Coupling,
    ) -> float:
        return sum(
            self._ranked.damage(group, gone[group.name], facts, coupling)
            for group in groups
            if gone[group.name]
        )

    @staticmethod
    def _toll(gone: Mapping[str, Sequence[int]], facts: Facts, coupling: Coupling) -> Toll:
        return toll(facts, plan_cuts(facts.view, coupling, gone, counting=True))

    def _parts(self, candidates: Sequence[Candidate[Widths]]) -> list[Candidate[KeptChannels]]:
        """The same, group by group."""
        return [
            Candidate(
                Site(self._ranked.name, name),
                KeptChannels(kept),
                candidate.touches,
                candidate.before,
                candidate.after,
                candidate.damage,
            )
            for candidate in candidates
            for name, kept in candidate.setting.kept
        ]


def _rest(group: Group, some: Sequence[int]) -> tuple[int, ...]:
    """The other channels of a group, ascending."""
    return tuple(sorted(set(range(group.width)) - set(some)))


def _less(one: Candidate[Widths], other: Candidate[Widths]) -> bool:
    kept, before = one.setting.kept, other.setting.kept
    return kept != before and not dearer(one.after, other.after)
