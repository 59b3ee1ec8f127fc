"""Superblocks: which groups of channels share one width modifier, found from the graph itself.

"Structured Coarse Block Pruning" (ICLR 2023 submission) bins the convolutions of a network into
superblocks. In residual networks these are the stages: a residual stream and whatever is inside the
branches that write to it. In plain networks they are runs of layers of one width, or of one
resolution, or bins of about as many multiplications each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any

import yaml

from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import UsageError

AUTO, WIDTHS, RESOLUTIONS = "auto", "widths", "resolutions"
_FEW, _MANY = 2, 8
"""How many superblocks `auto` is content with."""

_BINS = 4
_SUMS = frozenset({"Add", "Sum"})


@dataclass(frozen=True)
class Superblock:
    """Groups of channels that shrink by one ratio.

    Attributes:
        name: its number from the input on, or the user's name for it.
        groups: names of the groups, in order of execution.
        nominal: the width that ratios are taken of, where it has one, or a multiple of it as in
            bottlenecks; 0 where every group is rounded by itself.
    """

    name: str
    groups: tuple[str, ...]
    nominal: int = 0


def check_segments(segments: Any) -> None:
    """Refuse what says nothing about superblocks.

    Raises:
        UsageError: it is neither a way of finding them, nor a number, nor a YAML file's name.
    """
    if type(segments) is int and segments >= 1:
        return
    named = isinstance(segments, str) and (
        segments in {AUTO, WIDTHS, RESOLUTIONS} or Path(segments).suffix in {".yaml", ".yml"}
    )
    if not named:
        raise UsageError(
            f"scbp: segments={segments!r} is none of {AUTO}, {WIDTHS}, {RESOLUTIONS}, a number, "
            "FILE.yaml"
        )


def superblocks(
    facts: Facts, coupling: Coupling, groups: Sequence[Group], segments: str | int
) -> tuple[Superblock, ...]:
    """The superblocks of a network.

    Args:
        facts: about the model.
        coupling: of the model.
        groups: those that can be cut, in order of execution.
        segments: auto, widths, resolutions, a number of bins, or the name of a YAML file that maps
            names to regular expressions of layers.

    Raises:
        UsageError: the file cannot be read, or one of its expressions matches no layer.
    """
    if not groups:
        return ()
    if segments == WIDTHS:
        return _by_width(facts, coupling, groups)
    if segments == RESOLUTIONS:
        return _by_resolution(facts, groups)
    if isinstance(segments, int):
        return _by_macs(facts, groups, segments)
    if segments != AUTO:
        return _by_file(groups, Path(segments))
    for find in (_by_width(facts, coupling, groups), _by_resolution(facts, groups)):
        if _FEW <= len(find) <= _MANY:
            return find
    return _by_macs(facts, groups, _BINS)


def _numbered(parts: Sequence[Sequence[Group]], *, nominal: bool = False) -> tuple[Superblock, ...]:
    return tuple(
        Superblock(
            str(number),
            tuple(group.name for group in part),
            _nominal({group.width for group in part}) if nominal else 0,
        )
        for number, part in enumerate(parts, 1)
    )


def _nominal(widths: set[int]) -> int:
    """The narrower of two widths of which the other one is a multiple, as in bottlenecks."""
    least = min(widths)
    return least if len(widths) <= 2 and not max(widths) % least else 0


def _by_width(facts: Facts, coupling: Coupling, groups: Sequence[Group]) -> tuple[Superblock, ...]:
    """Runs of one nominal width; residual streams go with what is inside of their branches."""
    home = _homes(facts, coupling, groups)
    streams = [group for group in groups if is_stream(facts, group)]
    others = [group for group in groups if group not in streams]
    parts = [list(run) for _, run in groupby(others, key=lambda group: group.width)]
    for stream in streams:
        names = {name for name, end in home.items() if end == stream.name} - {stream.name}
        around = [part for part in parts if any(group.name in names for group in part)]
        if len(around) == 1:
            around[0].append(stream)
        else:
            # Stages that share a stream, as where shortcuts pad with zeros: it is by itself.
            parts.append([stream])
    place = {group.name: at for at, group in enumerate(groups)}
    ordered = [sorted(part, key=lambda group: place[group.name]) for part in parts]
    return _numbered(sorted(ordered, key=lambda part: place[part[0].name]), nominal=True)


def _homes(facts: Facts, coupling: Coupling, groups: Sequence[Group]) -> dict[str, str]:
    """Of every group the residual stream that all its channels lead to, or itself."""
    home = {group.name: group.name for group in groups if is_stream(facts, group)}
    streams = frozenset(home)
    # From the output on: where the next group leads is known by then.
    for group in reversed([each for each in groups if each.name not in streams]):
        made = [coupling.group_of(layer) for layer in group.consumers]
        # A depthwise layer makes the very channels that it reads.
        after = {g.name if g is not None else "" for g in made} - {group.name}
        ends = {home.get(name, "") for name in after}
        home[group.name] = ends.pop() if len(ends) == 1 and ends <= streams else group.name
    return home


def is_stream(facts: Facts, group: Group) -> bool:
    """Whether branches of the network are summed in these channels."""
    carried = set(group.tensors)
    nodes = (facts.view.producers.get(tensor) for tensor in group.tensors)
    return any(
        node is not None
        and node.op_type in _SUMS
        and sum(name in carried for name in node.input) > 1
        for node in nodes
    )


def _by_resolution(facts: Facts, groups: Sequence[Group]) -> tuple[Superblock, ...]:
    def extent(group: Group) -> int:
        return prod(facts.shape(facts.view.nodes[group.name].output[0])[2:])

    return _numbered([list(run) for _, run in groupby(groups, key=extent)])


def _by_macs(facts: Facts, groups: Sequence[Group], bins: int) -> tuple[Superblock, ...]:
    """Consecutive groups in bins of about equally many multiplications."""
    macs = [sum(facts.macs(name) for name in group.producers) for group in groups]
    total, done = max(1, sum(macs)), 0.0
    where: list[int] = []
    for one in macs:
        where.append(min(bins - 1, int(bins * (done + one / 2) / total)))
        done += one
    pairs = groupby(zip(where, groups, strict=True), key=lambda pair: pair[0])
    return _numbered([[group for _, group in run] for _, run in pairs])


def _by_file(groups: Sequence[Group], path: Path) -> tuple[Superblock, ...]:
    """As a YAML file says: names, and regular expressions of layers."""
    parts: dict[str, list[str]] = {}
    taken: set[str] = set()
    for name, matches in _read(path).items():
        found = [g.name for g in groups if any(map(matches, g.producers)) and g.name not in taken]
        if not found:
            raise UsageError(f"'{path}': superblock '{name}' matches no layer that can be cut")
        taken.update(found)
        parts[name] = found
    return tuple(Superblock(name, tuple(found)) for name, found in parts.items())


def _read(path: Path) -> Mapping[str, Callable[[str], bool]]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"superblocks '{path}' cannot be read: {error}") from error
    found: dict[str, Callable[[str], bool]] = {}
    for name, patterns in values.items() if isinstance(values, dict) else ():
        listed = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
            raise UsageError(f"'{path}': superblock '{name}' must be a list of regular expressions")
        try:
            compiled = [re.compile(one) for one in listed]
        except re.error as error:
            raise UsageError(f"'{path}': superblock '{name}': {error}") from error
        found[str(name)] = lambda layer, c=compiled: any(one.search(layer) for one in c)  # type: ignore[misc]
    if not found:
        raise UsageError(f"'{path}' must map names of superblocks to regular expressions of layers")
    return found
