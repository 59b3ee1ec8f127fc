"""Filters that the channels of a group share: what is on offer, and what becomes of the graph."""

from __future__ import annotations

from collections.abc import Sequence

from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import ModelError, PassError
from onnxcompress.graph.cost import Cost
from onnxcompress.graph.editing import apply_edits
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.view import GraphView
from onnxcompress.numerics.clustering import cut_at, cut_into
from onnxcompress.plan.channels.consumers import consumers
from onnxcompress.plan.channels.cost import toll
from onnxcompress.plan.channels.known import coupling_of
from onnxcompress.plan.channels.plan_cuts import plan_cuts
from onnxcompress.plan.contract import Candidate, NoCandidate, Site
from onnxcompress_passes.dsl.clusters import MEAN, Clusters, clusters, error
from onnxcompress_passes.dsl.filters import ANSWERS, likeness, makers_of
from onnxcompress_passes.dsl.setting import Sharing
from onnxcompress_passes.dsl.sharing import merge, share
from onnxcompress_passes.prune_setting import dearer, widths


def objection(group: Group, coupling: Coupling, facts: Facts) -> str:
    """Why the channels of a group cannot share, or an empty string."""
    excluded = set(group.consumers) & facts.excluded
    if excluded:
        return f"excluded by the user with '{min(excluded)}'"
    try:
        makers_of(facts, coupling, group)
        consumers(facts, coupling, group)
    except ModelError as problem:
        return str(problem)
    return ""


def filter_candidates(
    site: Site,
    facts: Facts,
    *,
    distance: str,
    linkage: str,
    centre: str,
    threshold: float,
    count: int,
    round_to: int,
) -> list[Candidate[Sharing]]:
    """Every channel by itself first, then ever fewer filters; or as many as were asked for.

    Args:
        site: of the group.
        facts: about the model.
        distance: answers or ssim.
        linkage: of the tree that clusters are cut from.
        centre: mean or medoid.
        threshold: nothing farther apart joins; 0 for no threshold.
        count: filters that stay; 0 offers a ladder.
        round_to: counts on offer are multiples of this; 0 offers about a dozen.

    Raises:
        NoCandidate: nothing is shared, or it would save nothing.
    """
    coupling = facts.coupling()
    group = coupling.group(site.node)
    if group.width < 2:
        raise NoCandidate("a single channel has nothing to share")
    try:
        alike = likeness(facts, coupling, group, distance, linkage)
    except ModelError as problem:
        raise NoCandidate(str(problem)) from problem
    refined = distance == ANSWERS and centre == MEAN and not threshold
    if threshold or count:
        labels = cut_at(alike.tree, threshold) if threshold else cut_into(alike.tree, count)
        found = clusters(alike, labels, centre, refined=refined)
        offer = _offer(site, group, found, error(alike, found), facts, recommended=True)
        if offer is None or found.count == group.width:
            raise NoCandidate(f"all {group.width} channels keep filters of their own")
        return [offer]
    own = Clusters(tuple(range(group.width)), (1.0,) * group.width)
    first = _offer(site, group, own, 0.0, facts)
    offers = [first] if first is not None else []
    for width in widths(group.width, 1, round_to):
        found = clusters(alike, cut_into(alike.tree, width), centre, refined=refined)
        damage = max(error(alike, found), offers[-1].damage) if offers else 0.0
        rung = _offer(site, group, found, damage, facts)
        if rung is not None and offers and not dearer(rung.after, offers[-1].after):
            offers.append(rung)
    if len(offers) < 2:
        raise NoCandidate(f"{group.width} channels: nothing is saved by sharing")
    return offers


def share_filters(candidates: Sequence[Candidate[Sharing]], edit: Editor) -> None:
    """Let the channels of several groups share: all edits are worked out on one graph.

    Raises:
        ModelError: the graph lost channels already.
        PassError: a group does not have these channels.
    """
    coupling = coupling_of(edit)
    chosen = by_group(candidates, coupling)
    share(edit, coupling, chosen)
    merge(edit, coupling, chosen)
    apply_edits(plan_cuts(GraphView(edit.finish()), coupling, removed(chosen)), edit)


def by_group(candidates: Sequence[Candidate[Sharing]], coupling: Coupling) -> dict[str, Clusters]:
    """Clusters by group.

    Raises:
        PassError: a group has another number of channels.
    """
    found = {}
    for candidate in candidates:
        group = coupling.group(candidate.site.node)
        if len(candidate.setting.labels) != group.width:
            raise PassError(f"group '{group.name}' has {group.width} channels")
        found[group.name] = candidate.setting.clusters
    return found


def removed(chosen: dict[str, Clusters]) -> dict[str, tuple[int, ...]]:
    """The channels that others stand for, by group."""
    return {name: found.gone for name, found in chosen.items() if found.gone}


def _offer(
    site: Site,
    group: Group,
    found: Clusters,
    damage: float,
    facts: Facts,
    *,
    recommended: bool = False,
) -> Candidate[Sharing] | None:
    """The candidate; None where a tensor would be left without channels."""
    coupling = facts.coupling()
    try:
        edits = plan_cuts(facts.view, coupling, {group.name: found.gone}, counting=True)
    except PassError:
        return None
    cost = toll(facts, edits)
    touches, whole = _whole(group, facts, coupling)
    after = whole - (cost.before - cost.after)
    setting = Sharing(found.labels, found.shares)
    return Candidate(site, setting, touches, whole, after, damage, recommended)


def _whole(group: Group, facts: Facts, coupling: Coupling) -> tuple[tuple[str, ...], Cost]:
    """All nodes that any candidate of a group touches, and what they cost."""

    def find() -> tuple[tuple[str, ...], Cost]:
        edits = plan_cuts(facts.view, coupling, {group.name: (0,)}, counting=True)
        cost = toll(facts, edits)
        names = (group.name, *group.producers, *cost.touches, *group.consumers)
        return tuple(dict.fromkeys(names)), cost.before

    return facts.recall(("what sharing touches", group.name), find)
