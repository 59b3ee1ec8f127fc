"""The verdict: every number about a rewritten model, and whether it may be written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx

from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.analyse.sizes import random_feeds
from onnxcompress.graph.cost import Cost
from onnxcompress.latency.interleave import Budget, QuietHours
from onnxcompress.load.checks import check_structure, check_values
from onnxcompress.runtime import Execution
from onnxcompress.verify.accuracy import Accuracy, Bounds
from onnxcompress.verify.interface import interface_differences
from onnxcompress.verify.intervals import Estimate
from onnxcompress.verify.memory import peak_memory_bytes
from onnxcompress.verify.results import MetricResult
from onnxcompress.verify.speed import race


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
        accuracy: what became of the outputs.
        failures: why it may not be written, one sentence each; empty when it may.
    """

    before: Measures
    after: Measures
    ratio: Estimate
    accuracy: Accuracy
    failures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every bound holds."""
        return not self.failures

    @property
    def slower(self) -> bool:
        """Whether the result is slower than the original beyond the interval."""
        return self.ratio.interval.low > 1.0

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
    facts: Facts,
    result: onnx.ModelProto,
    accuracy: Accuracy,
    bounds: Bounds,
    execution: Execution,
    *,
    file_bytes: int,
    seed: int,
    budget: Budget | None = None,
    quiet: QuietHours | None = None,
    converted: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Measure and judge a rewritten model against the original as it was given.

    Args:
        original: the model as loaded, before canonicalisation.
        facts: what is known about its canonical form; counts the cost before.
        result: the rewritten model.
        accuracy: from `judge_accuracy` on the same pair.
        bounds: what must hold.
        execution: provider and threads.
        file_bytes: size of the original's file.
        seed: for bootstrap intervals and random inputs.
        budget: how long to time.
        quiet: what is known of the original's times on a quiet machine.
        converted: whether the result's precision was changed.
        progress: called with rounds of timing done.

    Raises:
        ModelError: the result is invalid or does not run.
    """
    check_structure(result)
    check_values(result)
    sizes = facts.sizes
    feeds = random_feeds(original, sizes, seed=seed)
    timed = race(
        [original, result],
        feeds,
        execution,
        seed=seed,
        budget=budget,
        quiet=quiet,
        limit=bounds.targets.get("latency"),
        progress=progress,
    )
    memory = [peak_memory_bytes(model, sizes, execution) for model in (original, result)]
    costs = [facts.total(), analyse(result, sizes).total()]
    octets = [file_bytes, result.ByteSize()]
    metrics = [accuracy.before, accuracy.after]
    before, after = (
        Measures(costs[i], octets[i], memory[i], timed.entries[i].to_dict(), metrics[i])
        for i in range(2)
    )
    verdict = Verdict(
        before=before,
        after=after,
        ratio=timed.ratios[1],
        accuracy=accuracy,
        failures=(),
    )
    return _judged(verdict, original, result, bounds, converted=converted)


def verify_weights(
    verdict: Verdict,
    original: onnx.ModelProto,
    result: onnx.ModelProto,
    accuracy: Accuracy,
    bounds: Bounds,
    *,
    converted: bool = False,
) -> Verdict:
    """Judge the graph of a verdict anew with other weights; what they do not change is kept.

    Args:
        verdict: with the times and counts of this graph.
        original: the model as loaded, before canonicalisation.
        result: the graph with its new weights.
        accuracy: from `judge_accuracy` on this pair.
        bounds: what must hold.
        converted: whether the result's precision was changed.

    Raises:
        ModelError: the result is invalid.
    """
    check_structure(result)
    check_values(result)
    after = replace(verdict.after, file_bytes=result.ByteSize(), metric=accuracy.after)
    verdict = replace(verdict, after=after, accuracy=accuracy)
    return _judged(verdict, original, result, bounds, converted=converted)


def _judged(
    verdict: Verdict,
    original: onnx.ModelProto,
    result: onnx.ModelProto,
    bounds: Bounds,
    *,
    converted: bool,
) -> Verdict:
    """The verdict with what is wrong with the result."""
    failures = interface_differences(original, result, converted=converted)
    if not verdict.accuracy.ok:
        failures.append(verdict.accuracy.words)
    failures += _missed(verdict, bounds)
    return replace(verdict, failures=tuple(failures))


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
