"""Targets met by what is counted and timed on the rewritten graph.

Savings of candidates that share layers do not add up (both sides of a convolution lose channels),
and milliseconds of layers are not those of a network, so a choice is carried out, measured, and
made again with what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from onnxcompress.latency.table import LayerTiming
from onnxcompress.plan.correction import Correction
from onnxcompress.plan.gate import Key
from onnxcompress.plan.search import (
    Baseline,
    Choice,
    Chosen,
    Damages,
    Prediction,
    Sites,
    for_targets,
    savings,
)

Remains = Mapping[str, float]
"""By kind of target what is left of the original: milliseconds, MACs, parameters, bytes."""

_TRIES = 10
_CLOSE = {"latency": 0.03}
_COUNTED_CLOSE = 0.005
"""How far below a target a choice may end, as a fraction of the original."""

_SLACK = {"latency": 0.01}
"""How far above: what is measured again differs by more than that."""

_NUDGE = 0.005
"""How much more of the original is asked for when a choice that saves too little comes again."""


def for_measured_targets(
    sites: Sites,
    targets: Mapping[str, float],
    baseline: Baseline,
    timings: Mapping[Key, LayerTiming],
    damages: Damages,
    *,
    known: Mapping[str, Correction],
    margins: Mapping[str, float],
    measure: Callable[[Chosen], Remains],
    given: Chosen = (),
    together: bool = False,
) -> Choice:
    """Meet the targets with the least damage, by what remains of the rewritten network.

    Args:
        sites: candidates per site.
        targets: fraction of the original that may remain, per kind.
        baseline: what the original costs.
        timings: measured layer timings; needed for a latency target.
        damages: expected error of every candidate.
        known: per kind, what the network saves by what its candidates save in sum; learns.
        margins: per kind, fraction of the original by which to end below the target.
        measure: carries a choice out and measures what remains.
        given: what is taken in any case; not among `sites`.
        together: whether widths and ranks may meet in one layer.

    Returns:
        Of the choices that were found to meet the targets the one of least damage; or, where none
        does, the one that came closest.
    """
    totals = {kind: baseline.total(kind) for kind in targets}
    own = {kind: sum(savings([given], kind, timings)[0]) if given else 0.0 for kind in targets}
    damage = {
        candidate: error
        for offers, errors in zip(sites, damages, strict=True)
        for candidate, error in zip(offers, errors, strict=True)
    }
    nudge = 0.0
    met: tuple[tuple[bool, float], Choice] | None = None
    missed: tuple[float, Choice] | None = None
    predictions: dict[Chosen, Prediction] = {}
    for _ in range(_TRIES):
        needs = {k: totals[k] * (1.0 - targets[k] + margins.get(k, 0.0)) for k in targets}
        demands = {k: known[k].sum_for(needs[k]) - own[k] + nudge * totals[k] for k in targets}
        choice = for_targets(
            sites, targets, baseline, timings, damages, demands=demands, together=together
        )
        choice = replace(choice, chosen=(*given, *choice.chosen))
        if not choice.chosen:
            break
        remains = measure(choice.chosen)
        shares = {kind: remains[kind] / totals[kind] for kind in targets}
        missing = {k: shares[k] - targets[k] + margins.get(k, 0.0) for k in targets}
        tightest = max(missing, key=lambda kind: missing[kind])
        over = missing[tightest]
        sums = {kind: sum(savings([choice.chosen], kind, timings)[0]) for kind in targets}
        seen = choice.chosen in predictions
        if not seen:
            expected = {k: 1.0 - known[k].saved(sums[k]) / totals[k] for k in targets}
            predictions[choice.chosen] = Prediction(expected, shares, len(predictions))
        for kind in targets:
            known[kind].add(sums[kind], totals[kind] - remains[kind])
        if over <= _SLACK.get(tightest, 0.0):
            # What lies a little above is as good as what lies below, but not better. Of what meets
            # the targets the least damage counts: a step of latency may lie far below.
            rank = over > 0.0, sum(damage.get(candidate, 0.0) for candidate in choice.chosen)
            if met is None or rank < met[0]:
                met = rank, _told(choice, shares, meets=True)
            if seen or over >= -_CLOSE.get(tightest, _COUNTED_CLOSE):
                break
        else:
            if missed is None or over < missed[0]:
                missed = over, _told(choice, shares, meets=False)
            if seen and not choice.meets:
                break
            # What saves too little and comes again is too little: a little more is asked for.
            nudge += _NUDGE if seen else 0.0
    best = met or missed
    found = best[1] if best is not None and (met or choice.chosen) else choice
    return replace(found, predictions=tuple(predictions.values()))


def _told(choice: Choice, shares: Remains, *, meets: bool) -> Choice:
    """The choice with what was measured of it."""
    words = ", ".join(f"{kind} {share:.3f}" for kind, share in shares.items())
    return replace(choice, notes=(*choice.notes, f"measured before repair: {words}"), meets=meets)
