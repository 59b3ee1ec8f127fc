"""Linear Neural Reconstruction: keep the channels from which the layers behind can be rebuilt.

A layer that reads channels x answers W x. Channels go so that M x, M without their columns, stays
closest to it (D. A. R. Robin 2019: min E|W x - M x|^2 + lambda |M|_{2,1}, solved on moments). All
layers that read a group decide together. The choice is made by the group lasso, or by exact
backward elimination, which is better and the default; the weights M come from least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import onnx

from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts, Need
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.graph.editor import Editor
from onnxcompress.plan.channels.consumers import consumers
from onnxcompress.plan.channels.known import coupling_of
from onnxcompress.plan.contract import Candidate, NoCandidate, Site
from onnxcompress.plan.known_moments import facts_of
from onnxcompress_passes.channel_pass import ChannelPass
from onnxcompress_passes.lnr_chain import Chain, solve_chain
from onnxcompress_passes.lnr_selection import SELECTORS, Leaving, Selection, leaving, rebuilt
from onnxcompress_passes.prune_setting import KeptChannels

CHAININGS = ("parallel", "top-down", "bottom-up")
WEIGHTS = ("repair", "refit", "lasso")


@dataclass(frozen=True)
class Lnr(ChannelPass):
    """Keep the channels from which the layers that read them can be rebuilt best."""

    selector: str = field(
        default="obs",
        metadata={"help": "obs (exact backward elimination with swaps) or lasso (group lasso)"},
    )
    chaining: str = field(
        default="parallel",
        metadata={
            "help": "with channels or strength given: what layers are rebuilt from: parallel (the "
            "original's activations), top-down (the compressed network's), bottom-up (the "
            "original's, for the answers that the next layer keeps)"
        },
    )
    strength: float = field(
        default=0.0,
        metadata={"help": "selector=lasso: lambda as a fraction of the layer's lambda_max"},
    )
    weights: str = field(
        default="repair",
        metadata={
            "help": "of the layers behind, with channels or strength given: repair (fitted "
            "afterwards, with everything else), refit (debiased along the chain), or lasso (as "
            "the group lasso leaves them)"
        },
    )
    bias: bool = field(
        default=True, metadata={"help": "biases make up for means (moments are centred)"}
    )
    scale_invariant: bool = field(
        default=True,
        metadata={"help": "selector=lasso: penalise what a channel contributes, not its weights"},
    )
    reweighted: int = field(
        default=0, metadata={"help": "selector=lasso with channels: rounds of reweighted penalties"}
    )

    expected_failures: ClassVar[Mapping[str, str]] = {
        "check_applies_somewhere": "it decides on calibration inputs, and the zoo has none"
    }
    name: ClassVar[str] = "lnr"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need.SHAPES, Need.COUPLING, Need.ACTIVATIONS, Need.MOMENTS}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, value, known in (
            ("selector", self.selector, SELECTORS),
            ("chaining", self.chaining, CHAININGS),
            ("weights", self.weights, WEIGHTS),
        ):
            if value not in known:
                raise UsageError(f"lnr: {option}={value!r} is none of {', '.join(known)}")
        if isinstance(self.strength, bool) or not isinstance(self.strength, (int, float)):
            raise UsageError(f"lnr: strength={self.strength!r} is not a number")
        if not 0.0 <= self.strength < 1.0:
            raise UsageError(f"lnr: strength={self.strength!r} must lie between 0 and 1")
        if self.strength and (self.selector != "lasso" or self.channels):
            raise UsageError("lnr: strength goes with selector=lasso, and without channels")
        if self.weights != "repair" and not self._fixed:
            raise UsageError(
                f"lnr: weights={self.weights} goes with channels=F or strength=F: where the plan "
                "chooses widths, repair fits the weights afterwards"
            )
        if self.weights == "lasso" and self.selector != "lasso":
            raise UsageError("lnr: weights=lasso goes with selector=lasso")
        if type(self.reweighted) is not int or self.reweighted < 0:
            raise UsageError(f"lnr: reweighted={self.reweighted!r} must be a whole number >= 0")
        if self.reweighted and not (self.selector == "lasso" and self.channels):
            raise UsageError("lnr: reweighted goes with selector=lasso and channels=F")
        if self.chaining != CHAININGS[0] and not self._fixed:
            raise UsageError(f"lnr: chaining={self.chaining} goes with channels=F or strength=F")
        for name in ("bias", "scale_invariant"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"lnr: {name}={getattr(self, name)!r} must be true or false")

    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[KeptChannels]]:
        """Falling widths; with `channels` or `strength` given, what the chain keeps."""
        coupling = facts.coupling()
        if not self._fixed or coupling.group_of(site.node) is None:
            return super().candidates(site, facts)
        group = coupling.group(site.node)
        kept = self._chain(facts, coupling).kept[group.name]
        if len(kept) == group.width:
            raise NoCandidate(f"all {group.width} channels stay")
        gone = tuple(sorted(set(range(group.width)) - set(kept)))
        whole = self._toll(group, gone, facts, coupling).before
        return [self.offer(site, group, gone, whole, facts, coupling, recommended=True)]

    def needs_data(self, setting: KeptChannels) -> bool:
        """Weights that the pass fits itself are worked out from data."""
        return self.weights != "repair"

    @property
    def _fixed(self) -> bool:
        """Whether the options alone say what stays."""
        return bool(self.channels or self.strength)

    @property
    def _selection(self) -> Selection:
        return Selection(self.selector, self.strength, self.scale_invariant, self.reweighted)

    def objection(self, group: Group, facts: Facts, coupling: Coupling) -> str:
        """Why this pass leaves a group alone that could be cut, or an empty string."""
        if facts.moments() is None:
            return "lnr decides on calibration inputs: give --data"
        try:
            consumers(facts, coupling, group)
        except ModelError as error:
            return f"{error}: pass prune covers it"
        return ""

    def order(self, group: Group, facts: Facts, coupling: Coupling) -> tuple[int, ...]:
        """The channels of a group that may go, in the order in which they go."""
        return self._leaving(group, facts, coupling).order

    def _leaving(self, group: Group, facts: Facts, coupling: Coupling) -> Leaving:
        key = (self._selection, self.bias, group.name)
        return facts.recall(key, lambda: leaving(facts, coupling, group, self._selection))

    def damage(self, group: Group, gone: Sequence[int], facts: Facts, coupling: Coupling) -> float:
        """What it damages when these channels go."""
        if gone and not self._fixed:
            known = self._leaving(group, facts, coupling)
            if len(gone) < len(known.errors) and tuple(gone) == known.order[: len(gone)]:
                return max(0.0, known.errors[len(gone)])
        return rebuilt(facts, coupling, group, gone)

    def _chain(self, facts: Facts, coupling: Coupling) -> Chain:
        """What stays of every group, and the weights that go with it."""

        def width(group: Group) -> int:
            return group.width - self._demanded(group, facts, coupling)

        names = [found.node for found in self.sites(facts) if isinstance(found, Site)]
        return facts.recall(
            self,
            lambda: solve_chain(
                facts,
                coupling,
                [g for g in coupling.groups if g.name in names],
                self._selection,
                width if self.channels else None,
                chaining=self.chaining,
                debiased=self.weights != "lasso",
                centre=self.bias,
            ),
        )

    def _reweighted(
        self, candidates: Sequence[Candidate[KeptChannels]], edit: Editor
    ) -> onnx.ModelProto:
        if self.weights == "repair":
            return edit.model
        chain = self._chain(facts_of(edit, self.name), coupling_of(edit))
        return chain.written([c.site.node for c in candidates], edit)
