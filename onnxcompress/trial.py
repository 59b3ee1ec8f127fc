"""Trials: a choice carried out on a copy of the model and looked at on calibration inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.config import Config
from onnxcompress.errors import OnnxCompressError, UsageError
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.infer import with_value_info
from onnxcompress.graph.memo import Memo
from onnxcompress.journal import Journal, choice_name
from onnxcompress.plan.contract import Candidate, Pass
from onnxcompress.plan.search import Outcome
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.rewrite.mender import Mender
from onnxcompress.verify.compare import Answers, answers_of, compare
from onnxcompress.verify.metrics import Metric, parse_metric

_TRIAL = (100, 512, 3e11)
_PROBE = (8, 64, 3e10)
"""Fewest and most samples of a trial and of a probe, and the MACs that either may spend."""

_WORST = 1e6

_MOST_KEPT = 2**29
"""Bytes of the original's answers that are kept between trials, and as many between probes."""

_CAUTION = 0.5
"""Share of the bound that a trial may use: networks lose less on images they were trained on."""


@dataclass(frozen=True)
class CalibrationTrial:
    """Rewrites the model by a choice and compares it with the original on calibration inputs.

    Attributes:
        model: the canonical model; not changed.
        macs: what one sample costs, which decides how many samples a trial takes.
        data: the calibration inputs; None makes every trial a usage error.
        passes: the passes by name.
        memo: decompositions shared with other rewrites of the same model.
        config: bounds, metric, provider and seed.
        mender: repairs what is tried, as the result will be.
        journal: keeps what trials found.
    """

    model: onnx.ModelProto
    macs: int
    data: Dataset | None
    passes: Mapping[str, Pass[Any]]
    memo: Memo
    config: Config
    mender: Mender
    journal: Journal

    def __call__(self, chosen: tuple[Candidate[Any], ...], *, probe: bool = False) -> Outcome:
        """Try a choice; a probe uses fewer inputs and judges nothing.

        Raises:
            UsageError: there is no calibration data.
            PassError: a rewrite fails.
        """
        if probe:
            return self._outcome(chosen, probe=True)
        found = self.journal.recall(
            f"trial {choice_name(chosen)}",
            lambda: dataclasses.astuple(self._outcome(chosen, probe=False)),
        )
        return Outcome(*found)

    def _outcome(self, chosen: tuple[Candidate[Any], ...], *, probe: bool) -> Outcome:
        data = self._samples(probe=probe)
        model = rewrite(self.model, chosen, self.passes, strict=True, memo=self.memo).model
        if not probe:
            repaired = self.mender(model, chosen, briefly=True)
            model = repaired.model if repaired is not None else model
        comparison = compare(
            self._original(probe=probe),
            model,
            data,
            parse_metric("agreement") if probe else self._metric(data),
            self.config.execution,
            seed=self.config.seed,
        )
        judgement = comparison.passes(
            self.config.max_drop * _CAUTION,
            min_snr=self.config.min_snr - 10.0 * np.log10(_CAUTION),
            confidence=None if probe else self.config.confidence,
        )
        # An output that was silent on these inputs gives infinity, which no solver takes.
        return Outcome(bool(judgement.ok), float(min(comparison.error, _WORST)), judgement.reason)

    def step(self, gone: tuple[Candidate[Any], ...]) -> RepairedStep:
        """The network after some candidates, repaired, to try single further ones on.

        Raises:
            UsageError: there is no calibration data.
            PassError: a rewrite fails.
        """
        model = self.model
        if gone:
            model = rewrite(model, gone, self.passes, strict=True, memo=self.memo).model
            repaired = self.mender(model, gone, briefly=True)
            model = repaired.model if repaired is not None else model
        return RepairedStep(self, model)

    def error(self, model: onnx.ModelProto) -> float:
        """Relative squared error of a model's outputs on the trial's samples.

        Raises:
            UsageError: there is no calibration data.
        """
        metric = parse_metric("agreement")
        comparison = compare(
            self._original(probe=False),
            model,
            self._samples(probe=False),
            metric,
            self.config.execution,
            seed=self.config.seed,
        )
        return comparison.error

    def _original(self, *, probe: bool) -> Answers | onnx.ModelProto:
        """What the original answers to the samples; the model where that is too much to keep."""
        known = self._probe_answers if probe else self._trial_answers
        return known or self.model

    @cached_property
    def _probe_answers(self) -> Answers | None:
        return self._answers(probe=True)

    @cached_property
    def _trial_answers(self) -> Answers | None:
        return self._answers(probe=False)

    def _answers(self, *, probe: bool) -> Answers | None:
        data = self._samples(probe=probe)
        return answers_of(self.model, data, self.config.execution, most_bytes=_MOST_KEPT)

    def _samples(self, *, probe: bool) -> Dataset:
        if self.data is None:
            raise UsageError("a trial needs calibration data")
        fewest, most, macs = _PROBE if probe else _TRIAL
        unit = self.data.fixed_batch or 1
        # Whole batches, where the model insists on a number of samples.
        count = max(1, int(np.clip(macs / max(1, self.macs), fewest, most)) // unit) * unit
        # Folders are sorted by class: a random subset, the same in every trial, covers them all.
        # Repair takes its samples from the other end, and is not judged on what it has seen.
        order = np.random.default_rng(self.config.seed).permutation(len(self.data))
        return self.data.take(np.sort(order[len(order) - count :]))

    def _metric(self, data: Dataset) -> Metric:
        """The metric that choices are judged by: the one asked for, else agreement."""
        metric = parse_metric(self.config.metric or "agreement")
        if metric.needs_labels and data.labels is None:
            return parse_metric("agreement")
        return metric


@dataclass(frozen=True)
class RepairedStep:
    """A network after some candidates, repaired.

    Attributes:
        trial: measures errors.
        model: the repaired network.
    """

    trial: CalibrationTrial
    model: onnx.ModelProto

    @cached_property
    def error(self) -> float:
        """Relative squared error of its outputs."""
        return float(min(self.trial.error(self.model), _WORST))

    def without(self, branch: Candidate[Any]) -> float:
        """The error once a branch goes, too; the worst there is where it cannot go any more."""
        owner = self.trial.passes[branch.site.pass_name]
        editor = Editor(self.model, memo=self.trial.memo)
        editor.sign(owner.name)
        try:
            owner.rewrite(branch, editor)
            model = with_value_info(editor.finish())
            return float(min(self.trial.error(model), _WORST))
        except (OnnxCompressError, ValueError):
            return _WORST
