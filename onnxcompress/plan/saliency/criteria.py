"""Every criterion by name, and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxcompress.errors import GradientError
from onnxcompress.plan.saliency.filters import random, weight
from onnxcompress.plan.saliency.gradients import obd, taylor, taylor_gate
from onnxcompress.plan.saliency.oracle import oracle_abs, oracle_loss
from onnxcompress.plan.saliency.question import Array, Criterion, Question
from onnxcompress.plan.saliency.responses import (
    activation_mean,
    activation_std,
    apoz,
    mutual_information,
)


@dataclass(frozen=True)
class Entry:
    """A criterion.

    Attributes:
        score: computes it.
        gradients: whether it needs the backward graph.
    """

    score: Criterion
    gradients: bool = False


CRITERIA: Mapping[str, Entry] = {
    "weight": Entry(weight),
    "activation-mean": Entry(activation_mean),
    "activation-std": Entry(activation_std),
    "apoz": Entry(apoz),
    "mutual-information": Entry(mutual_information),
    "obd": Entry(obd, gradients=True),
    "taylor": Entry(taylor, gradients=True),
    "taylor-gate": Entry(taylor_gate, gradients=True),
    "oracle-abs": Entry(oracle_abs),
    "oracle-loss": Entry(oracle_loss),
    "random": Entry(random),
}


def scores(name: str, question: Question) -> dict[str, Array]:
    """Scores [channels] of every layer in `Question.layers`: the higher, the more important.

    Raises:
        UsageError: the criterion needs data that is not there, or classes.
        GradientError: it needs the gradient of an operator that has none; names those that do not.
    """
    try:
        return CRITERIA[name].score(question)
    except GradientError as error:
        if not CRITERIA[name].gradients:
            raise
        others = ", ".join(other for other, entry in CRITERIA.items() if not entry.gradients)
        raise GradientError(
            f"criterion {name} needs gradients, but {error}; these criteria still work: {others}"
        ) from error
