"""Targets met by what is counted and timed on the rewritten graph.

Savings of candidates that share layers do not add up (both sides of a convolution lose channels),
and milliseconds of layers are not those of a network, so a choice is carried out, measured, and
made again with what was over- or underestimated added to the demand. And damages of unlike rewrites
compare badly (a whole branch against a few channels), so the choice is made with more and with
fewer branches removed, and a trial decides.
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
    Trial,
    for_targets,
    savings,
)

Remains = Mapping[str, float]
"""By kind of target what is left of the original: milliseconds, MACs, parameters, bytes."""

_TRIES = 10
_CLOSE = {"latency": 0.02}
_COUNTED_CLOSE = 0.005
"""How far below a target a choice may end, as a fraction of the original."""

_CLOSE_CALL = 1.6
_FINALISTS = 3
"""Errors after brief repair that are this close, and how many of them are repaired thoroughly."""

_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
"""Parts of a path that are tried first."""


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

    Returns:
        A choice that meets the targets, as close to them as was found; or, where none does, the one
        that came closest.
    """
    totals = {kind: baseline.total(kind) for kind in targets}
    own = {kind: sum(savings([given], kind, timings)[0]) if given else 0.0 for kind in targets}
    nudge = 0.0
    met: tuple[float, Choice] | None = None
    missed: tuple[float, Choice] | None = None
    predictions: dict[Chosen, Prediction] = {}
    for _ in range(_TRIES):
        needs = {k: totals[k] * (1.0 - targets[k] + margins.get(k, 0.0)) for k in targets}
        demands = {k: known[k].sum_for(needs[k]) - own[k] + nudge * totals[k] for k in targets}
        choice = for_targets(sites, targets, baseline, timings, damages, demands=demands)
        choice = replace(choice, chosen=(*given, *choice.chosen))
        if not choice.chosen:
            break
        remains = measure(choice.chosen)
        shares = {kind: remains[kind] / totals[kind] for kind in targets}
        missing = {k: shares[k] - targets[k] + margins.get(k, 0.0) for k in targets}
        tightest = max(missing, key=lambda kind: missing[kind])
        over, under = missing[tightest], -sum(missing.values())
        sums = {kind: sum(savings([choice.chosen], kind, timings)[0]) for kind in targets}
        seen = choice.chosen in predictions
        if not seen:
            expected = {k: 1.0 - known[k].saved(sums[k]) / totals[k] for k in targets}
            predictions[choice.chosen] = Prediction(expected, shares, len(predictions))
        for kind in targets:
            known[kind].add(sums[kind], totals[kind] - remains[kind])
        if over <= 0.0:
            if met is None or under < met[0]:
                met = under, _told(choice, shares, meets=True)
            if seen or over >= -_CLOSE.get(tightest, _COUNTED_CLOSE):
                break
        else:
            if missed is None or over < missed[0]:
                missed = over, _told(choice, shares, meets=False)
            if seen and (met or not choice.meets):
                break
            # What saves too little and comes again is too little: more is asked for.
            nudge += over if seen else 0.0
    best = met or missed
    found = best[1] if best is not None and (met or choice.chosen) else choice
    return replace(found, predictions=tuple(predictions.values()))


def _told(choice: Choice, shares: Remains, *, meets: bool) -> Choice:
    """The choice with what was measured of it."""
    words = ", ".join(f"{kind} {share:.3f}" for kind, share in shares.items())
    return replace(choice, notes=(*choice.notes, f"measured before repair: {words}"), meets=meets)


def along_path(
    path: Chosen,
    choose: Callable[[Chosen], Choice],
    trial: Trial,
    judge: Callable[[Chosen], float],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Choice:
    """The best of choices that begin with more or fewer of some candidates.

    Args:
        path: candidates in the order in which they are taken.
        choose: the best choice that has some of them, and others.
        trial: carries a choice out, repairs it briefly, and measures the outputs.
        judge: the outputs' error after a repair as thorough as the result's; among those that are
            close it decides, because a brief repair makes up for less of what branches leave.
        progress: told how many lengths were tried, of how many at most.
    """
    tried: dict[int, tuple[bool, float, Choice]] = {}

    def attempt(length: int) -> tuple[bool, float]:
        if length not in tried:
            choice = choose(path[:length])
            error = trial(choice.chosen).error if choice.chosen else 0.0
            tried[length] = not choice.meets, error, choice
            if progress is not None:
                progress(len(tried), most)
        return tried[length][:2]

    grid = sorted({round(len(path) * share) for share in _SHARES}, reverse=True)
    most = len(grid) + 2
    best = min(grid, key=attempt)
    # The error falls and rises again along the path: its least lies beside the best of the grid.
    beside = [at for at in grid if at != best]
    for nearest in (
        max((at for at in beside if at < best), default=best),
        min((at for at in beside if at > best), default=best),
    ):
        if abs(nearest - best) > 1:
            attempt((nearest + best) // 2)
    ranked = sorted(tried.values(), key=lambda one: one[:2])
    close = [one for one in ranked if not one[0] and one[1] <= _CLOSE_CALL * ranked[0][1]]
    found = ranked[0][2]
    if len(close) > 1:
        found = min((one[2] for one in close[:_FINALISTS]), key=lambda one: judge(one.chosen))
    seen = tuple(p for _, one in sorted(tried.items()) for p in one[2].predictions)
    errors = ", ".join(f"{length}: {one[1]:.3g}" for length, one in sorted(tried.items()))
    note = f"error by number of branches removed: {errors}"
    return replace(found, notes=(*found.notes, note), predictions=seen)
