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
from onnxcompress.plan.saliency.criteria import scores
from onnxcompress.plan.saliency.flops import mflops_per_channel
from onnxcompress.plan.saliency.normalise import normalised
from onnxcompress.plan.saliency.question import Criterion, Question

Array = NDArray[np.float64]
Removals = tuple[tuple[str, int], ...]
"""(group, channel) in the order in which they go."""

_COMBINE: dict[str, Callable[[list[float]], float]] = {
    "sum": lambda scores: float(np.sum(scores)),
    "mean": lambda scores: float(np.mean(scores)),
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
    flops: float = 0.0


def channel_scores(
    question: Question, criterion: Criterion, normalise: str, combine: str, flops: float = 0.0
) -> dict[str, Array]:
    """Scores [width] of every group's channels.

    Args:
        question: what is asked.
        criterion: scores the channels of every layer.
        normalise: how scores become comparable between layers.
        combine: how those of the layers of a group become one.
        flops: subtracted from the normalised scores, per million operations of a channel
            (Molchanov et al. 2017, eq. 12).
    """
    raw = criterion(question)
    gone = list(question.coupling.classes(question.removed))
    values: dict[int, list[float]] = defaultdict(list)
    for layer in question.layers:
        classes = question.lane(layer).classes
        # What is gone already is no part of the layer any more.
        left = ~np.isin(classes, gone)
        line = np.zeros(len(classes))
        line[left] = normalised(raw[layer][left], normalise)
        if flops:
            line[left] -= flops * mflops_per_channel(question, layer)
        by_class: dict[int, list[float]] = defaultdict(list)
        for score, channel in zip(line.tolist(), classes.tolist(), strict=True):
            by_class[channel].append(score)
        # Several positions of one layer count once: a layer is one voice among the members.
        for channel, found in by_class.items():
            values[channel].append(float(np.mean(found)))
    together = _COMBINE[combine]
    return {
        group.name: np.array([together(values[c]) for c in group.channels])
        for group in question.coupling.groups
    }


def removal_sequence(facts: Facts, coupling: Coupling, ranking: Ranking) -> Removals:
    """In which order channels go, least important first.

    Channels that have to stay, because a tensor would be empty otherwise, are not in it.

    Raises:
        UsageError: the criterion needs data that is not there.
    """

    def criterion(question: Question) -> dict[str, Array]:
        return scores(ranking.criterion, question)

    def score(removed: Mapping[str, Sequence[int]]) -> dict[str, Array]:
        gone = {name: tuple(channels) for name, channels in removed.items() if channels}
        question = Question(facts, coupling, gone, ranking.norm, ranking.seed)
        return channel_scores(
            question, criterion, ranking.normalise, ranking.combine, ranking.flops
        )

    groups = coupling.groups
    if ranking.per_step == 0:
        found = score({})
        kept = _always_kept(coupling, found)
        ranked = [
            (float(found[group.name][channel]), at, channel)
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
