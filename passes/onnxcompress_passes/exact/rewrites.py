"""The pass `exact`: what ONNX Runtime does not simplify by itself, timed before it is believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx

from onnxcompress.analyse.coupling.grouping import LAYERS
from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts, Need, analyse
from onnxcompress.analyse.sizes import InputSpec, input_specs
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editing import apply_edits
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.extract import extract_nodes
from onnxcompress.graph.infer import with_value_info
from onnxcompress.graph.view import GraphView
from onnxcompress.plan.channels.cost import toll
from onnxcompress.plan.channels.excerpt import excerpts
from onnxcompress.plan.channels.known import coupling_of
from onnxcompress.plan.channels.plan_cuts import plan_cuts
from onnxcompress.plan.contract import Candidate, Pass, Refusal, Site
from onnxcompress_passes.exact.channels import Idle, known_idle, merged
from onnxcompress_passes.exact.finding import Finding, Kind
from onnxcompress_passes.exact.focus import FOCUS
from onnxcompress_passes.exact.linear import LINEAR
from onnxcompress_passes.exact.padding import PADDING
from onnxcompress_passes.exact.shortcut import SHORTCUT
from onnxcompress_passes.exact.shuffle import SHUFFLE

KINDS: dict[str, Kind] = {
    "focus": FOCUS,
    "padding": PADDING,
    "shortcut": SHORTCUT,
    "shuffle": SHUFFLE,
    "linear": LINEAR,
}
"""Kinds that look at a few nodes each; where two find the same node, the first has it."""

_READS_WEIGHTS = frozenset({"linear", "padding"})
"""Kinds that take the numbers of channels from weights as they are, not from recorded shapes."""

CHANNELS = "channels"
_BLOCKS = (16, 8, 4)
"""Widths that the kernels of processors work in: where all idle channels go, one may be missed."""


@dataclass(frozen=True)
class ExactRewrite:
    """One exact rewrite.

    Attributes:
        kind: a key of `KINDS`, or "channels".
        nodes: what vanishes or changes, in order of execution; for channels, their group.
        gone: channels of the group that go.
        into: for each of them, the channel that takes its readers over; -1 for none.
    """

    kind: str
    nodes: tuple[str, ...]
    gone: tuple[int, ...] = ()
    into: tuple[int, ...] = ()


@dataclass(frozen=True)
class Exact(Pass[ExactRewrite]):
    """Rewrites that change no output: shortcuts, padding, merged layers, idle channels."""

    name: ClassVar[str] = "exact"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SHAPES, Need.COUPLING})
    goes_first: ClassVar[bool] = True
    setting_type: ClassVar[type] = ExactRewrite

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        """Every occasion; and every layer that there is none at."""
        found = _findings(facts)
        idle = _idle_groups(facts)
        for node in facts.model.graph.node:
            layer = node.op_type in LAYERS and node.domain in {"", "ai.onnx"}
            if node.name in found or node.name in idle:
                kept = [n for n in self._touches(node.name, facts) if n in facts.excluded]
                if kept:
                    yield Refusal(self.name, node.name, f"excluded by the user with '{kept[0]}'")
                else:
                    yield Site(self.name, node.name)
            elif layer:
                yield Refusal(self.name, node.name, "nothing here could be written more simply")

    def candidates(self, site: Site, facts: Facts) -> Sequence[Candidate[ExactRewrite]]:
        """The one way of writing it; for idle channels, some of them or all."""
        found = _findings(facts).get(site.node)
        if found is None:
            return self._without_channels(site, facts)
        kind, finding = found
        setting = ExactRewrite(kind, finding.nodes)
        before, after = (
            analyse(model, {s.name: _fixed(s) for s in input_specs(model)}).total()
            for model in self._pair(setting, facts)
        )
        return [Candidate(site, setting, finding.nodes, before, after, 0.0, recommended=True)]

    def rewrite(self, candidate: Candidate[ExactRewrite], edit: Editor) -> None:
        """Carry out one rewrite."""
        self.rewrite_together([candidate], edit)

    def rewrite_together(self, candidates: Sequence[Candidate[ExactRewrite]], edit: Editor) -> None:
        """Carry out several: channels first, then everything else on what is left.

        Raises:
            ModelError: the graph lost channels already.
            ValueError: one does not fit the graph, or moves channels of which some go.
        """
        idle = {
            c.setting.nodes[0]: Idle(c.setting.gone, c.setting.into)
            for c in candidates
            if c.setting.kind == CHANNELS
        }
        if idle:
            edit.claim(self.name)
            coupling = coupling_of(edit)
            merged(edit, coupling, Facts(GraphView(edit.model), {}), idle)
            view = GraphView(edit.finish())
            apply_edits(plan_cuts(view, coupling, {n: i.gone for n, i in idle.items()}), edit)
        rest = [candidate.setting for candidate in candidates if candidate.setting.kind != CHANNELS]
        cut = {name for c in candidates if c.setting.kind == CHANNELS for name in c.touches}
        if any(cut & set(setting.nodes) for setting in rest if setting.kind not in _READS_WEIGHTS):
            raise ValueError("nodes that lose channels are written anew: that takes two rounds")
        view = GraphView(edit.finish() if idle and rest else edit.model)
        for setting in rest:
            KINDS[setting.kind].apply(edit, setting.nodes, view)

    def reference(self, candidates: Sequence[Candidate[ExactRewrite]], edit: Editor) -> bool:
        """The original as it is."""
        return True

    def excerpts(
        self, candidate: Candidate[ExactRewrite], facts: Facts
    ) -> Sequence[tuple[onnx.ModelProto, onnx.ModelProto]]:
        """The nodes before and after; for channels, every layer at both widths."""
        setting = candidate.setting
        if setting.kind != CHANNELS:
            return [self._pair(setting, facts)]
        return excerpts(facts, {setting.nodes[0]: setting.gone})

    def describe(self, setting: ExactRewrite) -> str:
        """What becomes of the nodes."""
        if setting.kind != CHANNELS:
            return KINDS[setting.kind].words
        return f"without {len(setting.gone)} idle channels"

    def load_setting(self, values: dict[str, Any]) -> ExactRewrite:
        """A setting from the plan file.

        Raises:
            UsageError: the values do not fit this pass.
        """
        fits = isinstance(values, dict) and {"kind", "nodes"} <= set(values)
        listed = {"nodes": str, "gone": int, "into": int}
        if not fits or any(
            not isinstance(values.get(key, []), (list, tuple))
            or any(type(v) is not kind for v in values.get(key, []))
            for key, kind in listed.items()
        ):
            raise UsageError(f"setting {str(values)[:200]} does not fit pass '{self.name}'")
        if values["kind"] not in {*KINDS, CHANNELS} or not values["nodes"]:
            raise UsageError(f"pass '{self.name}' knows no rewrite '{values['kind']}'")
        rest = {key: tuple(values.get(key, ())) for key in listed}
        return ExactRewrite(str(values["kind"]), **rest)

    def _pair(self, setting: ExactRewrite, facts: Facts) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        """The nodes of a finding as a model of their own, before and after."""

        def make() -> tuple[onnx.ModelProto, onnx.ModelProto]:
            nodes = [facts.view.nodes[name] for name in setting.nodes]
            before = with_value_info(extract_nodes(facts.view, nodes, facts.shapes()))
            editor = Editor(before)
            KINDS[setting.kind].apply(editor, setting.nodes, GraphView(before))
            return before, with_value_info(editor.finish())

        return facts.recall(("exact", setting), make)

    def _touches(self, node: str, facts: Facts) -> tuple[str, ...]:
        found = _findings(facts).get(node)
        if found is not None:
            return found[1].nodes
        coupling = facts.coupling()
        group = coupling.group(node)
        idle = known_idle(facts, coupling, group)
        readers = group.consumers if any(i >= 0 for i in idle.into) else ()
        edits = plan_cuts(facts.view, coupling, {node: idle.gone}, counting=True)
        return tuple(dict.fromkeys((node, *toll(facts, edits).touches, *readers)))

    def _without_channels(self, site: Site, facts: Facts) -> list[Candidate[ExactRewrite]]:
        coupling = facts.coupling()
        group = coupling.group(site.node)
        idle = known_idle(facts, coupling, group)
        touches = self._touches(site.node, facts)
        least = group.width - len(idle.gone)
        kept = {-(-least // block) * block for block in _BLOCKS} | {least}
        whole = Cost()
        found: list[Candidate[ExactRewrite]] = []
        for width in sorted(w for w in kept if w < group.width):
            gone, into = (part[: group.width - width] for part in (idle.gone, idle.into))
            edits = plan_cuts(facts.view, coupling, {site.node: gone}, counting=True)
            cost = toll(facts, edits)
            whole = cost.before if not found else whole
            found.append(
                Candidate(
                    site,
                    ExactRewrite(CHANNELS, (site.node,), gone, into),
                    touches,
                    whole,
                    whole - (cost.before - cost.after),
                    0.0,
                    recommended=not found,
                )
            )
        return found[::-1]


def _fixed(spec: InputSpec) -> tuple[int, ...]:
    return tuple(spec.fixed(axis) or 1 for axis in range(len(spec.shape)))


def _findings(facts: Facts) -> dict[str, tuple[str, Finding]]:
    """Occasions of all kinds, by the node that their site is named after."""

    def find() -> dict[str, tuple[str, Finding]]:
        found: dict[str, tuple[str, Finding]] = {}
        taken: set[str] = set()
        for kind, rule in KINDS.items():
            for finding in rule.find(facts.view, facts.shapes()):
                if not taken & set(finding.nodes):
                    taken |= set(finding.nodes)
                    found[finding.node] = kind, finding
        return found

    return facts.recall("exact findings", find)


def _idle_groups(facts: Facts) -> dict[str, Group]:
    """Groups with channels that the network computes for nothing, apart from other findings."""

    def find() -> dict[str, Group]:
        try:
            coupling: Coupling = facts.coupling()
        except ModelError:
            return {}
        taken = _findings(facts)
        return {
            group.name: group
            for group in coupling.groups
            if group.name not in taken and known_idle(facts, coupling, group).gone
        }

    return facts.recall("idle groups", find)
