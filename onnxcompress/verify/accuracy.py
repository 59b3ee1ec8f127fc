"""What a rewrite does to the outputs: the metric, the drop, and numeric fidelity, judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.runtime import Array, Execution, open_session
from onnxcompress.verify.compare import compare
from onnxcompress.verify.fidelity import FidelityAccumulator, OutputFidelity
from onnxcompress.verify.metrics import Metric
from onnxcompress.verify.results import Drop, MetricResult


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
class Accuracy:
    """The judgement on the outputs.

    Attributes:
        ok: whether the bound holds (true as well where nothing could be verified).
        words: the judgement in one sentence.
        verified: whether it rests on the user's data.
        before: the original's metric; None without data.
        after: the result's metric; None without data.
        drop: what was lost; None without data, or where there are no points to lose.
        fidelity: numeric distance of every output; on random inputs without data.
    """

    ok: bool
    words: str
    verified: bool
    before: MetricResult | None
    after: MetricResult | None
    drop: Drop | None
    fidelity: tuple[OutputFidelity, ...]


def judge_accuracy(
    original: onnx.ModelProto,
    result: onnx.ModelProto,
    bounds: Bounds,
    execution: Execution,
    *,
    data: Dataset,
    metric: Metric,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Compare both networks on `data`.

    Raises:
        DataError: the data does not fit, or labels are missing.
        ModelError: a network fails while running, or their outputs differ in shape or type.
    """
    comparison = compare(original, result, data, metric, execution, seed=seed, progress=progress)
    judgement = comparison.passes(
        bounds.max_drop, min_snr=bounds.min_snr, confidence=bounds.confidence
    )
    return Accuracy(
        ok=judgement.ok,
        words=judgement.reason,
        verified=True,
        before=comparison.before,
        after=comparison.after,
        drop=comparison.drop,
        fidelity=comparison.fidelity,
    )


def unverified_accuracy(
    original: onnx.ModelProto,
    result: onnx.ModelProto,
    feeds: Mapping[str, Array],
    execution: Execution,
) -> Accuracy:
    """Without data: the outputs must stay finite on random inputs, and nothing else is known."""
    with open_session(original, execution) as session:
        names, expected = session.output_names, session.run(feeds)
    with open_session(result, execution) as session:
        found = session.run(feeds)
    accumulator = FidelityAccumulator(names)
    accumulator.add(expected, found)
    fidelity = accumulator.result()
    broken = [output.name for output in fidelity if not output.is_finite]
    words = "accuracy was not verified: there are no real inputs to judge on"
    if broken:
        words = f"output '{broken[0]}' has NaN or infinite values that the original does not have"
    return Accuracy(not broken, words, False, None, None, None, fidelity)
