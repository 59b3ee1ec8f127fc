"""Targets met by what is counted and timed on the rewritten graph.

Savings of candidates that share layers do not add up (both sides of a convolution lose channels),
and milliseconds of layers are not those of a network, so a choice is carried out, measured, and
made again with what was over- or underestimated added to the demand. And damages of unlike rewrites
compare badly (a whole branch against a few channels), so the choice is made with and without whole
branches, and a trial decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from onnxcompress.latency.table import LayerTiming
from onnxcompress.plan.gate import Key
from onnxcompress.plan.search import (
    Baseline,
    Choice,
    Chosen,
    Damages,
    Sites,
    Trial,
    for_targets,
)

Remains = Mapping[str, float]
"""By kind of target what is left of the original: milliseconds, MACs, parameters, bytes."""

_TRIES = 10
_CLOSE = {"latency": 0.02}
_COUNTED_CLOSE = 0.005
"""How far below a target a choice may end, as a fraction of the original."""

_RATES = (1.0, 0.3, 0.1)
"""Shares of its predicted damage that the removal of a branch is tried at."""

_CLEARLY = 0.9
"""What a trial says about a few samples is not more exact than this."""


def for_measured_targets(
    sites: Sites,
    targets: Mapping[str, float],
    baseline: Baseline,
    timings: Mapping[Key, LayerTiming],
    damages: Damages,
    *,
    slack: Mapping[str, float],
    margins: Mapping[str, float],
    measure: Callable[[Chosen], Remains],
) -> Choice:
    """Meet the targets with the least damage, by what remains of the rewritten network.

    Args:
        sites: candidates per site.
        targets: fraction of the original that may remain, per kind.
        baseline: what the original costs.
        timings: measured layer timings; needed for a latency target.
        damages: expected error of every candidate.
        slack: per kind, how much more to save than the sum of the candidates' savings says, to
            start with.
        margins: per kind, fraction of the original by which to end below the target.
        measure: carries a choice out and measures what remains.

    Returns:
        A choice that meets the targets, as close to them as was found; or, where none does, the one
        that came closest.
    """
    totals = {kind: baseline.total(kind) for kind in targets}
    more, seen = dict(slack), set()
    met: tuple[float, Choice] | None = None
    missed: tuple[float, Choice] | None = None
    for _ in range(_TRIES):
        choice = for_targets(sites, targets, baseline, timings, damages, slack=more)
        if not choice.chosen:
            return met[1] if met else choice
        remains = measure(choice.chosen)
        missing = {
            kind: remains[kind] / totals[kind] - fraction + margins.get(kind, 0.0)
            for kind, fraction in targets.items()
        }
        over, under = max(missing.values()), -sum(missing.values())
        if over <= 0.0:
            if met is None or under < met[0]:
                met = under, replace(choice, meets=True)
            if all(-_CLOSE.get(kind, _COUNTED_CLOSE) <= m for kind, m in missing.items()):
                break
        elif missed is None or over < missed[0]:
            missed = over, replace(choice, meets=False)
        if (choice.chosen, choice.meets) in seen and not choice.meets:
            break
        seen.add((choice.chosen, choice.meets))
        for kind, amount in missing.items():
            more[kind] = more.get(kind, 0.0) + amount * totals[kind]
    best = met or missed
    return best[1] if best is not None else choice


def with_or_without_branches(
    sites: Sites,
    damages: Damages,
    choose: Callable[[Sites, Damages], Choice],
    trial: Trial,
) -> Choice:
    """Choose among all candidates if that is clearly better than removing no nodes.

    A branch that is gone is made up for by its neighbours better than its own damage tells, so its
    damage is also tried at a part of what was predicted.
    """
    kept = [at for at, offers in enumerate(sites) if not any(c.removes for c in offers)]
    if len(kept) == len(sites):
        return choose(sites, damages)
    fewer = choose([sites[at] for at in kept], [damages[at] for at in kept])
    bold: list[Choice] = []
    for rate in _RATES:
        weighed = [
            [rate * error for error in errors] if any(c.removes for c in offers) else errors
            for offers, errors in zip(sites, damages, strict=True)
        ]
        choice = choose(sites, weighed)
        if any(c.removes for c in choice.chosen) and choice.chosen not in [b.chosen for b in bold]:
            bold.append(choice)
    if not bold:
        return fewer
    able = [choice for choice in bold if choice.meets] or bold
    if not fewer.chosen or (able[0].meets and not fewer.meets):
        return able[0] if len(able) == 1 else min(able, key=lambda c: trial(c.chosen).error)
    errors = [trial(choice.chosen).error for choice in able]
    best = min(range(len(able)), key=errors.__getitem__)
    return able[best] if errors[best] < _CLEARLY * trial(fewer.chosen).error else fewer
