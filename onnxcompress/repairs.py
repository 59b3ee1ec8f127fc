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
        trial: measures the outputs' error on inputs that the mender does not see.
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

    def __call__(self, rewritten: Rewritten) -> Repaired | None:
        """The rewritten model repaired; None where there is nothing to repair or nothing gained."""
        if rewritten.applied not in self._known:
            self._known[rewritten.applied] = self._recalled(rewritten)
        return self._known[rewritten.applied]

    def error(self, chosen: Chosen) -> float:
        """Relative squared error of the outputs of a choice, repaired as the result would be."""
        model = self._prepared.facts.model
        rewritten = rewrite(model, chosen, self._passes, memo=self._memo)
        repaired = self(rewritten)
        return self._trial.error(repaired.model if repaired is not None else rewritten.model)

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
        found = self._mender(rewritten.model, rewritten.applied)
        if found is None:
            return None
        before, after = (self._trial.error(m) for m in (rewritten.model, found.model))
        if after <= before:
            for words in found.shortages():
                self._progress.note(words)
            return found
        self._progress.note(
            f"repair is left out: the outputs' error would rise from {before:.3g} to {after:.3g}"
        )
        return None
