"""Every criterion by name, and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxcompress.analyse.answers import declared_answers, is_classifier
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
        loss: whether it needs answers to be held to something.
        ablates: whether it sets channels to zero, one after the other.
    """

    score: Criterion
    gradients: bool = False
    loss: bool = False
    ablates: bool = False


CRITERIA: Mapping[str, Entry] = {
    "weight": Entry(weight),
    "activation-mean": Entry(activation_mean),
    "activation-std": Entry(activation_std),
    "apoz": Entry(apoz),
    "mutual-information": Entry(mutual_information, loss=True),
    "obd": Entry(obd, gradients=True, loss=True),
    "taylor": Entry(taylor, gradients=True, loss=True),
    "taylor-gate": Entry(taylor_gate, gradients=True, loss=True),
    "oracle-abs": Entry(oracle_abs, loss=True, ablates=True),
    "oracle-loss": Entry(oracle_loss, loss=True, ablates=True),
    "random": Entry(random),
}


def scores(name: str, question: Question) -> dict[str, Array]:
    """Scores [channels] of every layer in `Question.layers`: the higher, the more important.

    Raises:
        UsageError: the criterion needs data that is not there, or classes.
        GradientError: it needs the gradient of an operator that has none, or a gradient is not a
            number; names the criteria that need no gradients.
        ModelError: the network gives nothing that a loss could be computed from.
    """
    try:
        found = CRITERIA[name].score(question)
        for layer, values in found.items():
            if not np.isfinite(values).all():
                raise GradientError(f"its scores of '{layer}' are not all numbers")
    except GradientError as error:
        if not CRITERIA[name].gradients:
            raise
        raise GradientError(
            f"criterion {name} needs gradients, but {error}; these criteria still work: "
            f"{', '.join(_without_gradients(question))}"
        ) from error
    return found


def _without_gradients(question: Question) -> list[str]:
    """Criteria that this network allows without a backward graph."""
    classifier = is_classifier(declared_answers(question.facts.model))
    names = [name for name, entry in CRITERIA.items() if not entry.gradients]
    return [name for name in names if classifier or name != "mutual-information"]
