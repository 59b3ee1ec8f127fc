"""The latency gate: every candidate is timed against the layer it would replace.

The layer is cut out with its fused neighbours at the real sizes, rewritten by the very pass, and
both are timed side by side on the target provider, threads and batch. Layers of equal structure
are timed once. A candidate that is not faster is dropped, with the figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from onnxcompress.analyse.facts import Facts
from onnxcompress.errors import PassError
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.extract import extract_layer, structure_key
from onnxcompress.graph.memo import Memo
from onnxcompress.latency.table import LatencyTable, LayerTiming, together
from onnxcompress.plan.contract import Candidate, Pass, Refusal
from onnxcompress.plan.options import Options, nothing_to_save, with_savings

Key = tuple[str, str, str]
"""(node, pass, setting as JSON): one candidate of one site."""


@dataclass(frozen=True)
class Gated:
    """The options that are faster, their timings, and what was dropped for being slower."""

    options: Options
    timings: Mapping[Key, LayerTiming]


def candidate_key(candidate: Candidate[Any]) -> Key:
    """What identifies a candidate among all of one model."""
    values = candidate.to_dict()
    return values["node"], values["pass"], json.dumps(values["setting"], sort_keys=True)


def gate(
    options: Options,
    facts: Facts,
    passes: Mapping[str, Pass[Any]],
    table: LatencyTable,
    *,
    memo: Memo | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Gated:
    """Time every candidate that is not lossless, and keep the faster ones.

    Lossless candidates with nothing to save are never timed: they exist to prove exactness. Nor are
    those that only change how constants are stored.
    """
    timings: dict[Key, LayerTiming] = {}
    seen: dict[str, LayerTiming] = {}
    sites: list[tuple[Candidate[Any], ...]] = []
    refusals = list(options.refusals)
    for number, offers in enumerate(options.sites):
        if progress is not None:
            progress(number, len(options.sites))
        if offers[0].stored:
            kept = with_savings(Options((offers,), ()))
            sites += kept.sites
            refusals += kept.refusals
            continue
        worth = [c for c in offers if c.saving.macs > 0 or c.recommended]
        if worth:
            owner = passes[worth[0].site.pass_name]
            view = facts.restricted(owner.needs)
            pairs = [owner.excerpts(candidate, view) for candidate in worth]
            if pairs[0] is None:
                layer = extract_layer(facts.view, worth[0].site.node, facts.shapes())
                _time_layer(layer, worth, passes, table, memo, seen, timings)
            else:
                excerpts = {c: pair or () for c, pair in zip(worth, pairs, strict=True)}
                timings |= _time_excerpts(excerpts, table)
        timed = [c for c in worth if candidate_key(c) in timings]
        faster = _steps([c for c in timed if timings[candidate_key(c)].faster], timings)
        if faster:
            sites.append(faster)
        elif worth and not timed:
            site = worth[0].site
            reason = "nothing of it can be timed by itself; the gate off takes it all the same"
            refusals.append(Refusal(site.pass_name, site.node, reason))
        elif worth:
            best = min((timings[candidate_key(c)] for c in timed), key=lambda t: t.ratio)
            refusals.append(
                Refusal(
                    worth[0].site.pass_name,
                    worth[0].site.node,
                    f"no faster: best of {len(worth)} candidates takes {best.ratio:.2f} times as "
                    "long as the layer itself",
                )
            )
        else:
            refusals.append(nothing_to_save(offers))
    if progress is not None:
        progress(len(options.sites), len(options.sites))
    return Gated(Options(tuple(sites), tuple(refusals)), timings)


def _time_layer(
    layer: onnx.ModelProto,
    worth: list[Candidate[Any]],
    passes: Mapping[str, Pass[Any]],
    table: LatencyTable,
    memo: Memo | None,
    seen: dict[str, LayerTiming],
    timings: dict[Key, LayerTiming],
) -> None:
    """Time rewrites of one layer, side by side."""
    structure = _structure(layer)
    names = [structure + "|".join(candidate_key(c)[1:]) for c in worth]
    fresh = [i for i, name in enumerate(names) if name not in seen]
    replaced = [_rewritten(layer, worth[i], passes, memo) for i in fresh]
    for i, timing in zip(fresh, table.compare(layer, replaced), strict=True):
        seen[names[i]] = timing
    for candidate, name in zip(worth, names, strict=True):
        timings[candidate_key(candidate)] = seen[name]


def _time_excerpts(
    excerpts: Mapping[Candidate[Any], Sequence[tuple[onnx.ModelProto, onnx.ModelProto]]],
    table: LatencyTable,
) -> dict[Key, LayerTiming]:
    """Time candidates that change several layers: what may replace one layer, side by side."""
    layers: dict[str, onnx.ModelProto] = {}
    others: dict[str, dict[str, onnx.ModelProto]] = {}
    names = {
        candidate: [(_structure(one), _structure(other)) for one, other in pairs]
        for candidate, pairs in excerpts.items()
        if pairs
    }
    for candidate, named in names.items():
        for (layer, other), pair in zip(named, excerpts[candidate], strict=True):
            layers.setdefault(layer, pair[0])
            others.setdefault(layer, {}).setdefault(other, pair[1])
    found: dict[tuple[str, str], LayerTiming] = {}
    for layer, replacements in others.items():
        timed = table.compare(layers[layer], list(replacements.values()))
        found |= {(layer, other): t for other, t in zip(replacements, timed, strict=True)}
    return {candidate_key(c): together([found[name] for name in names[c]]) for c in names}


def _structure(layer: onnx.ModelProto) -> str:
    return json.dumps(structure_key(layer))


def _steps(
    faster: list[Candidate[Any]], timings: Mapping[Key, LayerTiming]
) -> tuple[Candidate[Any], ...]:
    """The edges of the latency staircase: a tighter candidate has to be faster than looser ones."""
    kept: list[Candidate[Any]] = []
    best = 0.0
    for candidate in faster:
        saved = timings[candidate_key(candidate)].saved_ms
        if saved > best or candidate.recommended:
            kept.append(candidate)
            best = max(best, saved)
    return tuple(kept)


def _rewritten(
    layer: onnx.ModelProto,
    candidate: Candidate[Any],
    passes: Mapping[str, Pass[Any]],
    memo: Memo | None,
) -> onnx.ModelProto:
    owner = passes[candidate.site.pass_name]
    editor = Editor(layer, memo=memo)
    editor.sign(owner.name)
    try:
        owner.rewrite(candidate, editor)
    except Exception as error:
        raise PassError(
            f"pass '{owner.name}' failed to rewrite node '{candidate.site.node}': {error!r}"
        ) from error
    return editor.finish()
