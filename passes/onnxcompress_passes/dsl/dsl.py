"""Layers whose filters or kernels share what they are made of: a learned language per layer.

A. Sehgal, "Analyzing the compressibility of CNN kernels with program induction" (2022), clustered
the filters of every layer by the structural similarity of their responses. Equal filters make equal
channels, so here what reads them is merged as well, and layers become narrower all through the
network, dense ones included. Single kernels share a dictionary, each times a number; that changes
the file alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx

from onnxcompress.analyse.coupling.grouping import LAYERS
from onnxcompress.analyse.facts import Facts, Need, Unsupported
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.spec import ConvSpec, conv_spec
from onnxcompress.numerics.clustering import LINKAGES
from onnxcompress.plan.channels.known import coupling_of
from onnxcompress.plan.channels.remove import left_of_lanes
from onnxcompress.plan.contract import Candidate, Pass, Refusal, Site
from onnxcompress.plan.correspondence import Kept
from onnxcompress_passes.dsl.clusters import CENTRES, MEAN
from onnxcompress_passes.dsl.edges import edge_candidates, split_edges, unfit_for_edges
from onnxcompress_passes.dsl.filters import ANSWERS, DISTANCES
from onnxcompress_passes.dsl.groups import (
    by_group,
    filter_candidates,
    filter_excerpts,
    removed,
    share_filters,
    site_of_group,
)
from onnxcompress_passes.dsl.kernels import frontier, kernel_candidates, store, unfit
from onnxcompress_passes.dsl.mixing import atom_candidates, mix_atoms
from onnxcompress_passes.dsl.programs import (
    program_candidates,
    unfit_for_programs,
    write_programs,
)
from onnxcompress_passes.dsl.setting import Sharing, read_sharing
from onnxcompress_passes.dsl.sharing import share
from onnxcompress_passes.eligibility import QUANTISED, quantised_layers
from onnxcompress_passes.low_rank_pass import DATA

FILTERS, KERNELS, ATOMS, EDGES = "filters", "kernels", "atoms", "edges"
LEARNED, PREDEFINED, BOTH = "learned", "predefined", "both"


@dataclass(frozen=True)
class Dsl(Pass[Sharing]):
    """Let channels share filters, merging what reads them; or kernels share a dictionary."""

    shared: str = field(
        default=FILTERS,
        metadata={
            "help": "filters (whole ones: layers become narrower), atoms (a few kernels per layer, "
            "that all others are mixed of: a grouped convolution and one of 1x1), edges (all "
            "kernels edge filters: a convolution along lines, and their sums), or kernels (a "
            "dictionary per layer, written as a function: the file becomes smaller, time stays)"
        },
    )
    source: str = field(
        default=LEARNED,
        metadata={
            "help": "of kernels: learned (a dictionary per layer), predefined (programs of edge "
            "filters and tetrominoes, original kernels where those do not pay), or both (layer by "
            "layer what errs less for its bytes)"
        },
    )
    price: float = field(
        default=0.0,
        metadata={
            "help": "source=predefined: part of a layer's squared answer that its original kernels "
            "would cost; 0 lets the plan choose"
        },
    )
    distance: str = field(
        default=ANSWERS,
        metadata={
            "help": "how filters compare: answers (what joining two costs the layers that read "
            "them, by moments), or ssim (1 - structural similarity of responses to real inputs)"
        },
    )
    linkage: str = field(
        default="average",
        metadata={"help": f"{', '.join(LINKAGES)} (Ward on the rows of the similarity matrix)"},
    )
    centre: str = field(
        default=MEAN, metadata={"help": "the filter that a cluster shares: mean or medoid"}
    )
    count: str = field(
        default="",
        metadata={
            "help": "filters that stay in every group, atoms or entries of every layer; "
            "N+M+... one by one in order of execution; empty lets the plan choose"
        },
    )
    threshold: float = field(
        default=0.0, metadata={"help": "filters farther apart than this never join"}
    )
    round_to: int = field(
        default=0,
        metadata={"help": "filters: counts on offer are multiples of this; 0 offers about a dozen"},
    )

    name: ClassVar[str] = "dsl"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need.SHAPES, Need.COUPLING, Need.ACTIVATIONS, Need.MOMENTS}
    )
    in_balanced: ClassVar[bool] = False
    setting_type: ClassVar[type] = Sharing

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", str(self.count))
        for option, value, known in (
            ("shared", self.shared, (FILTERS, KERNELS, ATOMS, EDGES)),
            ("source", self.source, (LEARNED, PREDEFINED, BOTH)),
            ("distance", self.distance, DISTANCES),
            ("linkage", self.linkage, LINKAGES),
            ("centre", self.centre, CENTRES),
        ):
            if value not in known:
                raise UsageError(f"dsl: {option}={value!r} is none of {', '.join(known)}")
        if self.count and not all(n.isdecimal() and int(n) for n in self.count.split("+")):
            raise UsageError(f"dsl: count={self.count!r} is neither a number nor N+M+...")
        for option, number in (("threshold", self.threshold), ("price", self.price)):
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise UsageError(f"dsl: {option}={number!r} is not a number")
            if not 0.0 <= number < float("inf"):
                raise UsageError(f"dsl: {option}={number!r} must be a number >= 0")
        if self.source != LEARNED and (self.shared != KERNELS or self.count):
            raise UsageError(
                f"dsl: source={self.source} goes with shared=kernels, and without count"
            )
        if self.shared == EDGES and self.count:
            raise UsageError("dsl: count goes with shared=filters, kernels or atoms")
        if self.price and self.source != PREDEFINED:
            raise UsageError("dsl: price goes with source=predefined")
        if self.threshold and (self.count or self.shared != FILTERS):
            raise UsageError("dsl: threshold goes with shared=filters, and without count")
        if type(self.round_to) is not int or self.round_to < 0:
            raise UsageError(f"dsl: round_to={self.round_to!r} must be a whole number >= 0")

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        """The first layer of every group, or every layer of kernels; or why not."""
        if self.shared == FILTERS:
            yield from self._groups(facts)
        else:
            yield from self._layers(facts)
        for name, reason in quantised_layers(facts, QUANTISED):
            yield Refusal(self.name, name, reason)

    def _layers(self, facts: Facts) -> Iterator[Site | Refusal]:
        for layer in facts.convs():
            reason = layer.reason if isinstance(layer, Unsupported) else self._unfit(layer, facts)
            yield Refusal(self.name, layer.node, reason) if reason else Site(self.name, layer.node)
        for node in facts.model.graph.node:
            if node.op_type in LAYERS and node.op_type != "Conv":
                reason = "no kernels: shared=filters covers it"
                yield Refusal(self.name, node.name, reason)

    def _unfit(self, layer: ConvSpec, facts: Facts) -> str:
        predefined = self.source == PREDEFINED
        if self.shared == EDGES:
            return unfit_for_edges(layer, facts)
        return unfit_for_programs(layer, facts) if predefined else unfit(layer, facts)

    def _groups(self, facts: Facts) -> Iterator[Site | Refusal]:
        layers = [n for n in facts.model.graph.node if n.op_type in LAYERS]
        try:
            coupling = facts.coupling()
        except ModelError as problem:
            reason = f"coupling cannot be found: {problem}"
            yield from (Refusal(self.name, node.name, reason) for node in layers)
            return
        for node in layers:
            if node.domain in {"", "ai.onnx"}:
                yield site_of_group(self.name, node, coupling, facts)

    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[Sharing]]:
        """Nothing shared first, then ever less to choose from; or as much as was asked for."""
        if self.shared != FILTERS:
            layers = [layer for layer in facts.convs() if isinstance(layer, ConvSpec)]
            names = [layer.node for layer in layers if not unfit(layer, facts)]
            layer = conv_spec(facts.view.nodes[site.node], facts.view)
            if self.shared == EDGES:
                return edge_candidates(site, layer, facts)
            if self.source == PREDEFINED:
                return program_candidates(site, layer, self.price, facts)
            count = self._asked(names.index(site.node)) if self.count else 0
            offer = atom_candidates if self.shared == ATOMS else kernel_candidates
            offers = offer(site, layer, count, facts)
            if self.source == BOTH and not unfit_for_programs(layer, facts):
                return frontier([*offers, *program_candidates(site, layer, 0.0, facts)])
            return offers
        names = [group.name for group in facts.coupling().groups]
        return filter_candidates(
            site,
            facts,
            distance=self.distance,
            linkage=self.linkage,
            centre=self.centre,
            threshold=self.threshold,
            count=self._asked(names.index(site.node)) if self.count else 0,
            round_to=self.round_to,
        )

    def _asked(self, place: int) -> int:
        counts = [int(number) for number in self.count.split("+")]
        return counts[min(place, len(counts) - 1)]

    def rewrite(self, candidate: Candidate[Sharing], edit: Editor) -> None:
        """Let the channels of one group, or the kernels of one layer, share."""
        self.rewrite_together([candidate], edit)

    def rewrite_together(self, candidates: Sequence[Candidate[Sharing]], edit: Editor) -> None:
        """Carry out several at once.

        Raises:
            ModelError: the graph lost channels already.
            PassError: a group does not have these channels.
        """
        filters, kernels = _kinds(candidates)
        if filters:
            edit.claim(self.name)
            share_filters(filters, edit)
        for candidate in kernels:
            if candidate.setting.entries:
                store(candidate, edit)
            elif candidate.setting.atoms:
                mix_atoms(candidate, edit)
            elif candidate.setting.edges:
                split_edges(candidate, edit)
            else:
                write_programs(candidate, edit)

    def reference(self, candidates: Sequence[Candidate[Sharing]], edit: Editor) -> bool:
        """The original in which channels share filters, and nothing is merged."""
        filters, kernels = _kinds(candidates)
        coupling = coupling_of(edit) if filters else None
        if coupling is not None:
            share(edit, coupling, by_group(filters, coupling))
        return not kernels

    def kept_channels(self, candidates: Sequence[Candidate[Sharing]], edit: Editor) -> Kept:
        """Of every tensor that loses channels, the indices that stay."""
        filters, _ = _kinds(candidates)
        if not filters:
            return {}
        coupling = coupling_of(edit)
        return left_of_lanes(coupling, coupling.classes(removed(by_group(filters, coupling))))

    def excerpts(
        self, candidate: Candidate[Sharing], facts: Facts
    ) -> Sequence[tuple[onnx.ModelProto, onnx.ModelProto]] | None:
        """Every layer that changes, at both widths."""
        return filter_excerpts(candidate, facts) if candidate.setting.labels else None

    def describe(self, setting: Sharing) -> str:
        """How much there is to share."""
        by_data = " by data" if setting.metric == DATA else ""
        if setting.entries:
            return f"{setting.entries} kernels" + by_data
        if setting.atoms:
            return f"{setting.atoms} atoms" + by_data
        if setting.edges:
            return f"{setting.edges} edges" + by_data
        if setting.price >= 0:
            return f"programs at {setting.price:.2g} a bit" + by_data
        return f"{setting.clusters.count} filters for {len(setting.labels)} channels"

    def needs_data(self, setting: Sharing) -> bool:
        """Dictionaries in the metric of the data are learned from it."""
        return setting.metric == DATA

    def load_setting(self, values: dict[str, Any]) -> Sharing:
        """A setting from the plan file.

        Raises:
            UsageError: the values do not fit this pass.
        """
        return read_sharing(values)


def _kinds(
    candidates: Sequence[Candidate[Sharing]],
) -> tuple[list[Candidate[Sharing]], list[Candidate[Sharing]]]:
    """Those that share filters, and those that share kernels."""
    filters = [c for c in candidates if c.setting.labels]
    return filters, [c for c in candidates if not c.setting.labels]
