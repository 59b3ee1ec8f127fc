"""How a pass looks and weighs: it only reads, speaks about every layer, and gives reasons."""

from __future__ import annotations

import copy
import json
from collections import Counter
from itertools import pairwise
from math import isfinite
from typing import Any

import numpy as np
import onnx

from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.errors import OnnxCompressError, PassError
from onnxcompress.graph.cost import COUNTED_OPERATORS
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.view import FLOATING_TYPES
from onnxcompress.plan.contract import Pass, Refusal, Site
from onnxcompress.plan.options import collect
from onnxcompress.testing.checks_measuring import (
    demand,
    octets,
    proposals,
    representatives,
    words,
)
from onnxcompress.testing.zoo import Entry, zoo


def check_needs_are_complete(owner: Pass[Any], entry: Entry) -> None:
    """Looking and weighing read nothing that `needs` does not declare."""
    try:
        proposals(owner, entry)
    except PassError as error:
        # What the facts refuse has no cause; what a pass raised by itself is wrapped and has one.
        demand(error.__cause__ is not None, str(error))


def check_proposing_does_not_mutate(owner: Pass[Any], entry: Entry) -> None:
    """Looking and weighing change neither the model, nor the pass, nor its class."""
    facts = entry.facts()
    model, state, shared = octets(facts.model), copy.deepcopy(vars(owner)), _class_state(owner)
    collect(facts, [owner])
    demand(octets(facts.model) == model, "the model changed while the pass was looking at it")
    demand(vars(owner) == state, f"the pass changed from {state} to {vars(owner)}")
    demand(_class_state(owner) == shared, "the pass keeps state on its class")


def check_refusals_say_why(owner: Pass[Any], entry: Entry) -> None:
    """Every refusal has a reason and a node of the graph; no node is reported twice."""
    options = proposals(owner, entry)
    nodes = entry.facts().view.nodes
    for refusal in options.refusals:
        demand(refusal.reason.strip(), f"node '{refusal.node}' is refused without a reason")
        demand(refusal.node in nodes, f"the refused node '{refusal.node}' is not in the graph")
        demand(
            refusal.pass_name == owner.name,
            f"the refusal of node '{refusal.node}' is signed '{refusal.pass_name}'",
        )
    reported = [offers[0].site.node for offers in options.sites]
    reported += [refusal.node for refusal in options.refusals]
    twice = [node for node, count in Counter(reported).items() if count > 1]
    demand(not twice, f"nodes reported more than once: {twice}")


def check_nothing_is_passed_over(owner: Pass[Any]) -> None:
    """Every layer of a kind that the pass takes on somewhere is, everywhere, a site or refused."""
    heard: dict[str, tuple[Facts, set[str]]] = {}
    kinds: set[str] = set()
    for entry in zoo():
        facts = entry.facts()
        found = _found(owner, facts.restricted(owner.needs))
        heard[entry.name] = facts, {f.node for f in found}
        kinds |= {facts.view.nodes[f.node].op_type for f in found if isinstance(f, Site)}
    # Elsewhere than at layers a site is an occasion, and there is no telling where one was missed.
    kinds &= COUNTED_OPERATORS
    for name, (facts, reported) in heard.items():
        silent = [
            node.name
            for node in facts.model.graph.node
            if node.op_type in kinds and node.name not in reported
        ]
        demand(not silent, f"on '{name}' not a word about the nodes {silent} ({sorted(kinds)})")


def check_excluded_nodes_are_refused(owner: Pass[Any], entry: Entry) -> None:
    """What the user excludes is never touched."""
    everything = entry.facts()
    names = frozenset(everything.view.nodes)
    facts = analyse(everything.model, entry.sizes, excluded=names)
    for offers in collect(facts, [owner]).sites:
        touched = offers[0].touches
        raise AssertionError(f"the nodes {list(touched)} are excluded, yet there are candidates")


def check_applies_somewhere(owner: Pass[Any]) -> None:
    """The pass offers something, and somewhere something that saves."""
    offers = [
        candidate for entry in zoo() for site in proposals(owner, entry).sites for candidate in site
    ]
    demand(offers, "there is no model in the whole zoo to which the pass applies")
    # With rank=full and the like a pass is asked for nothing but exactness.
    lossy = [candidate for candidate in offers if candidate.damage > 0]
    saves = any(c.saving.macs > 0 or c.saving.params > 0 for c in offers)
    demand(saves or not lossy, "no candidate in the whole zoo saves anything")


def check_candidates_are_well_formed(owner: Pass[Any], entry: Entry) -> None:
    """Candidates are plain data about known nodes, distinct, at most one of them recommended."""
    nodes = entry.facts().view.nodes
    for offers in proposals(owner, entry).sites:
        demand(offers, "a site without candidates has to raise NoCandidate")
        for candidate in offers:
            what = words(candidate)
            demand(candidate.site.pass_name == owner.name, f"{what}: signed by another pass")
            demand(candidate.site == offers[0].site, f"{what}: belongs to another site")
            demand(candidate.site.node in candidate.touches, f"{what}: does not touch its own node")
            unknown = [name for name in candidate.touches if name not in nodes]
            demand(not unknown, f"{what}: touches {unknown}, which are not in the graph")
            demand(type(candidate.setting) is owner.setting_type, f"{what}: not a setting_type")
            demand(
                isfinite(candidate.damage) and candidate.damage >= 0,
                f"{what}: promises a damage of {candidate.damage}",
            )
            try:
                json.dumps(candidate.to_dict(), allow_nan=False)
            except (TypeError, ValueError) as error:
                raise AssertionError(f"{what}: cannot be written into a plan: {error}") from error
        settings = Counter(candidate.setting for candidate in offers)
        demand(max(settings.values()) == 1, f"node '{offers[0].site.node}': a setting comes twice")
        demand(
            sum(candidate.recommended for candidate in offers) <= 1,
            f"node '{offers[0].site.node}': more than one candidate is recommended",
        )


def check_damage_is_monotone(owner: Pass[Any], entry: Entry) -> None:
    """From the loosest candidate on nothing costs more, and nothing damages less."""
    for offers in proposals(owner, entry).sites:
        for loose, tight in pairwise(offers):
            what = f"{words(tight)} after {loose.setting}"
            demand(tight.damage >= loose.damage, f"{what}: damages less")
            for kind in ("macs", "params", "weight_bytes"):
                more = getattr(tight.after, kind) - getattr(loose.after, kind)
                demand(more <= 0, f"{what}: costs {more} {kind} more")


def check_errors_are_typed(owner: Pass[Any], entry: Entry) -> None:
    """On a valid model nothing raises; on a node that is gone, only errors of ours do."""
    try:
        options = proposals(owner, entry)
    except OnnxCompressError as error:
        raise AssertionError(f"looking at a valid model it failed: {error}") from error
    for offers in options.sites:
        for candidate in representatives(offers):
            editor = Editor(entry.canonical())
            try:
                owner.rewrite(candidate, editor)
            except Exception as error:
                raise AssertionError(f"{words(candidate)}: raised {error!r}") from error
            try:
                owner.rewrite(candidate, editor)
            except OnnxCompressError:
                continue
            except Exception as error:
                raise AssertionError(
                    f"{words(candidate)}: where the node is gone, raised {error!r}"
                ) from error


def check_nonfinite_weights_are_refused(owner: Pass[Any], entry: Entry) -> None:
    """A NaN or an infinity in a weight is refused, with a reason or an error of ours."""
    for value in (np.nan, np.inf):
        model = entry.canonical()
        if not _poison(model, value):
            return
        try:
            options = collect(entry.facts(model), [owner])
        except OnnxCompressError:
            continue
        for offers in options.sites:
            raise AssertionError(f"{words(offers[0])} is offered on a weight that holds {value}")


def _found(owner: Pass[Any], facts: Facts) -> list[Site | Refusal]:
    return list(owner.sites(facts))


def _class_state(owner: Pass[Any]) -> dict[str, Any]:
    """Copies of the mutable things that hang on the class and its bases."""
    return {
        f"{cls.__name__}.{key}": copy.deepcopy(value)
        for cls in type(owner).__mro__
        for key, value in vars(cls).items()
        if isinstance(value, (int, list, dict, set, bytearray)) and not key.startswith("__")
    }


def _poison(model: onnx.ModelProto, value: float) -> bool:
    """Put `value` into the first element of every weight; False if there is none."""
    weights = [t for t in model.graph.initializer if len(t.dims) > 1]
    weights = [t for t in weights if t.data_type in FLOATING_TYPES]
    for tensor in weights:
        values = np.array(onnx.numpy_helper.to_array(tensor))
        values.flat[0] = value
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return bool(weights)
