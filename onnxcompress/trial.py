"""Trials: a choice carried out on a copy of the model and looked at on calibration inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

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
from onnxcompress.plan.probes import Probe
from onnxcompress.plan.search import Outcome
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.rewrite.mender import Mender
from onnxcompress.verify.compare import Answers, answers_of, compare
from onnxcompress.verify.metrics import Metric, parse_metric


class Look(NamedTuple):
    """How many samples are looked at: fewest, most, and the MACs that may be spent on them."""

    fewest: int
    most: int
    macs: float


_TRIAL = Look(100, 512, 3e11)
_STEP = Look(50, 128, 1e11)
_PROBE = Look(8, 64, 3e10)

_APART = 0.25
"""Share of few calibration inputs that trials have for themselves; of many they have enough."""

_WORST = 1e6

_MOST_KEPT = 2**29
"""Bytes of decoded samples that are kept of a look, and as many of the original's answers."""

_CAUTION = 0.5
"""Share of the bound that a trial may use: networks lose less on images they were trained on."""


def samples_to_fit(count: int, asked: int) -> int:
    """How many of so many calibration inputs a trial's repair may see: others are to judge it."""
    return max(1, min(asked, count - round(_APART * count)))


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
        mender: repairs what is tried, as the result will be, on inputs that no trial looks at.
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

    def __call__(self, chosen: tuple[Candidate[Any], ...]) -> Outcome:
        """Try a choice.

        Raises:
            UsageError: there is no calibration data.
            PassError: a rewrite fails.
        """
        found = self.journal.recall(
            f"trial {choice_name(chosen)}", lambda: dataclasses.astuple(self._outcome(chosen))
        )
        return Outcome(*found)

    @contextmanager
    def probing(self) -> Iterator[Probe]:
        """A call that tries a candidate by itself, on fewer inputs, and does not judge.

        Outputs are worked out in a thread of their own, while the next candidate is carried out.

        Raises:
            UsageError: there is no calibration data.
            PassError: a rewrite fails, or makes no valid model.
        """
        self._original(_PROBE)
        with ThreadPoolExecutor(1) as beside:

            def probe(candidate: Candidate[Any]) -> Callable[[], float]:
                changed = rewrite(
                    self.model, (candidate,), self.passes, strict=True, memo=self.memo, brief=True
                )
                answer = beside.submit(self._probed, changed.model)

                def error() -> float:
                    try:
                        return answer.result()
                    except OnnxCompressError:
                        # Whose fault it is, a thorough look says.
                        rewrite(self.model, (candidate,), self.passes, strict=True, memo=self.memo)
                        raise

                return error

            yield probe

    def _probed(self, model: onnx.ModelProto) -> float:
        # An output that was silent on these inputs gives infinity, which no solver takes.
        return float(min(self.error(model, _PROBE), _WORST))

    def _outcome(self, chosen: tuple[Candidate[Any], ...]) -> Outcome:
        data = self._samples(_TRIAL)
        model = rewrite(self.model, chosen, self.passes, strict=True, memo=self.memo).model
        repaired = self.mender(model, chosen, briefly=True)
        model = repaired.model if repaired is not None else model
        comparison = compare(
            self._original(_TRIAL),
            model,
            data,
            self._metric(data),
            self.config.execution,
            seed=self.config.seed,
        )
        judgement = comparison.passes(
            self.config.max_drop * _CAUTION,
            min_snr=self.config.min_snr - 10.0 * np.log10(_CAUTION),
            confidence=self.config.confidence,
        )
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

    def error(self, model: onnx.ModelProto, look: Look = _TRIAL) -> float:
        """Relative squared error of a model's outputs.

        Args:
            model: what is compared with the original.
            look: on how many samples.

        Raises:
            UsageError: there is no calibration data.
        """
        comparison = compare(
            self._original(look),
            model,
            self._samples(look),
            parse_metric("agreement"),
            self.config.execution,
            seed=self.config.seed,
        )
        return comparison.error

    def _original(self, look: Look) -> Answers | onnx.ModelProto:
        """What the original answers to the samples; the model where that is too much to keep."""
        if look not in self._answers:
            self._answers[look] = answers_of(
                self.model, self._samples(look), self.config.execution, most_bytes=_MOST_KEPT
            )
        return self._answers[look] or self.model

    @cached_property
    def _answers(self) -> dict[Look, Answers | None]:
        return {}

    @cached_property
    def _looks(self) -> dict[Look, Dataset]:
        return {}

    def _samples(self, look: Look) -> Dataset:
        """The samples of a look: decoded once, if they are not too many."""
        if self.data is None:
            raise UsageError("a trial needs calibration data")
        if look not in self._looks:
            unit = self.data.fixed_batch or 1
            wanted = int(np.clip(look.macs / max(1, self.macs), look.fewest, look.most))
            apart = len(self.data) - samples_to_fit(len(self.data), self.config.samples)
            # Whole batches, where the model insists on a number of samples.
            count = max(1, min(wanted, apart) // unit) * unit
            # Folders are sorted by class: a random subset, always the same, covers them all.
            # Repair takes its samples from the other end, and is not judged on what it has seen.
            order = np.random.default_rng(self.config.seed).permutation(len(self.data))
            taken = self.data.take(np.sort(order[len(order) - count :]))
            self._looks[look] = taken.held(_MOST_KEPT)
        return self._looks[look]

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
        return float(min(self.trial.error(self.model, _STEP), _WORST))

    def without(self, branch: Candidate[Any]) -> float:
        """The error once a branch goes, too; the worst there is where it cannot go any more."""
        owner = self.trial.passes[branch.site.pass_name]
        editor = Editor(self.model, memo=self.trial.memo)
        editor.sign(owner.name)
        try:
            owner.rewrite(branch, editor)
            model = with_value_info(editor.finish())
            return float(min(self.trial.error(model, _STEP), _WORST))
        except (OnnxCompressError, ValueError):
            return _WORST
