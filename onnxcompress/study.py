"""All criteria side by side on one network, and how well each agrees with the oracle.

Spearman's rank correlation per layer, over all layers, and over all layers after every layer was
divided by its l2 norm: the tables of Molchanov et al. 2017 (arXiv 1611.06440), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.stats import spearmanr

from onnxcompress.analyse.facts import Facts, analyse
from onnxcompress.analyse.sensitivity import Measured
from onnxcompress.analyse.sizes import random_feeds, representative_sizes
from onnxcompress.calibrate.collectors import with_collectors
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.samples import sample_sizes
from onnxcompress.config import matching
from onnxcompress.errors import GradientError, ModelError, UsageError
from onnxcompress.load.canonical import canonicalise
from onnxcompress.load.trust import trusted
from onnxcompress.numerics.blas_threads import one_blas_pool
from onnxcompress.plan.saliency.criteria import CRITERIA, scores
from onnxcompress.plan.saliency.normalise import normalised
from onnxcompress.plan.saliency.question import Question, sensitivity_of
from onnxcompress.progress import Progress, Silent
from onnxcompress.runtime import Execution

Array = NDArray[np.float64]
Scores = Mapping[str, Array]
"""By layer, one score per channel."""


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of one criterion with the reference; NaN where scores are all equal.

    Attributes:
        layers: by layer.
        all_layers: over the channels of all layers together.
        all_normalised: the same after dividing every layer of the criterion by its l2 norm.
    """

    layers: Mapping[str, float]
    all_layers: float
    all_normalised: float

    @property
    def mean(self) -> float:
        """The mean over the layers in which the criterion and the reference rank anything."""
        known = [value for value in self.layers.values() if not np.isnan(value)]
        return float(np.mean(known)) if known else float("nan")

    @property
    def worst(self) -> float:
        """The lowest of the layers."""
        known = [value for value in self.layers.values() if not np.isnan(value)]
        return min(known) if known else float("nan")


@dataclass(frozen=True)
class Study:
    """What the criteria say of a network.

    Attributes:
        scores: by criterion, the scores of every layer's channels.
        reference: the criterion that the others are compared with.
        correlations: by criterion, without the reference.
        refused: criteria that cannot be computed here, and why.
        fisher: by layer, the trace of the Fisher information in its output; None where it was not
            asked for, or the backward graph cannot be built.
        measured: on how many samples, and what the loss was held to; None where no criterion
            needed a loss.
    """

    scores: Mapping[str, Scores]
    reference: str
    correlations: Mapping[str, Correlation]
    refused: Mapping[str, str]
    fisher: Mapping[str, float] | None
    measured: Measured | None


@one_blas_pool()
def study(
    model: onnx.ModelProto,
    data: Dataset,
    *,
    criteria: Sequence[str] = (),
    reference: str = "oracle-abs",
    samples: int = 1024,
    ablated: int = 256,
    exclude: Sequence[str] = (),
    fisher: bool = True,
    execution: Execution | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Study:
    """Score every channel of a network by every criterion.

    Args:
        model: the network, as it was given.
        data: calibration inputs, with labels or without.
        criteria: which; empty for all that this network and data allow.
        reference: the criterion that the others are compared with.
        samples: of gradients, at most.
        ablated: of the oracle, at most.
        exclude: regular expressions of layers to leave out (names of nodes).
        fisher: whether the Fisher information is wanted, which takes another backward pass.
        execution: provider and threads.
        seed: which samples are taken, and every random choice.
        progress: told what happens.

    Raises:
        UsageError: there is no such criterion, or one that was asked for needs classes.
        ModelError: the network's coupling cannot be found, or no layer has channels that may go.
        GradientError: a criterion that was asked for needs an operator's gradient that is not
            known.
    """
    _check(criteria, reference)
    execution, progress = execution or Execution(), progress or Silent()
    facts = _facts(model, data, samples, ablated, execution, seed, progress)
    coupling = facts.coupling()
    whole = Question(facts, coupling, {}, "l2", seed)
    question = replace(whole, skipped=matching(exclude, whole.layers, "layer that is scored"))
    if not question.layers:
        reasons = sorted({f"'{name}': {reason}" for name, reason in coupling.refusals.items()})
        raise ModelError(
            "no layer has channels that may go"
            + (f" ({'; '.join(reasons[:3])})" if reasons else "")
        )
    found: dict[str, Scores] = {}
    refused: dict[str, str] = {}
    for name in dict.fromkeys([*(criteria or CRITERIA), reference]):
        progress.stage(name)
        try:
            found[name] = scores(name, question)
        except (ModelError, UsageError) as error:
            if name in criteria or name == reference:
                raise
            refused[name] = str(error)
    return Study(
        scores=found,
        reference=reference,
        correlations={
            name: correlate(each, found[reference])
            for name, each in found.items()
            if name != reference
        },
        refused=refused,
        fisher=_fisher(question) if fisher else None,
        measured=_measured(question, found),
    )


def _measured(question: Question, found: Mapping[str, Scores]) -> Measured | None:
    if not any(CRITERIA[name].loss for name in found):
        return None
    measured = sensitivity_of(question).measured()
    ablated = any(CRITERIA[name].ablates for name in found)
    return measured if ablated else replace(measured, ablated=0)


def correlate(found: Scores, reference: Scores) -> Correlation:
    """Spearman's rank correlation of two criteria, ties counted."""
    normal = {layer: normalised(values, "l2") for layer, values in found.items()}
    return Correlation(
        {layer: spearman(values, reference[layer]) for layer, values in found.items()},
        spearman(_joined(found), _joined(reference)),
        spearman(_joined(normal), _joined(reference)),
    )


def spearman(one: Array, other: Array) -> float:
    """Spearman's rank correlation; NaN where there is nothing to rank."""
    if np.ptp(one) == 0.0 or np.ptp(other) == 0.0:
        return float("nan")
    return float(spearmanr(one, other).statistic)


def _joined(found: Scores) -> Array:
    return np.concatenate(list(found.values()))


def _check(criteria: Sequence[str], reference: str) -> None:
    for name in (*criteria, reference):
        if name not in CRITERIA:
            raise UsageError(f"there is no criterion {name!r}: give one of {', '.join(CRITERIA)}")


def _facts(
    model: onnx.ModelProto,
    data: Dataset,
    samples: int,
    ablated: int,
    execution: Execution,
    seed: int,
    progress: Progress,
) -> Facts:
    canonical = canonicalise(model)
    sizes = representative_sizes(canonical.model, seen=sample_sizes(data))
    feeds = random_feeds(model, sizes, seed=seed)
    canonical = trusted(model, canonical, feeds, execution)
    for note in canonical.notes:
        progress.note(note)
    return with_collectors(
        analyse(canonical.model, sizes),
        data,
        execution,
        seed,
        observed=samples,
        samples=samples,
        ablated=ablated,
        progress=progress,
    )


def _fisher(question: Question) -> dict[str, float] | None:
    """By layer, the trace of the Fisher information in its output."""
    coupling, sensitivity = question.coupling, sensitivity_of(question)
    tensors = {layer: coupling.producers[layer] for layer in question.layers}
    axes = {tensor: coupling.lanes[tensor].axis for tensor in tensors.values()}
    try:
        found = sensitivity.fisher(axes)
    except GradientError:
        return None
    return {layer: float(np.trace(found[tensor])) for layer, tensor in tensors.items()}
