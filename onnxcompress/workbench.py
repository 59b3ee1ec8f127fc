"""What carries choices out for one job: rewriting, trying, repairing, converting, counting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from onnxcompress.graph.memo import Memo
from onnxcompress.plan.contract import Pass
from onnxcompress.plan.known_moments import remember_facts
from onnxcompress.preparation import Prepared
from onnxcompress.progress import Progress
from onnxcompress.remainder import Remainder
from onnxcompress.repairs import Repairs
from onnxcompress.rewrite.mender import Mender
from onnxcompress.rewrite.precision import Conversion
from onnxcompress.trial import CalibrationTrial, samples_to_fit


@dataclass(frozen=True)
class Workbench:
    """The tools of one job.

    Attributes:
        prepared: the job.
        passes: its passes, by name.
        memo: results that all editors of the job share.
        mender: fits layers again behind what was rewritten.
        trial: carries choices out on a copy and looks at its outputs.
        conversion: of results to the precision asked for; None where none was.
        remains: counts and times what is left after a choice.
        progress: told what happens.
    """

    prepared: Prepared
    passes: Mapping[str, Pass[Any]]
    memo: Memo
    mender: Mender
    trial: CalibrationTrial
    conversion: Conversion | None
    remains: Remainder
    progress: Progress

    @classmethod
    def of(cls, prepared: Prepared, progress: Progress) -> Workbench:
        """The tools of a job that was prepared."""
        facts, inputs, config = prepared.facts, prepared.inputs, prepared.config
        passes, memo = {owner.name: owner for owner in prepared.passes}, Memo()
        mender = Mender(
            facts,
            inputs.calibration,
            passes,
            memo,
            config.execution,
            config.seed,
            config.repair,
            config.samples,
            progress,
        )
        count = len(inputs.calibration or ())
        fitted = samples_to_fit(count, config.samples)
        few = fitted < min(count, config.samples)
        trial = CalibrationTrial(
            facts.model,
            facts.total().macs,
            inputs.calibration,
            passes,
            memo,
            config,
            replace(mender, most=fitted) if few else mender,
            prepared.journal,
        )
        then = config.then or (prepared.replay.then if prepared.replay is not None else None)
        conversion = None
        if then is not None:
            conversion = Conversion(then, facts, inputs.calibration, config.seed)
        remains = Remainder(prepared, passes, memo, mender, conversion)
        remember_facts(facts, memo)
        return cls(prepared, passes, memo, mender, trial, conversion, remains, progress)

    def repairs(self) -> Repairs:
        """Repairs that remember what they have repaired."""
        return Repairs(
            self.prepared, self.passes, self.memo, self.mender, self.trial, self.progress
        )
