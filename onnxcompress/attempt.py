"""One plan carried out, and which of two is the better one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from onnxcompress.plan.plan import Plan
from onnxcompress.planning import Planner
from onnxcompress.rewrite.manager import Rewritten
from onnxcompress.rewrite.repair import Repaired
from onnxcompress.verify.accuracy import Accuracy
from onnxcompress.verify.verdict import Verdict

if TYPE_CHECKING:
    from onnxcompress.finetune.job import Distilled


@dataclass(frozen=True)
class Attempt:
    """One plan carried out and judged.

    Attributes:
        plan: what was done.
        rewritten: what came of it.
        repaired: the same with layers fitted again, where any were.
        model: the result, in the precision asked for.
        verdict: on the result.
        unconverted: what became of the outputs before the precision was changed, if it was.
        trained: what fine-tuning came to, where it was asked for.
    """

    plan: Plan
    rewritten: Rewritten
    repaired: Repaired | None
    model: onnx.ModelProto
    verdict: Verdict
    unconverted: Accuracy | None
    trained: Distilled | None = None

    @property
    def compressed(self) -> onnx.ModelProto:
        """The result in the original's precision."""
        if self.trained is not None:
            return self.trained.model
        return self.repaired.model if self.repaired is not None else self.rewritten.model


def better(kept: Attempt, made: Attempt, planner: Planner) -> Attempt:
    """The later attempt, unless the earlier one held its bounds and lost less by calibration."""
    if not kept.verdict.ok:
        return made
    if not made.verdict.ok or planner.error(made.model) >= planner.error(kept.model):
        return kept
    return made
