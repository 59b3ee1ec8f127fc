"""Two networks scored on the same samples: what was lost, how sure that is, and the judgement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf, isinf

import numpy as np

from onnxcompress.analyse.answers import is_classifier
from onnxcompress.errors import DataError, UsageError
from onnxcompress.verify.bootstrap import bootstrap_mean_difference, bootstrap_snr
from onnxcompress.verify.fidelity import (
    Array,
    FidelityAccumulator,
    OutputFidelity,
    is_floating,
)
from onnxcompress.verify.intervals import (
    FloatArray,
    Interval,
    proportion_interval,
    samples_for_upper_end,
    tango_interval,
)
from onnxcompress.verify.metrics import AGREEMENT, Metric
from onnxcompress.verify.results import Drop, Judgement, MetricResult
from onnxcompress.verify.scores import ScoreError

_REPORT_LEVEL = 0.95


# Points: far below one sample's worth, far above the rounding of a mean of float64 scores.
_TOLERANCE = 1e-9


class Evaluation:
    """Accumulates one network's scores by labels, batch by batch."""

    def __init__(self, metric: Metric, output_names: Sequence[str], *, seed: int) -> None:
        """Prepare for a network with these outputs; ``seed`` is the bootstrap's."""
        if metric.function is None and not metric.needs_labels:
            raise UsageError("agreement compares two networks: give the original as reference")
        self._metric = metric
        self._names = tuple(output_names)
        self._seed = seed
        self._scores: list[FloatArray] = []

    def accumulate(self, outputs: Sequence[Array], labels: Array | None) -> None:
        """Score one batch (see `Metric.scores`)."""
        self._scores.append(self._metric.scores(outputs, labels, names=self._names))

    def result(self) -> MetricResult:
        """The mean score so far, with its 95 % interval.

        Raises:
            DataError: There was no sample.
        """
        return _mean_result(self._metric.name, _joined(self._scores), self._seed)


class Comparison:
    """Accumulates the original's and the candidate's scores on the same samples, batch by batch."""

    def __init__(self, metric: Metric, output_names: Sequence[str], *, seed: int) -> None:
        """Prepare for two networks with these outputs; ``seed`` is the bootstrap's."""
        self._metric = metric
        self._names = tuple(output_names)
        self._seed = seed
        self._before: list[FloatArray] = []
        self._after: list[FloatArray] = []
        self._fidelity = FidelityAccumulator(output_names)
        self._scores = ScoreError()
        self._uses_snr = False

    def accumulate(
        self,
        reference_outputs: Sequence[Array],
        candidate_outputs: Sequence[Array],
        labels: Array | None = None,
        *,
        samples: int | None = None,
    ) -> None:
        """Take one batch into account.

        Args:
            reference_outputs: The original network's outputs, in graph order.
            candidate_outputs: The candidate's outputs for the same inputs.
            labels: What the metric needs to know of these samples.
            samples: Samples in the batch; an output is a class decision only if it has as many
                rows.

        Raises:
            DataError: Labels are missing or do not fit, or the user's function failed.
            ModelError: The candidate's outputs differ in number, shape or type.
            UsageError: The metric cannot be applied to this network.
        """
        self._fidelity.add(reference_outputs, candidate_outputs, samples=samples)
        self._scores.add(reference_outputs, candidate_outputs)
        if self._metric.name == AGREEMENT:
            shapes = [np.shape(x) for x in reference_outputs if is_floating(np.asarray(x))]
            rows = shapes[0][0] if shapes and shapes[0] else None
            self._uses_snr = not is_classifier(shapes) or samples not in {None, rows}
            if self._uses_snr:
                return
        after = self._metric.scores(candidate_outputs, labels, reference_outputs, names=self._names)
        if self._metric.name == AGREEMENT:
            before = np.ones_like(after)
        else:
            before = self._metric.scores(reference_outputs, labels, names=self._names)
        if before.shape != after.shape:
            raise DataError(
                f"metric {self._metric.name} gave {before.size} scores before and {after.size} "
                "after for the same samples: return one score per sample"
            )
        self._before.append(before)
        self._after.append(after)

    @property
    def fidelity(self) -> tuple[OutputFidelity, ...]:
        """How far the candidate's outputs are from the original's, in graph order."""
        return self._fidelity.result()

    @property
    def error(self) -> float:
        """Relative squared error: of class scores, or else of the worst output."""
        scores = self._scores.value
        if scores is not None:
            return scores
        return max(float(10.0 ** (-output.snr_db / 10.0)) for output in self.fidelity)

    @property
    def before(self) -> MetricResult:
        """The original's result; of an agreement with itself, perfect by definition."""
        if self._metric.name != AGREEMENT:
            return _mean_result(self._metric.name, _joined(self._before), self._seed)
        perfect = inf if self._uses_snr else 1.0
        exact = Interval(perfect, perfect, _REPORT_LEVEL, "by definition")
        return MetricResult(self._result_name, perfect, exact, self._samples)

    @property
    def after(self) -> MetricResult:
        """The candidate's result."""
        if not self._uses_snr:
            return _mean_result(self._metric.name, _joined(self._after), self._seed)
        worst, interval = self._worst_output().snr_db, self._worst_snr(_REPORT_LEVEL)
        return MetricResult(self._result_name, worst, interval, self._samples)

    @property
    def drop(self) -> Drop | None:
        """What was lost, with its 95 % interval; a signal-to-noise ratio has no points to lose."""
        return None if self._uses_snr else self._drop(_REPORT_LEVEL)

    def snr_intervals(self, *, level: float = _REPORT_LEVEL) -> dict[str, Interval]:
        """Bootstrap interval of every output's signal-to-noise ratio in dB, by output name.

        Args:
            level: Confidence level between 0 and 1.

        Returns:
            The intervals; whole samples are resampled, the same ones for every output.
        """
        intervals = {}
        for output, energies in zip(self.fidelity, self._fidelity.energies(), strict=True):
            if output.snr_db == -inf:
                intervals[output.name] = Interval(-inf, -inf, level, "no finite ratio")
            else:
                intervals[output.name] = bootstrap_snr(
                    energies.signal, energies.noise, seed=self._seed, level=level
                )
        return intervals

    def passes(
        self, max_drop: float, *, min_snr: float | None = None, confidence: float | None = None
    ) -> Judgement:
        """Judge the candidate by what was measured, or by what is certain enough.

        Args:
            max_drop: The drop allowed, in points (exceeding it by 1e-9 points is rounding).
            min_snr: The signal-to-noise ratio demanded of the worst output, in dB; it takes the
                place of ``max_drop`` for networks that are no classifiers under `agreement`.
            confidence: If given, the bad end of the two-sided interval at this level is judged.

        Returns:
            The judgement. NaN or infinity that sets the networks apart fails, and so does a
            signal-to-noise ratio that no bound was given for, unless the outputs are equal.

        Raises:
            DataError: There was no sample.
            UsageError: The confidence is not between 0 and 1.
        """
        for output in self.fidelity:
            if not output.is_finite:
                return Judgement(
                    False,
                    f"output {output.name!r} has {output.non_finite} NaN or infinite values that "
                    "the two networks do not share.",
                )
        if self._uses_snr:
            return self._judge_snr(min_snr, confidence)
        return self._judge_drop(max_drop, confidence)

    @property
    def _result_name(self) -> str:
        return "snr" if self._uses_snr else self._metric.name

    @property
    def _samples(self) -> int:
        if self._uses_snr:
            return int(self._fidelity.energies()[0].noise.size)
        return int(_joined(self._after).size)

    def _worst_output(self) -> OutputFidelity:
        return min(self.fidelity, key=lambda output: output.snr_db)

    def _worst_snr(self, level: float) -> Interval:
        """Where the smallest of the outputs' ratios lies: both ends are the smallest of theirs."""
        intervals = self.snr_intervals(level=level)
        method = intervals[self._worst_output().name].method
        low = min(interval.low for interval in intervals.values())
        return Interval(low, min(i.high for i in intervals.values()), level, method)

    def _drop(self, level: float) -> Drop:
        before, after = _joined(self._before), _joined(self._after)
        n = int(before.size)
        if _all_right_or_wrong(before) and _all_right_or_wrong(after):
            b, c = int(np.sum(before > after)), int(np.sum(after > before))
            interval = _in_points(tango_interval(b, c, n, level=level))
            return Drop(100.0 * (b - c) / n, interval, "tango", n, b, c)
        points = 100.0 * float(np.mean(before - after))
        interval = bootstrap_mean_difference(before, after, seed=self._seed, level=level)
        return Drop(points, _in_points(interval), "paired bootstrap", n)

    def _judge_drop(self, max_drop: float, confidence: float | None) -> Judgement:
        name = self._metric.name
        if confidence is None:
            before, after = _joined(self._before), _joined(self._after)
            points = 100.0 * float(np.mean(before - after))
            ok = points <= max_drop + _TOLERANCE
            measured = (
                f"{name} goes from {np.mean(before):.6g} to {np.mean(after):.6g} over "
                f"{before.size} samples, a drop of {points:.6g} points"
            )
            if isinf(max_drop):
                return Judgement(ok, f"{measured}.")
            return Judgement(
                ok,
                f"{measured}, which is {'within' if ok else 'above'} the {max_drop:.6g} points "
                "allowed."
                f"{_how_certain(self._drop(_REPORT_LEVEL), max_drop) if ok else ''}",
            )
        drop = self._drop(confidence)
        if drop.method != "tango" and drop.n < 2:
            return Judgement(
                False,
                f"{name} was measured on a single sample, which gives no {100 * confidence:g} % "
                f"interval to hold against the {max_drop:.6g} points allowed.",
            )
        ok = drop.interval.high <= max_drop + _TOLERANCE
        return Judgement(
            ok,
            f"{name} drops by {drop.points:.6g} points over {drop.n} samples, and the upper end of "
            f"its {100 * confidence:g} % interval, {drop.interval.high:.6g} points, is "
            f"{'within' if ok else 'above'} the {max_drop:.6g} points allowed"
            f"{'' if ok else _what_would_settle(drop, max_drop)}.",
        )

    def _judge_snr(self, min_snr: float | None, confidence: float | None) -> Judgement:
        worst = self._worst_output()
        measured = f"output {worst.name!r} has a signal-to-noise ratio of {worst.snr_db:.6g} dB"
        if worst.snr_db == inf:
            return Judgement(
                True, f"all outputs equal the original's over {self._samples} samples."
            )
        if min_snr is None:
            return Judgement(False, f"{measured}, but no bound was given: set --min-snr.")
        if min_snr == -inf:
            return Judgement(True, f"{measured}.")
        if confidence is None:
            ok = worst.snr_db >= min_snr - _TOLERANCE
            side = "at least" if ok else "below"
            return Judgement(ok, f"{measured}, {side} the {min_snr:.6g} dB demanded.")
        if self._samples < 2:
            return Judgement(
                False,
                f"{measured} on a single sample, which gives no {100 * confidence:g} % interval "
                f"to hold against the {min_snr:.6g} dB demanded.",
            )
        low = self._worst_snr(confidence).low
        ok = low >= min_snr - _TOLERANCE
        return Judgement(
            ok,
            f"{measured}, and the lower end of the outputs' {100 * confidence:g} % intervals, "
            f"{low:.6g} dB, is {'at least' if ok else 'below'} the {min_snr:.6g} dB demanded.",
        )


def _how_certain(drop: Drop, max_drop: float) -> str:
    """What the interval of a drop that is allowed says, where it reaches beyond."""
    if not drop.interval.high > max_drop + _TOLERANCE:
        return ""
    return (
        f" Its {100 * drop.interval.level:g} % interval reaches {drop.interval.high:.3g} points"
        f"{_what_would_settle(drop, max_drop)}."
    )


def _what_would_settle(drop: Drop, max_drop: float) -> str:
    """The number of samples at which the interval would fit in, where one exists."""
    margin = max_drop - drop.points
    if drop.only_before_right is None or drop.only_after_right is None or margin < _TOLERANCE:
        return ""
    needed = samples_for_upper_end(
        drop.only_before_right,
        drop.only_after_right,
        drop.n,
        limit=min(max_drop, 100.0),
        level=drop.interval.level,
    )
    return f"; about {needed} samples could settle it"


def _mean_result(name: str, scores: FloatArray, seed: int) -> MetricResult:
    if _all_right_or_wrong(scores):
        interval = proportion_interval(int(np.sum(scores)), scores.size, level=_REPORT_LEVEL)
    else:
        interval = bootstrap_mean_difference(
            scores, np.zeros_like(scores), seed=seed, level=_REPORT_LEVEL
        )
    return MetricResult(name, float(np.mean(scores)), interval, int(scores.size))


def _joined(batches: Sequence[FloatArray]) -> FloatArray:
    scores = np.concatenate(batches) if batches else np.zeros(0)
    if not scores.size:
        raise DataError("no sample was evaluated: give at least one")
    return scores


def _all_right_or_wrong(scores: FloatArray) -> bool:
    return bool(np.all((scores == 0.0) | (scores == 1.0)))


def _in_points(interval: Interval) -> Interval:
    return replace(interval, low=100.0 * interval.low, high=100.0 * interval.high)
