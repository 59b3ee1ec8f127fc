"""Passes that break their word before they rewrite anything; each is Tucker-2 but for one fault."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import onnx

from onnxcompress.analyse.facts import Facts, Need, analyse
from onnxcompress.graph.cost import Cost
from onnxcompress.plan.contract import Candidate, Refusal, Site
from onnxcompress_passes.tucker2 import Tucker2, Tucker2Ranks

Offers = Sequence[Candidate[Tucker2Ranks]]


@dataclass(frozen=True)
class Undeclared(Tucker2):
    """Reads shapes, and does not say so."""

    needs: ClassVar[frozenset[Need]] = frozenset()


@dataclass(frozen=True)
class Hushed(Tucker2):
    """Keeps quiet about grouped convolutions."""

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        grouped = {c.node for c in facts.convs() if getattr(c, "group", 1) > 1}
        return (found for found in super().sites(facts) if found.node not in grouped)


@dataclass(frozen=True)
class Idle(Tucker2):
    """Refuses everything."""

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        for found in super().sites(facts):
            yield Refusal(self.name, found.node, "not today")


@dataclass(frozen=True)
class Wasteful(Tucker2):
    """Offers only what saves nothing."""

    def candidates(self, site: Site, facts: Facts) -> Offers:
        found = list(super().candidates(site, facts))
        return [found[0], *(replace(c, after=c.before) for c in found[1:])]


@dataclass(frozen=True)
class Scattered(Tucker2):
    """Goes through the layers in the order in which a set of their names happens to lie."""

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        found = {one.node: one for one in super().sites(facts)}
        return iter([found[node] for node in set(found)])


@dataclass(frozen=True)
class Scribbling(Tucker2):
    """Leaves a note in the model while it looks at it."""

    def candidates(self, site: Site, facts: Facts) -> Offers:
        facts.view.nodes[site.node].doc_string = "seen"
        return super().candidates(site, facts)


@dataclass(frozen=True)
class Remembering(Tucker2):
    """Keeps state on itself."""

    def candidates(self, site: Site, facts: Facts) -> Offers:
        object.__setattr__(self, "last", site.node)
        return super().candidates(site, facts)


@dataclass(frozen=True)
class Counting(Tucker2):
    """Keeps state on its class."""

    asked: ClassVar[list[str]] = []

    def candidates(self, site: Site, facts: Facts) -> Offers:
        self.asked.append(site.node)
        return super().candidates(site, facts)


@dataclass(frozen=True)
class Reporting(Tucker2):
    """Hands in its refusals changed, `how` they are."""

    how: str = field(default="mute", metadata={"help": "mute, lost or twice"})

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        for found in super().sites(facts):
            if isinstance(found, Site):
                yield found
                continue
            yield replace(
                found, **{"mute": {"reason": " "}, "lost": {"node": "x"}}.get(self.how, {})
            )
            if self.how == "twice":
                yield found


@dataclass(frozen=True)
class Overbearing(Tucker2):
    """Does not care what the user excluded."""

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        return super().sites(replace(facts, excluded=frozenset()))


@dataclass(frozen=True)
class Brittle(Tucker2):
    """Falls over grouped convolutions."""

    def candidates(self, site: Site, facts: Facts) -> Offers:
        group = next(c.group for c in facts.convs() if c.node == site.node)
        return [super().candidates(site, facts)][group - 1]


@dataclass(frozen=True)
class Trusting(Tucker2):
    """Where the numbers make no sense it offers full rank without having looked at them."""

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        for found in super().sites(facts):
            senseless = isinstance(found, Refusal) and "NaN or infinite" in found.reason
            yield Site(self.name, found.node) if senseless else found

    def candidates(self, site: Site, facts: Facts) -> Offers:
        try:
            return super().candidates(site, facts)
        except ValueError:
            full = Tucker2Ranks(1, 1, triple=True)
            return [Candidate(site, full, (site.node,), Cost(), Cost(), 0.0)]


@dataclass(frozen=True)
class Endless(Tucker2):
    """Does not recognise its own work, and takes it on again."""

    def sites(self, facts: Facts) -> Iterator[Site | Refusal]:
        model = onnx.ModelProto()
        model.CopyFrom(facts.model)
        for node in model.graph.node:
            del node.metadata_props[:]
        return super().sites(analyse(model, facts.sizes))


FAULTS: Mapping[str, tuple[tuple[Tucker2 | Any, str], ...]] = {
    "check_nothing_is_passed_over": ((Hushed(), "on 'grouped' not a word"),),
    "check_applies_somewhere": (
        (Idle(), "no model in the whole zoo"),
        (Wasteful(), "saves anything"),
    ),
    "check_hash_seed": ((Scattered(), "depend on PYTHONHASHSEED"),),
    "check_needs_are_complete": ((Undeclared(), "read SHAPES"),),
    "check_proposing_does_not_mutate": (
        (Scribbling(), "the model changed"),
        (Remembering(), "the pass changed"),
        (Counting(), "state on its class"),
    ),
    "check_refusals_say_why": (
        (Reporting("auto", 8, "mute"), "without a reason"),
        (Reporting("auto", 8, "lost"), "'x' is not in the graph"),
        (Reporting("auto", 8, "twice"), "more than once"),
    ),
    "check_excluded_nodes_are_refused": ((Overbearing(), "are excluded"),),
    "check_errors_are_typed": ((Brittle(), "IndexError"),),
    "check_nonfinite_weights_are_refused": ((Trusting(), "holds nan"),),
    "check_reaches_a_fixpoint": ((Endless(), "its own nodes"),),
}
