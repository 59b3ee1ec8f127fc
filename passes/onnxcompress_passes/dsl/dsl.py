"""Layers whose filters or kernels share what they are made of: a learned language per layer.

A. Sehgal, "Analyzing the compressibility of CNN kernels with program induction" (2022), clustered
the filters of every layer by the structural similarity of their responses. Equal filters make equal
channels, so here what reads them is merged as well, and layers become narrower all through the
network, dense ones included. Single kernels share a dictionary, each times a number; that changes
the file alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx

from onnxcompress.analyse.coupling.grouping import LAYERS
from onnxcompress.analyse.facts import Facts, Need, Unsupported
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.spec import ConvSpec
from onnxcompress.plan.channels.excerpt import excerpts
from onnxcompress.plan.channels.known import coupling_of
from onnxcompress.plan.channels.remove import left_of_lanes
from onnxcompress.plan.contract import Candidate, Refusal, Site
from onnxcompress.plan.correspondence import Kept
from onnxcompress_passes.dsl.edges import edge_candidates, split_edges
from onnxcompress_passes.dsl.groups import (
    by_group,
    filter_candidates,
    objection,
    removed,
    share_filters,
)
from onnxcompress_passes.dsl.kernels import frontier, kernel_candidates, store
from onnxcompress_passes.dsl.layers import Planned, unfit, unfit_for_squares
from onnxcompress_passes.dsl.mixing import atom_candidates, mix_atoms
from onnxcompress_passes.dsl.options import ATOMS, BOTH, EDGES, FILTERS, PREDEFINED, DslOptions
from onnxcompress_passes.dsl.programs import (
    program_candidates,
    unfit_for_programs,
    write_programs,
)
from onnxcompress_passes.dsl.setting import Sharing, read_sharing
from onnxcompress_passes.dsl.sharing import share
from onnxcompress_passes.eligibility import QUANTISED, quantised_layers
from onnxcompress_passes.low_rank_pass import DATA
from onnxcompress_passes.prune_groups import group_sites


@dataclass(frozen=True)
class Dsl(DslOptions):
    """Let channels share filters, merging what reads them; or kernels what they are made of."""

    name: ClassVar[str] = "dsl"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need.SHAPES, Need.COUPLING, Need.ACTIVATIONS, Need.MOMENTS}
    )
    in_balanced: ClassVar[bool] = False
    setting_type: ClassVar[type] = Sharing

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        """The first layer of every group, or every layer of kernels; or why not."""
        if self.shared == FILTERS:
            yield from group_sites(
                self.name, facts, lambda group, coupling: objection(group, coupling, facts)
            )
        else:
            yield from self._layers(facts)

    def _layers(self, facts: Facts) -> Iterator[Site | Refusal]:
        for layer in facts.convs():
            reason = layer.reason if isinstance(layer, Unsupported) else self._unfit(layer, facts)
            yield Refusal(self.name, layer.node, reason) if reason else Site(self.name, layer.node)
        for node in facts.model.graph.node:
            if node.op_type in LAYERS and node.op_type != "Conv":
                transposed = node.op_type == "ConvTranspose"
                reason = (
                    "a transposed convolution"
                    if transposed
                    else "no kernels: shared=filters is for it"
                )
                yield Refusal(self.name, node.name, reason)
        for name, reason in quantised_layers(facts, QUANTISED):
            yield Refusal(self.name, name, reason)

    def _unfit(self, layer: ConvSpec, facts: Facts) -> str:
        predefined = self.source == PREDEFINED
        if self.shared == EDGES:
            return unfit_for_squares(layer, facts)
        return unfit_for_programs(layer, facts) if predefined else unfit(layer, facts)

    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[Sharing]]:
        """Nothing shared first, then ever less to choose from; or as much as was asked for."""
        if self.shared != FILTERS:
            layers = [layer for layer in facts.convs() if isinstance(layer, ConvSpec)]
            names = [layer.node for layer in layers if not self._unfit(layer, facts)]
            count = self._asked(names.index(site.node)) if self.count else 0
            return self._other_kernels(Planned(site, facts), count, facts)
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

    def _other_kernels(
        self, plan: Planned, count: int, facts: Facts
    ) -> Sequence[Candidate[Sharing]]:
        if self.shared == ATOMS:
            return atom_candidates(plan, count)
        if self.shared == EDGES:
            return edge_candidates(plan)
        if self.source == PREDEFINED:
            return program_candidates(plan, self.price)
        offers = kernel_candidates(plan, count)
        if self.source == BOTH and not unfit_for_programs(plan.layer, facts):
            return frontier([*offers, *program_candidates(plan, 0.0)])
        return offers

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
        if not candidate.setting.labels:
            return None
        return excerpts(facts, {candidate.site.node: candidate.setting.clusters.gone})

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
