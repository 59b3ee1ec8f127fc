"""Choices repaired as thoroughly as the result is: once each, and kept should one be the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from onnxcompress.graph.memo import Memo
from onnxcompress.journal import choice_name
from onnxcompress.plan.contract import Pass
from onnxcompress.plan.search import Chosen
from onnxcompress.preparation import Prepared
from onnxcompress.progress import Progress
from onnxcompress.report.write import write_model
from onnxcompress.rewrite.manager import Rewritten, rewrite
from onnxcompress.rewrite.mender import Mender
from onnxcompress.rewrite.repair import Repaired
from onnxcompress.trial import CalibrationTrial


class Repairs:
    """Repairs rewritten models, and finds them again in the journal.

    Args:
        prepared: the job.
        passes: the passes by name.
        memo: results shared by the editors of the job.
        mender: fits layers again.
        trial: measures the outputs' error on inputs that its own mender does not see.
        progress: told what is left out, and what inputs were too few for.
    """

    def __init__(
        self,
        prepared: Prepared,
        passes: Mapping[str, Pass[Any]],
        memo: Memo,
        mender: Mender,
        trial: CalibrationTrial,
        progress: Progress,
    ) -> None:
        self._prepared, self._passes, self._memo = prepared, passes, memo
        self._mender, self._trial, self._progress = mender, trial, progress
        self._known: dict[Chosen, Repaired | None] = {}
        self._fits: dict[Chosen, Repaired] = {}

    def __call__(self, rewritten: Rewritten) -> Repaired | None:
        """The rewritten model repaired; None where there is nothing to repair or nothing gained."""
        if rewritten.applied not in self._known:
            self._known[rewritten.applied] = self._recalled(rewritten)
        return self._known[rewritten.applied]

    def error(self, chosen: Chosen) -> float:
        """Relative squared error of the outputs of a choice, repaired as the result would be."""
        model = self._prepared.facts.model
        return min(self._errors(rewrite(model, chosen, self._passes, memo=self._memo)))

    def _errors(self, rewritten: Rewritten) -> tuple[float, float]:
        """Errors of the outputs before and after repair, on inputs that it has not seen."""
        name = f"errors {choice_name(rewritten.applied)}"
        before, after = self._prepared.journal.recall(name, lambda: self._tried(rewritten))
        return before, after

    def _tried(self, rewritten: Rewritten) -> tuple[float, float]:
        before = self._trial.error(rewritten.model)
        found = self._trial.mender(rewritten.model, rewritten.applied)
        if found is None:
            return before, before
        if self._trial.mender is self._mender:
            self._fits[rewritten.applied] = found
        return before, self._trial.error(found.model)

    def _recalled(self, rewritten: Rewritten) -> Repaired | None:
        journal = self._prepared.journal
        name = f"repaired {choice_name(rewritten.applied)}"
        path = journal.file(f"{name.replace(' ', '-')}.onnx")
        if path is None:
            return self._fitted(rewritten)
        # Either alone is what a run left that ended in between.
        if not (path.exists() and journal.knows(name)):
            found = self._fitted(rewritten)
            if found is not None:
                journal.recall(name, found.findings)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_model(found.model, path)
            return found
        return Repaired.found(onnx.load(path), journal.recall(name, dict))

    def _fitted(self, rewritten: Rewritten) -> Repaired | None:
        if not self._mender.repairs(rewritten.applied):
            return None
        before, after = self._errors(rewritten)
        if after > before:
            rise = f"from {before:.3g} to {after:.3g}"
            self._progress.note(f"repair is left out: the outputs' error would rise {rise}")
            return None
        # What trials had for themselves of few inputs is fitted to as well, now that it has judged.
        found = self._fits.pop(rewritten.applied, None)
        found = found or self._mender(rewritten.model, rewritten.applied)
        for words in found.shortages() if found is not None else ():
            self._progress.note(words)
        return found
