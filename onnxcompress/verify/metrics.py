"""Task metrics of one network, the accuracy lost between two, and whether that is acceptable.

Every metric is a score per sample, so that two networks are compared on the same samples: by
Tango's interval where all scores are right or wrong (1 or 0), by a paired bootstrap otherwise.
`agreement` needs no labels: it compares a network with the original's own answers, which are the
classes of a classifier; of any other network it is the signal-to-noise ratio of the worst output.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcompress.analyse.answers import is_class_shape
from onnxcompress.calibrate.function import current_directory_first
from onnxcompress.errors import DataError, UsageError
from onnxcompress.verify.fidelity import (
    Array,
    is_floating,
    sample_count,
)
from onnxcompress.verify.intervals import (
    FloatArray,
)

_LARGEST = {"top1": 1, "top5": 5}
AGREEMENT = "agreement"

ScoreFunction = Callable[[dict[str, Array], Array | None], npt.ArrayLike]


@dataclass(frozen=True)
class Metric:
    """A way to score every sample: `top1`, `top5`, `agreement`, or a function of the user's."""

    name: str
    function: ScoreFunction | None = None

    @property
    def needs_labels(self) -> bool:
        """Whether there is nothing to compute without labels."""
        return self.name in _LARGEST

    def scores(
        self,
        outputs: Sequence[Array],
        labels: Array | None,
        reference: Sequence[Array] | None = None,
        *,
        names: Sequence[str],
    ) -> FloatArray:
        """Score one batch.

        Args:
            outputs: The network's outputs, in graph order.
            labels: Class indices [N], or whatever the user's function expects, or None.
            reference: The original network's outputs for the same inputs, for `agreement`.
            names: The outputs' names, in graph order.

        Returns:
            One score [N] per sample; 1 is right and 0 wrong for the built-in metrics. NaN among
            a sample's class scores makes it wrong.

        Raises:
            DataError: Labels are missing or do not fit, or the user's function failed.
            UsageError: The metric cannot be applied to this network.
        """
        if self.function is not None:
            return _call(self.function, self.name, dict(zip(names, outputs, strict=True)), labels)
        scores = _class_scores(outputs, self.name)
        if self.name in _LARGEST:
            return _label_among_largest(scores, labels, self.name)
        if reference is None:
            raise UsageError("agreement compares two networks: give the original as reference")
        return _same_class(_class_scores(reference, self.name), scores)


def parse_metric(text: str) -> Metric:
    """The metric named on the command line.

    Args:
        text: `top1`, `top5`, `agreement`, or `MODULE:FUNCTION`, a function that is given the
            outputs by name and the labels and returns one score per sample, larger being better.

    Returns:
        The metric.

    Raises:
        UsageError: There is no such metric, or the function cannot be imported.
    """
    if text in _LARGEST or text == AGREEMENT:
        return Metric(text)
    module_name, separator, function_name = text.partition(":")
    if not (separator and module_name and function_name):
        raise UsageError(f"unknown metric {text!r}: use top1, top5, agreement or MODULE:FUNCTION")
    try:
        with current_directory_first():
            function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:
        raise UsageError(
            f"metric {text!r} cannot be imported ({_one_line(error)}): check the names and "
            "PYTHONPATH"
        ) from error
    if not callable(function):
        raise UsageError(f"metric {text!r} is not a function: name one that returns scores")
    return Metric(text, function)


def _class_scores(outputs: Sequence[Array], metric: str) -> Array:
    """The one output [N, K] that holds class scores."""
    arrays = [np.asarray(values) for values in outputs]
    found = [x.reshape(x.shape[:2]) for x in arrays if is_floating(x) and is_class_shape(x.shape)]
    if len(found) != 1:
        shapes = ", ".join(str(list(values.shape)) for values in arrays)
        raise UsageError(
            f"metric {metric} needs exactly one output of class scores [N, K], but the outputs are "
            f"{shapes}: use agreement or MODULE:FUNCTION"
        )
    return found[0]


def _label_among_largest(scores: Array, labels: Array | None, metric: str) -> FloatArray:
    """1 where the label is among the largest scores, else 0."""
    if labels is None:
        raise DataError(
            f"metric {metric} needs labels, which the data does not have: add them as y, or use "
            "the metric agreement"
        )
    samples, classes = scores.shape
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.size != samples or labels.shape[:1] != (samples,):
        raise DataError(
            f"labels of shape {labels.shape} and type {labels.dtype} do not fit {samples} samples: "
            "give one class index per sample, as integers"
        )
    labels = labels.reshape(samples)
    if samples and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"labels from {labels.min()} to {labels.max()} do not fit {classes} classes: class "
            f"indices run from 0 to {classes - 1}"
        )
    if metric == "top1":
        right = np.argmax(scores, axis=1) == labels
    else:
        own = np.take_along_axis(scores, labels[:, np.newaxis].astype(np.intp), axis=1)
        # Counts the label itself; whatever ties with it is taken to come first.
        right = np.sum(scores >= own, axis=1) <= _LARGEST[metric]
    return np.asarray(right & ~np.isnan(scores).any(axis=1), dtype=np.float64)


def _same_class(reference: Array, candidate: Array) -> FloatArray:
    """1 where both networks' largest score is in the same place, else 0."""
    same = np.argmax(reference, axis=1) == np.argmax(candidate, axis=1)
    broken = np.isnan(reference).any(axis=1) | np.isnan(candidate).any(axis=1)
    return np.asarray(same & ~broken, dtype=np.float64)


def _call(
    function: ScoreFunction, name: str, outputs: dict[str, Array], labels: Array | None
) -> FloatArray:
    """The user's scores, checked."""
    try:
        scores = np.asarray(function(outputs, labels), dtype=np.float64)
    except Exception as error:
        raise DataError(
            f"metric {name} failed ({_one_line(error)}): it is called with the outputs by name and "
            "the labels"
        ) from error
    expected = sample_count(list(outputs.values()) if labels is None else [np.asarray(labels)])
    if scores.ndim != 1 or expected not in (None, scores.size):
        wanted = "[N]" if expected is None else f"[{expected}]"
        raise DataError(
            f"metric {name} gave scores of shape {list(scores.shape)} instead of {wanted}: return "
            "one score per sample"
        )
    if not np.isfinite(scores).all():
        raise DataError(f"metric {name} gave NaN or infinite scores: return finite ones")
    return scores


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
