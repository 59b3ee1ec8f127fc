"""Targets that are counted, met by what is counted on the rewritten graph.

Savings of candidates that share layers do not add up (both sides of a convolution lose channels),
so a choice is carried out, counted, and made again with what was over- or underestimated added to
the demand. And damages of unlike rewrites compare badly (a whole branch against a few channels),
so the choice is made with and without whole branches, and a trial decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from onnxcompress.graph.cost import Cost
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

COUNTED = frozenset({"macs", "params"})
_COUNTS = 10
_CLOSE = 0.005
"""How far below a counted target a choice may end, as a fraction of the original."""

_RATES = (1.0, 0.3, 0.1)
"""Shares of its predicted damage that the removal of a branch is tried at."""

_CLEARLY = 0.9
"""What a trial says about a few samples is not more exact than this."""


def for_counted_targets(
    sites: Sites,
    targets: Mapping[str, float],
    baseline: Baseline,
    timings: Mapping[Key, LayerTiming],
    damages: Damages,
    *,
    slack: Mapping[str, float],
    count: Callable[[Chosen], Cost],
) -> Choice:
    """Meet the targets with the least damage; MACs and parameters are counted, not added up.

    Args:
        sites: candidates per site.
        targets: fraction of the original that may remain, per kind.
        baseline: what the original costs.
        timings: measured layer timings; needed for a latency target.
        damages: expected error of every candidate.
        slack: per kind, how much more to save than counted, because a first try fell short.
        count: carries out a choice and counts what it costs.

    Returns:
        A choice that meets the targets, as close to the counted ones as was found; or, where none
        does, the one that saves the most.
    """
    counted = {kind: fraction for kind, fraction in targets.items() if kind in COUNTED}
    more, best, least = dict(slack), None, float("inf")
    for _ in range(_COUNTS):
        choice = for_targets(sites, targets, baseline, timings, damages, slack=more)
        if not counted or not choice.chosen:
            break
        cost = count(choice.chosen)
        missing = {
            kind: getattr(cost, kind) - fraction * getattr(baseline.cost, kind)
            for kind, fraction in counted.items()
        }
        excess = sum(-m / max(1, getattr(baseline.cost, k)) for k, m in missing.items())
        if all(amount <= 0.0 for amount in missing.values()) and excess < least:
            best, least = replace(choice, meets=True), excess
        if all(-_CLOSE * getattr(baseline.cost, k) <= m <= 0.0 for k, m in missing.items()):
            break
        for kind, amount in missing.items():
            more[kind] = more.get(kind, 0.0) + amount
    return best or (replace(choice, meets=False) if counted else choice)


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
