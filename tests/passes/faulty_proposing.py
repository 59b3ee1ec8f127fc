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
class Misshapen(Tucker2):
    """Changes every candidate, `how` it is."""

    how: str = field(default="nan", metadata={"help": "what is wrong"})

    def candidates(self, site: Site, facts: Facts) -> Offers:
        found = list(super().candidates(site, facts))
        changes: dict[str, dict[str, Any]] = {
            "nan": {"damage": float("nan")},
            "negative": {"damage": -0.1},
            "elsewhere": {"touches": ("nowhere",)},
            "foreign": {"site": Site("another", site.node)},
            "loose": {"setting": _Loose(1)},
            "eager": {"recommended": True},
        }
        found = [replace(c, **changes.get(self.how, {})) for c in found]
        return [*found, found[-1]] if self.how == "twice" else found


@dataclass(frozen=True)
class _Loose:
    rank: int


@dataclass(frozen=True)
class Jumbled(Tucker2):
    """Offers its candidates in another order, by `key`."""

    key: str = field(default="damage", metadata={"help": "damage or cost"})

    def candidates(self, site: Site, facts: Facts) -> Offers:
        first, *rest = super().candidates(site, facts)
        if self.key == "damage" and len(rest) > 1:
            rest = [replace(c, damage=d.damage) for c, d in zip(rest, rest[::-1], strict=True)]
        elif len(rest) > 1:
            rest = [replace(c, after=d.after) for c, d in zip(rest, rest[::-1], strict=True)]
        return [first, *rest]


@dataclass(frozen=True)
class Brittle(Tucker2):
    """Falls over grouped convolutions."""

    def candidates(self, site: Site, facts: Facts) -> Offers:
        group = next(c.group for c in facts.convs() if c.node == site.node)
        return [super().candidates(site, facts)][group - 1]


@dataclass(frozen=True)
class Trusting(Tucker2):
    """Where the numbers make no sense it offers full rank without having looked at them."""

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


@dataclass(frozen=True)
class Optimistic(Tucker2):
    """Promises half of the damage."""

    def candidates(self, site: Site, facts: Facts) -> Offers:
        return [replace(c, damage=c.damage / 2) for c in super().candidates(site, facts)]


@dataclass(frozen=True)
class Backwards(Tucker2):
    """The tightest candidate first."""

    def candidates(self, site: Site, facts: Facts) -> Offers:
        return super().candidates(site, facts)[::-1]


@dataclass(frozen=True)
class Undercounting(Tucker2):
    """Forgets, by `how`, the last factor or that the first one works on the whole input."""

    how: str = field(default="factor", metadata={"help": "factor or positions"})

    def candidates(self, site: Site, facts: Facts) -> Offers:
        conv = next(c for c in facts.convs() if c.node == site.node)
        found = []
        for candidate in super().candidates(site, facts):
            ranks, after = candidate.setting, candidate.after
            if self.how == "factor":
                after = replace(after, params=after.params - ranks.rank_out * conv.out_channels)
            else:
                weights = conv.in_channels * ranks.rank_in
                inside, outside = facts.shape(conv.input), facts.shape(conv.output)
                apart = _positions(inside) - _positions(outside)
                after = replace(after, macs=after.macs - weights * apart)
            found.append(replace(candidate, after=after))
        return found


def _positions(shape: tuple[int, ...]) -> int:
    count = shape[0]
    for extent in shape[2:]:
        count *= extent
    return count


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
    "check_candidates_are_well_formed": tuple(
        (Misshapen("auto", 8, how), match)
        for how, match in (
            ("nan", "damage of nan"),
            ("negative", "damage of -0.1"),
            ("elsewhere", "does not touch its own node"),
            ("foreign", "signed by another pass"),
            ("loose", "not a setting_type"),
            ("eager", "more than one candidate is recommended"),
            ("twice", "a setting comes twice"),
        )
    ),
    "check_damage_is_monotone": (
        (Jumbled("auto", 8, "damage"), "damages less"),
        (Jumbled("auto", 8, "cost"), "macs more"),
    ),
    "check_errors_are_typed": ((Brittle(), "IndexError"),),
    "check_nonfinite_weights_are_refused": ((Trusting(), "holds nan"),),
    "check_reaches_a_fixpoint": ((Endless(), "its own nodes"),),
    "check_damage_is_honest": ((Optimistic(), "promised a damage"),),
    "check_loosest_setting_is_exact": ((Backwards(), "comes first with a damage"),),
    "check_cost_is_counted": (
        (Undercounting("auto", 8, "factor"), "after promises"),
        (Undercounting("auto", 8, "positions"), "after promises"),
    ),
}
