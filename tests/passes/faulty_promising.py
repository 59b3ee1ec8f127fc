"""Passes whose candidates are not what they say; each is Tucker-2 but for one fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnxcompress.analyse.facts import Facts
from onnxcompress.plan.contract import Candidate, Site
from onnxcompress_passes.tucker2 import Tucker2, Tucker2Ranks

Offers = Sequence[Candidate[Tucker2Ranks]]


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


FAULTS: Mapping[str, tuple[tuple[Tucker2, str], ...]] = {
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
    "check_damage_is_honest": ((Optimistic(), "promised a damage"),),
    "check_loosest_setting_is_exact": ((Backwards(), "comes first with a damage"),),
    "check_cost_is_counted": (
        (Undercounting("auto", 8, "factor"), "after promises"),
        (Undercounting("auto", 8, "positions"), "after promises"),
    ),
}
