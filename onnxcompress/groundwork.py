"""Exact rewrites first: what changes no output is done before anything lossy is weighed.

Passes that go first are asked in rounds, because one rewrite makes room for another. Each one is
timed in the whole network: by itself a Slice is as quick as a convolution, but between convolutions
ONNX Runtime has to lay its input and output out anew. Where no time is measured, what costs less
and nothing more is taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx

from onnxcompress.analyse.facts import Facts, Need, analyse
from onnxcompress.analyse.sizes import random_feeds
from onnxcompress.config import Config
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.graph.memo import Memo
from onnxcompress.journal import Journal, choice_name
from onnxcompress.latency.interleave import Budget, interleaved
from onnxcompress.latency.table import LatencyTable, LayerTiming
from onnxcompress.plan.channels.known import remember_coupling
from onnxcompress.plan.contract import Candidate, Pass, Refusal
from onnxcompress.plan.gate import Key, candidate_key, gate
from onnxcompress.plan.options import Options, collect
from onnxcompress.plan.plan import Rounds
from onnxcompress.progress import Progress
from onnxcompress.rewrite.manager import Proof, Rewritten, rewrite
from onnxcompress.rewrite.proof import Bench, Feeds, prove

_ROUNDS = 3
_SINGLY = 8
"""Candidates that are timed each by itself, at most."""

_WHOLE = Budget(rounds=7, seconds=0.1)
_NO_FASTER = "no faster: with this the whole network "


@dataclass(frozen=True)
class Groundwork:
    """What the other passes look at, and how it was made of the canonical model.

    Attributes:
        model: the model to plan on; the canonical one where nothing was done.
        rounds: what was carried out, round after round.
        refusals: what was found and left, with reasons.
        timings: of what was timed.
        proofs: how close every round came to the model it was made of.
    """

    model: onnx.ModelProto
    rounds: Rounds = ()
    refusals: tuple[Refusal, ...] = ()
    timings: Mapping[Key, LayerTiming] = field(default_factory=dict)
    proofs: tuple[Proof, ...] = ()


def lay_groundwork(
    facts: Facts,
    owners: Sequence[Pass[Any]],
    config: Config,
    feeds: Feeds,
    journal: Journal,
    progress: Progress,
) -> Groundwork:
    """Carry out the passes that go first.

    Args:
        facts: about the canonical model.
        owners: all passes of the job.
        config: says whether rewrites are timed, and where layer timings are kept.
        feeds: inputs to prove rewrites on.
        journal: keeps what was timed.
        progress: told what happens.
    """
    firsts = {owner.name: owner for owner in owners if owner.goes_first}
    if not firsts:
        return Groundwork(facts.model)
    progress.stage("exact rewrites")
    table = LatencyTable(config.latency_table, config.execution) if config.gated else None
    rounds: list[tuple[Candidate[Any], ...]] = []
    refusals: dict[str, Refusal] = {}
    timings: dict[Key, LayerTiming] = {}
    proofs: list[Proof] = []
    while len(rounds) < _ROUNDS:
        memo = _memo(facts, firsts)
        options = collect(facts, list(firsts.values()))
        if table is not None:
            offers = _widths(options, facts, firsts, table, memo)
            take = partial(_timed, facts, offers, firsts, config, memo, progress)
            times = journal.recall(f"exact {len(rounds)} {choice_name(offers)}", take)
            timed = [
                (candidate, LayerTiming(tuple(without), tuple(own)))
                for candidate, (without, own) in zip(offers, times, strict=True)
            ]
            timings |= {candidate_key(c): timing for c, timing in timed}
            quicker = [(timing.saved_ms, c) for c, timing in timed if timing.faster]
            chosen = _apart([c for _, c in sorted(quicker, key=lambda one: -one[0])])
            left = [
                (c.site, f"takes {t.ratio:.3f} times as long") for c, t in timed if not t.faster
            ]
            refusals |= {s.node: Refusal(s.pass_name, s.node, _NO_FASTER + w) for s, w in left}
        else:
            chosen = _apart(_cheaper(options))
        done = _proved(facts, chosen, firsts, feeds, config, memo)
        refusals |= {refusal.node: refusal for refusal in done.rolled_back}
        if not done.applied:
            break
        rounds.append(done.applied)
        proofs += done.proofs
        facts = analyse(done.model, facts.sizes, excluded=facts.excluded)
    if rounds:
        progress.note(f"{sum(map(len, rounds))} exact rewrites")
    return Groundwork(facts.model, tuple(rounds), tuple(refusals.values()), timings, tuple(proofs))


def replay_groundwork(
    facts: Facts,
    rounds: Rounds,
    owners: Sequence[Pass[Any]],
    config: Config,
    feeds: Feeds,
) -> Groundwork:
    """Carry out the exact rewrites of a plan.

    Raises:
        UsageError: the plan does not fit this model: a node is missing, excluded, or what was exact
            on the plan's own weights is not on these.
    """
    passes = {owner.name: owner for owner in owners}
    proofs: list[Proof] = []
    for one in rounds:
        names = [name for candidate in one for name in candidate.touches]
        missing = [name for name in names if name not in facts.view.nodes]
        excluded = [name for name in names if name in facts.excluded]
        if missing or excluded:
            why = "which this model does not have" if missing else "which --exclude keeps"
            raise UsageError(f"the plan rewrites node '{(missing or excluded)[0]}', {why}")
        done = _proved(facts, one, passes, feeds, config, _memo(facts, passes))
        if done.rolled_back:
            wrong = done.rolled_back[0]
            raise UsageError(
                f"the plan rewrites node '{wrong.node}' exactly, which does not hold for these "
                f"weights ({wrong.reason}): plan afresh"
            )
        proofs += done.proofs
        facts = analyse(done.model, facts.sizes, excluded=facts.excluded)
    return Groundwork(facts.model, tuple(rounds), proofs=tuple(proofs))


def _memo(facts: Facts, passes: Mapping[str, Pass[Any]]) -> Memo:
    memo = Memo()
    if any(Need.COUPLING in owner.needs for owner in passes.values()):
        with contextlib.suppress(ModelError):
            remember_coupling(facts, memo)
    return memo


def _proved(
    facts: Facts,
    chosen: Sequence[Candidate[Any]],
    passes: Mapping[str, Pass[Any]],
    feeds: Feeds,
    config: Config,
    memo: Memo,
) -> Rewritten:
    """Carried out and compared with what it was before, on real inputs where there are some."""
    if not chosen:
        return Rewritten(facts.model, (), (), ())
    bench = Bench(facts.model, feeds, config.execution.threads, memo)
    return prove(rewrite(facts.model, chosen, passes, memo=memo), passes, bench)


def _widths(
    options: Options,
    facts: Facts,
    passes: Mapping[str, Pass[Any]],
    table: LatencyTable,
    memo: Memo,
) -> list[Candidate[Any]]:
    """One candidate per site: of several widths, the one whose layers are the quickest."""
    found = []
    for offers in options.sites:
        best = offers[-1]
        if len(offers) > 1:
            gated = gate(Options((offers,), ()), facts, passes, table, memo=memo)
            saved = {key: timing.saved_ms for key, timing in gated.timings.items()}
            best = max(offers, key=lambda c: saved.get(candidate_key(c), -np.inf))
        found.append(best)
    return found


def _timed(
    facts: Facts,
    candidates: Sequence[Candidate[Any]],
    passes: Mapping[str, Pass[Any]],
    config: Config,
    memo: Memo,
    progress: Progress,
) -> list[tuple[list[float], list[float]]]:
    """For every candidate the times of the whole network without and with it, side by side.

    Many candidates are timed kind by kind.
    """
    if not candidates:
        return []
    sets = [[candidate] for candidate in candidates]
    if len(sets) > _SINGLY:
        kinds: dict[str, list[Candidate[Any]]] = {}
        for candidate in candidates:
            words = passes[candidate.site.pass_name].describe(candidate.setting)
            kinds.setdefault(words, []).append(candidate)
        sets = list(kinds.values())
    # What cannot be carried out is rolled back, and then no faster.
    models = [rewrite(facts.model, one, passes, memo=memo).model for one in sets]
    feeds = random_feeds(facts.model, facts.sizes, seed=config.seed)
    before, *after = interleaved(
        [facts.model, *models], feeds, config.execution, budget=_WHOLE, progress=progress.step
    )
    times = [timing.round_medians.tolist() for timing in (before, *after)]
    own = {id(c): ms for one, ms in zip(sets, times[1:], strict=True) for c in one}
    return [(times[0], own[id(candidate)]) for candidate in candidates]


def _cheaper(options: Options) -> list[Candidate[Any]]:
    """At every site the last candidate that costs less in some respect and more in none."""
    found = []
    for offers in options.sites:
        savings = [(c, (c.saving.macs, c.saving.params, c.saving.weight_bytes)) for c in offers]
        able = [c for c, saved in savings if min(saved) >= 0 and max(saved) > 0]
        found += able[-1:]
    return found


def _apart(candidates: Sequence[Candidate[Any]]) -> list[Candidate[Any]]:
    """Candidates of which no two touch the same node; the others wait for the next round."""
    taken: set[str] = set()
    found = []
    for candidate in candidates:
        if not taken & set(candidate.touches):
            taken |= set(candidate.touches)
            found.append(candidate)
    return found
