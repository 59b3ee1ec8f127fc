"""load -> analyse -> calibrate -> plan -> rewrite -> verify -> report, in one function."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import onnx

from onnxcompress.analyse.sizes import random_feeds
from onnxcompress.attempt import Attempt, better
from onnxcompress.config import Config
from onnxcompress.errors import BoundError
from onnxcompress.graph.digest import model_digest
from onnxcompress.load.source import ModelSource
from onnxcompress.numerics.blas_threads import one_blas_pool
from onnxcompress.plan.plan import Plan
from onnxcompress.plan.reasons import demand_gain
from onnxcompress.planning import Planner
from onnxcompress.preparation import Prepared, prepare, proof_feeds, verdict_metric
from onnxcompress.progress import Progress, Silent, Timekeeper
from onnxcompress.report.build import build_report
from onnxcompress.retraining import Retraining
from onnxcompress.rewrite.manager import Rewritten, rewrite
from onnxcompress.rewrite.proof import Bench, prove
from onnxcompress.verify.accuracy import (
    Accuracy,
    Bounds,
    judge_accuracy,
    unverified_accuracy,
)
from onnxcompress.verify.metrics import Metric
from onnxcompress.verify.verdict import Verdict, verify, verify_weights

_MAX_ATTEMPTS = 6

_QUICKER = 0.98
"""Of the original's time, at most: what a canonical form has to take to be a result by itself."""


@dataclass(frozen=True)
class Result:
    """What a job yields.

    Attributes:
        model: the rewritten model.
        plan: what was done and what was refused.
        report: the report as plain values.
        verdict: the evidence.
    """

    model: onnx.ModelProto
    plan: Plan
    report: dict[str, Any]
    verdict: Verdict


@one_blas_pool()
def run(
    source: ModelSource,
    config: Config,
    progress: Progress | None = None,
    *,
    start: onnx.ModelProto | None = None,
    final: bool = True,
) -> Result:
    """The main job, in one stage.

    Args:
        source: the model, which the result is compared with.
        config: what was asked.
        progress: told what happens.
        start: what rewriting begins with, where an earlier stage has rewritten the model already.
        final: whether bounds are final: the best attempt is a result, else, whatever it misses.

    Raises:
        BoundError: no result meets the bounds, or nothing could be gained; the attribute
            `report` holds the report of the best attempt, if there was one.
        OnnxCompressError: whatever else is wrong, with its exit code.
    """
    clock = Timekeeper(progress or Silent())
    progress = clock
    prepared = prepare(source, config, progress, start=start)
    retraining = Retraining(prepared, config.finetune, progress) if config.finetune else None
    planner = Planner(prepared, progress)
    metric = verdict_metric(prepared)
    bounds = planner.bounds
    if retraining is not None and bounds.targets:
        # What is lost counts when training has had its turn.
        bounds = replace(bounds, max_drop=math.inf, min_snr=-math.inf, confidence=None)
    kept: Attempt | None = None
    loosened = False
    for number in range(1, _MAX_ATTEMPTS + 1):
        last = number == _MAX_ATTEMPTS
        made = _attempt(number, prepared, planner, bounds, metric, progress, last=last)
        if made is None:
            continue
        verdict = made.verdict
        kept = made if kept is None else better(kept, made, planner)
        if verdict.ok and not (last or loosened) and planner.loosen_targets(verdict):
            loosened = True
            progress.note(f"attempt {number}: far below what was asked, planned again")
        elif verdict.ok or last or not planner.tighten_targets(verdict):
            break
        else:
            progress.note(f"attempt {number}: {verdict.failures[0]}")
    if kept is None:
        raise BoundError("no attempt came to a verdict")
    # What misses a target is not worth the time: other weights do not change that.
    if retraining is not None and set(kept.verdict.failures) <= {kept.verdict.accuracy.words}:
        kept = _retrained(kept, retraining, prepared, planner, metric, progress)
    plan, verdict = kept.plan, kept.verdict
    report = build_report(
        source=prepared.source,
        digest=model_digest(prepared.reference.model),
        notes=prepared.canonical.notes,
        facts=prepared.facts,
        inputs=prepared.inputs,
        plan=plan,
        timings={**prepared.groundwork.timings, **planner.timings},
        verdict=verdict,
        execution=config.execution,
        seed=config.seed,
        consulted=number + (kept.trained is not None),
        proofs=(*prepared.groundwork.proofs, *kept.rewritten.proofs),
        result=kept.compressed,
        repaired=kept.repaired,
        repair=planner.mender,
        trained=kept.trained.to_dict() if kept.trained is not None else None,
        conversion=planner.conversion,
        unconverted=kept.unconverted,
        seconds=clock.seconds(),
        lossless_ratio=planner.lossless_ratio,
    )
    if verdict.ok or not final:
        return Result(kept.model, plan, report, verdict)
    raise bound_error(verdict, report)


def _attempt(
    number: int,
    prepared: Prepared,
    planner: Planner,
    bounds: Bounds,
    metric: Metric | None,
    progress: Progress,
    *,
    last: bool,
) -> Attempt | None:
    """Plan, rewrite, prove, repair, judge; None where a gentler plan is to be made at once."""
    config = prepared.config
    progress.stage("plan")
    plan = planner.plan()
    # The canonical form alone may be a gain, which is measured below.
    perhaps = prepared.begun or (prepared.changed and prepared.config.gated)
    if not perhaps:
        demand_gain(plan)
    progress.stage("rewrite")
    rewritten = prove(
        rewrite(prepared.facts.model, plan.chosen, planner.passes, memo=planner.memo),
        planner.passes,
        Bench(
            prepared.facts.model,
            proof_feeds(prepared.facts, prepared.inputs, config),
            config.execution.threads,
            planner.memo,
        ),
    )
    plan = with_rolled_back(plan, rewritten)
    if not perhaps:
        demand_gain(plan)
    only_stored = bool(plan.chosen) and all(candidate.stored for candidate in plan.chosen)
    if only_stored and not plan.first and not bounds.targets:
        # A file that holds programs already may grow when all of them are found anew.
        bounds = replace(bounds, targets={"size": 1.0})
    for refusal in rewritten.rolled_back:
        progress.note(f"node '{refusal.node}': {refusal.reason}")
    progress.stage("repair")
    repaired = planner.repaired(rewritten)
    compressed = repaired.model if repaired is not None else rewritten.model
    result, unconverted = compressed, None
    if planner.conversion is not None:
        progress.stage(f"convert to {planner.conversion.precision}")
        result = planner.conversion(compressed)
    progress.stage("verify accuracy")
    accuracy = _accuracy(prepared, result, bounds, metric, progress)
    if planner.conversion is not None:
        unconverted = _accuracy(prepared, compressed, bounds, metric, progress)
    if not accuracy.ok and not last and planner.tighten_accuracy():
        progress.note(f"attempt {number}: {accuracy.words}")
        return None
    progress.stage("verify latency")
    verdict = verify(
        prepared.source.model,
        prepared.reference,
        result,
        accuracy,
        bounds,
        config.execution,
        file_bytes=prepared.source.file_bytes,
        seed=config.seed,
        quiet=planner.hours(number),
        converted=planner.conversion is not None,
        progress=progress.step,
    )
    if not prepared.begun and not bounds.targets and verdict.ratio.interval.high > _QUICKER:
        demand_gain(plan)
    return Attempt(plan, rewritten, repaired, result, verdict, unconverted)


def _retrained(
    made: Attempt,
    retraining: Retraining,
    prepared: Prepared,
    planner: Planner,
    metric: Metric | None,
    progress: Progress,
) -> Attempt:
    """The same graph with trained weights, judged by what was asked; its latency is known."""
    trained = retraining(made.compressed)
    result, unconverted = trained.model, None
    if planner.conversion is not None:
        progress.stage(f"convert to {planner.conversion.precision}")
        unconverted = _accuracy(prepared, result, planner.bounds, metric, progress)
        result = planner.conversion(result)
    progress.stage("verify accuracy")
    accuracy = _accuracy(prepared, result, planner.bounds, metric, progress)
    verdict = verify_weights(
        made.verdict,
        prepared.source.model,
        result,
        accuracy,
        planner.bounds,
        converted=planner.conversion is not None,
    )
    return replace(made, model=result, verdict=verdict, unconverted=unconverted, trained=trained)


def _accuracy(
    prepared: Prepared,
    model: onnx.ModelProto,
    bounds: Bounds,
    metric: Metric | None,
    progress: Progress,
) -> Accuracy:
    """The judgement on the verdict's data, or what can be said without any."""
    original, config = prepared.source.model, prepared.config
    if prepared.inputs.verdict is None or metric is None:
        feeds = random_feeds(original, prepared.facts.sizes, seed=config.seed)
        return unverified_accuracy(original, model, feeds, config.execution)
    return judge_accuracy(
        original,
        model,
        bounds,
        config.execution,
        data=prepared.inputs.verdict,
        metric=metric,
        seed=config.seed,
        progress=progress.step,
    )


@one_blas_pool()
def plan_only(
    source: ModelSource, config: Config, progress: Progress | None = None
) -> tuple[Plan, Prepared]:
    """The first four stages; nothing is rewritten for good."""
    progress = progress or Silent()
    prepared = prepare(source, config, progress)
    planner = Planner(prepared, progress)
    progress.stage("plan")
    plan = planner.plan()
    demand_gain(plan)
    return plan, prepared


def with_rolled_back(plan: Plan, rewritten: Rewritten) -> Plan:
    """The plan as it was really carried out."""
    if not rewritten.rolled_back:
        return plan
    return replace(
        plan, chosen=rewritten.applied, refusals=(*plan.refusals, *rewritten.rolled_back)
    )


def bound_error(verdict: Verdict, report: dict[str, Any]) -> BoundError:
    """The error that describes the best attempt in one line."""
    parts = [f"{k} {verdict.remaining(k):.3f}" for k in ("latency", "macs", "params", "size")]
    return BoundError(
        f"bounds not met: {'; '.join(verdict.failures)} (best attempt: {', '.join(parts)} of the "
        f"original; {verdict.accuracy.words})",
        report,
    )
