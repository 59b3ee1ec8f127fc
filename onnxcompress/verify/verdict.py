"""The verdict: every number about a rewritten model, and whether it may be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx

from onnxcompress.analyse.sizes import random_feeds
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.graph.cost import Cost, model_cost
from onnxcompress.graph.infer import shapes_at
from onnxcompress.latency.interleave import Budget
from onnxcompress.load.checks import check_structure, check_values
from onnxcompress.runtime import Execution, open_session
from onnxcompress.verify.compare import compare
from onnxcompress.verify.fidelity import FidelityAccumulator, OutputFidelity
from onnxcompress.verify.interface import interface_differences
from onnxcompress.verify.intervals import Estimate
from onnxcompress.verify.memory import peak_memory_bytes
from onnxcompress.verify.metrics import Drop, Metric, MetricResult
from onnxcompress.verify.speed import Race, race


@dataclass(frozen=True)
class Bounds:
    """What the result must satisfy.

    Attributes:
        max_drop: points of the metric that may be lost.
        min_snr: signal-to-noise ratio in dB for networks without a class decision.
        confidence: judge the bad end of the interval at this level instead of the estimate.
        targets: fraction of the original that may remain, per kind.
        gate: whether a model that is measurably slower is refused.
    """

    max_drop: float
    min_snr: float
    confidence: float | None
    targets: Mapping[str, float]
    gate: bool


@dataclass(frozen=True)
class Measures:
    """What was measured and counted of one model."""

    cost: Cost
    file_bytes: int
    peak_memory_bytes: int | None
    latency_ms: Mapping[str, Any]
    metric: MetricResult | None

    def to_dict(self) -> dict[str, Any]:
        """The report's block M."""
        return {
            "params": self.cost.params,
            "macs": self.cost.macs,
            "file_bytes": self.file_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "latency_ms": dict(self.latency_ms),
            "metric": self.metric.to_dict() if self.metric else None,
        }


@dataclass(frozen=True)
class Verdict:
    """All the evidence about one result.

    Attributes:
        before: the original.
        after: the result.
        ratio: latency after over before, with interval.
        drop: what the metric lost; None without data, or where there are no points to lose.
        fidelity: numeric distance of every output; on random inputs when there is no data.
        on_data: whether fidelity and metric come from the user's data.
        failures: why it may not be written, one sentence each; empty when it may.
        accuracy: the judgement on accuracy in words.
        slower: whether the result is measurably slower than the original.
    """

    before: Measures
    after: Measures
    ratio: Estimate
    drop: Drop | None
    fidelity: tuple[OutputFidelity, ...]
    on_data: bool
    failures: tuple[str, ...]
    accuracy: str
    accuracy_ok: bool
    slower: bool

    @property
    def ok(self) -> bool:
        """Whether every bound holds."""
        return not self.failures

    def remaining(self, kind: str) -> float:
        """The fraction of the original that remains, by target kind."""
        match kind:
            case "latency":
                return self.ratio.value
            case "macs":
                return self.after.cost.macs / max(1, self.before.cost.macs)
            case "params":
                return self.after.cost.params / max(1, self.before.cost.params)
            case _:
                return self.after.file_bytes / max(1, self.before.file_bytes)


def verify(
    original: onnx.ModelProto,
    result: onnx.ModelProto,
    bounds: Bounds,
    execution: Execution,
    sizes: Mapping[str, tuple[int, ...]],
    *,
    data: Dataset | None,
    metric: Metric | None,
    file_bytes: int,
    seed: int,
    budget: Budget | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Measure and judge a rewritten model against the original as it was given.

    Args:
        original: the model as loaded, before canonicalisation.
        result: the rewritten model.
        bounds: what must hold.
        execution: provider and threads.
        sizes: representative input sizes for latency and cost.
        data: inputs for the verdict; None leaves accuracy unverified.
        metric: needed with data.
        file_bytes: size of the original's file.
        seed: for bootstrap intervals and random inputs.
        budget: how long to time.
        progress: called with samples done.

    Raises:
        ModelError: the result is invalid or does not run.
        DataError: the data does not fit.
    """
    failures = list(interface_differences(original, result))
    check_structure(result)
    check_values(result)
    feeds = random_feeds(original, sizes, seed=seed)
    before_metric = after_metric = drop = None
    accuracy, accuracy_ok = "accuracy was not verified: no data was given", True
    if data is not None and metric is not None:
        comparison = compare(
            original, result, data, metric, execution, seed=seed, progress=progress
        )
        judgement = comparison.passes(
            bounds.max_drop, min_snr=bounds.min_snr, confidence=bounds.confidence
        )
        accuracy, accuracy_ok = judgement.reason, judgement.ok
        fidelity, drop = comparison.fidelity, comparison.drop
        before_metric, after_metric = comparison.before, comparison.after
    else:
        fidelity = _random_fidelity(original, result, feeds, execution)
        broken = [f.name for f in fidelity if not f.is_finite]
        if broken:
            accuracy, accuracy_ok = f"output '{broken[0]}' is not finite any more", False
    if not accuracy_ok:
        failures.append(accuracy)
    timed = race([original, result], feeds, execution, seed=seed, budget=budget)
    result_bytes = result.ByteSize()
    before = _measures(original, sizes, file_bytes, timed, 0, before_metric, execution)
    after = _measures(result, sizes, result_bytes, timed, 1, after_metric, execution)
    ratio = timed.ratios[1]
    verdict = Verdict(
        before=before,
        after=after,
        ratio=ratio,
        drop=drop,
        fidelity=fidelity,
        on_data=data is not None,
        failures=tuple(failures),
        accuracy=accuracy,
        accuracy_ok=accuracy_ok,
        slower=ratio.interval.low > 1.0,
    )
    return replace(verdict, failures=(*failures, *_missed(verdict, bounds)))


def _missed(verdict: Verdict, bounds: Bounds) -> list[str]:
    """Targets that were missed, and a latency that grew against the gate's word."""
    missed = []
    for kind, fraction in bounds.targets.items():
        remains = verdict.remaining(kind)
        if remains > fraction:
            missed.append(
                f"{kind} is at {remains:.4f} of the original, above the {fraction:g} asked"
            )
    if bounds.gate and verdict.slower:
        interval = verdict.ratio.interval
        missed.append(
            f"it is slower than the original: latency ratio {verdict.ratio.value:.3f} "
            f"[{interval.low:.3f}, {interval.high:.3f}]"
        )
    return missed


def _measures(
    model: onnx.ModelProto,
    sizes: Mapping[str, tuple[int, ...]],
    file_bytes: int,
    timed: Race,
    index: int,
    metric: MetricResult | None,
    execution: Execution,
) -> Measures:
    return Measures(
        cost=model_cost(model, shapes_at(model, sizes)),
        file_bytes=file_bytes,
        peak_memory_bytes=peak_memory_bytes(model, sizes, execution),
        latency_ms=timed.entries[index].to_dict(),
        metric=metric,
    )


def _random_fidelity(
    original: onnx.ModelProto,
    result: onnx.ModelProto,
    feeds: Mapping[str, Any],
    execution: Execution,
) -> tuple[OutputFidelity, ...]:
    with open_session(original, execution) as session:
        names, expected = session.output_names, session.run(feeds)
    with open_session(result, execution) as session:
        found = session.run(feeds)
    accumulator = FidelityAccumulator(names)
    accumulator.add(expected, found)
    return accumulator.result()
