"""Exact rewrites first: what changes no output is done before anything lossy is weighed.

Passes that go first are asked in rounds, because one rewrite makes room for another. Each one is
timed against the nodes it replaces, and each round against the whole network, where neighbours may
be laid out differently; what is not faster is left. Where no time is measured, what costs less and
nothing more is taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnxcompress.analyse.facts import Facts, Need, analyse
from onnxcompress.analyse.sizes import random_feeds
from onnxcompress.config import Config
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.graph.memo import Memo
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
_WHOLE = Budget(rounds=6, seconds=0.1)


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
    progress: Progress,
) -> Groundwork:
    """Carry out the passes that go first.

    Args:
        facts: about the canonical model.
        owners: all passes of the job.
        config: says whether rewrites are timed, and where layer timings are kept.
        feeds: inputs to prove rewrites on.
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
            gated = gate(options, facts, firsts, table, memo=memo, progress=progress.step)
            chosen = _apart(_quickest(gated.options, gated.timings))
            timings |= gated.timings
            left = gated.options.refusals[len(options.refusals) :]
            refusals |= {refusal.node: refusal for refusal in left}
        else:
            chosen = _apart(_cheaper(options))
        done = _proved(facts, chosen, firsts, feeds, config, memo)
        refusals |= {refusal.node: refusal for refusal in done.rolled_back}
        if not done.applied:
            break
        ratio = _ratio(facts, done.model, config) if table is not None else 0.0
        if ratio >= 1.0:
            reason = (
                f"no faster in the whole network: {ratio:.3f} times as long with these rewrites"
            )
            refusals |= {
                c.site.node: Refusal(c.site.pass_name, c.site.node, reason) for c in chosen
            }
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


def _quickest(options: Options, timings: Mapping[Key, LayerTiming]) -> list[Candidate[Any]]:
    return [
        max(offers, key=lambda candidate: timings[candidate_key(candidate)].saved_ms)
        for offers in options.sites
    ]


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


def _ratio(facts: Facts, model: onnx.ModelProto, config: Config) -> float:
    """Time of the rewritten network over that of the one before, side by side."""
    feeds = random_feeds(facts.model, facts.sizes, seed=config.seed)
    before, after = interleaved([facts.model, model], feeds, config.execution, budget=_WHOLE)
    return float(np.median(after.round_medians / before.round_medians))
