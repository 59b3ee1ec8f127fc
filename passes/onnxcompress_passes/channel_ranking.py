"""From scores of layers to an order in which the channels of every group go.

Scores are normalised within each layer, and combined over all positions and layers of a class.
In one shot everything is scored once; iteratively the network is scored again, with what has been
removed so far at zero, after every few channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcompress.analyse.coupling.result import Coupling
from onnxcompress.analyse.facts import Facts
from onnxcompress_passes.channel_scores import CRITERIA, Criterion, Question

Array = NDArray[np.float64]
Removals = tuple[tuple[str, int], ...]
"""(group, channel) in the order in which they go."""

NORMALISATIONS = ("l2", "l1", "minmax", "none")
_COMBINE: dict[str, Callable[[list[float]], float]] = {
    "mean": lambda scores: float(np.mean(scores)),
    "sum": lambda scores: float(np.sum(scores)),
    "max": lambda scores: float(np.max(scores)),
}
COMBINATIONS = tuple(_COMBINE)
SCOPES = ("layer", "global")


@dataclass(frozen=True)
class Ranking:
    """How channels are ranked: the options of pass `prune` with the same names."""

    criterion: str
    norm: str
    normalise: str
    combine: str
    scope: str
    per_step: int
    seed: int


def channel_scores(
    question: Question, criterion: Criterion, normalise: str, combine: str
) -> dict[str, Array]:
    """Scores [width] of every group's channels."""
    raw = criterion(question)
    gone = list(question.coupling.classes(question.removed))
    values: dict[int, list[float]] = defaultdict(list)
    for layer in question.layers:
        classes = question.lane(layer).classes
        # What is gone already is no part of the layer any more.
        left = ~np.isin(classes, gone)
        line = np.zeros(len(classes))
        line[left] = normalised(raw[layer][left], normalise)
        by_class: dict[int, list[float]] = defaultdict(list)
        for score, channel in zip(line.tolist(), classes.tolist(), strict=True):
            by_class[channel].append(score)
        # Several positions of one layer count once: a layer is one voice among the members.
        for channel, scores in by_class.items():
            values[channel].append(float(np.mean(scores)))
    together = _COMBINE[combine]
    return {
        group.name: np.array([together(values[c]) for c in group.channels])
        for group in question.coupling.groups
    }


def normalised(scores: Array, how: str) -> Array:
    """Scores of one layer, comparable between layers.

    Args:
        scores: raw scores [channels].
        how: `none`; `l1` and `l2` divide by the norm of all scores of the layer; `minmax` maps
            the smallest to 0 and the largest to 1. Equal scores stay as they are where the
            divisor would be zero.
    """
    match how:
        case "none":
            return scores
        case "minmax":
            shifted: Array = scores - scores.min(initial=np.inf)
            span = float(shifted.max(initial=0.0))
            return shifted / span if span else shifted
        case "l1":
            total = float(np.abs(scores).sum())
        case _:
            total = float(np.sqrt(np.square(scores).sum()))
    return scores / total if total else scores


def removal_sequence(facts: Facts, coupling: Coupling, ranking: Ranking) -> Removals:
    """In which order channels go, least important first.

    Channels that have to stay, because a tensor would be empty otherwise, are not in it.

    Raises:
        UsageError: the criterion needs data that is not there.
    """
    criterion = CRITERIA[ranking.criterion]

    def score(removed: Mapping[str, Sequence[int]]) -> dict[str, Array]:
        gone = {name: tuple(channels) for name, channels in removed.items() if channels}
        question = Question(facts, coupling, gone, ranking.norm, ranking.seed)
        return channel_scores(question, criterion, ranking.normalise, ranking.combine)

    groups = coupling.groups
    if ranking.per_step == 0:
        scores = score({})
        kept = _always_kept(coupling, scores)
        ranked = [
            (float(scores[group.name][channel]), at, channel)
            for at, group in enumerate(groups)
            for channel in range(group.width)
            if (group.name, channel) not in kept
        ]
        return tuple((groups[at].name, channel) for _, at, channel in sorted(ranked))
    sequence: list[tuple[str, int]] = []
    removed: dict[str, list[int]] = {group.name: [] for group in groups}
    while picked := _next(coupling, score(removed), removed, ranking):
        for name, channel in picked:
            removed[name].append(channel)
        sequence += picked
    return tuple(sequence)


def order_within(sequence: Removals, group: str) -> tuple[int, ...]:
    """The channels of one group in the order in which they go."""
    return tuple(channel for name, channel in sequence if name == group)


def _covers(coupling: Coupling) -> list[tuple[tuple[str, int], ...]]:
    """Sets of (group, channel) of which one has to stay, small ones first."""
    found = [tuple((g.name, c) for c in cover) for g in coupling.groups for cover in g.covers]
    found += [tuple((g.name, c) for c in range(g.width)) for g in coupling.groups]
    return sorted([*found, *coupling.joint_covers], key=len)


def _always_kept(coupling: Coupling, scores: Mapping[str, Array]) -> set[tuple[str, int]]:
    """The best channel of every set of which one has to stay."""
    kept: set[tuple[str, int]] = set()
    for cover in _covers(coupling):
        if kept.isdisjoint(cover):
            kept.add(max(cover, key=lambda c: (scores[c[0]][c[1]], c[0], -c[1])))
    return kept


def _next(
    coupling: Coupling,
    scores: Mapping[str, Array],
    removed: Mapping[str, list[int]],
    ranking: Ranking,
) -> list[tuple[str, int]]:
    """The least important channels of all groups together, or of each group, for one step."""
    covers = _covers(coupling)
    gone = {(name, channel) for name, channels in removed.items() for channel in channels}
    names = [group.name for group in coupling.groups]
    batches = [[name] for name in names] if ranking.scope == "layer" else [names]
    picked: list[tuple[str, int]] = []
    for batch in batches:
        order = sorted(
            (float(score), names.index(name), channel)
            for name in batch
            for channel, score in enumerate(scores[name].tolist())
            if (name, channel) not in gone
        )
        count = 0
        for _, at, channel in order:
            one = (names[at], channel)
            if count == ranking.per_step:
                break
            if all(one not in cover or set(cover) - gone - {one} for cover in covers):
                gone.add(one)
                picked.append(one)
                count += 1
    return picked
