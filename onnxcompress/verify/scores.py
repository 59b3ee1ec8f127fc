"""How far apart two networks' outputs are, as far as it matters, in one number to plan by.

What all class scores of a sample have in common changes no class and no probability, and can be
most of their energy: the last layer of SqueezeNet ends in a ReLU. Scores are compared without it,
and probabilities by their logarithms. For single rewritten layers, that follows the
Kullback-Leibler divergence on images not seen better than the plain error does on SqueezeNet, and
as well on ResNet-20; there the divergence itself, on images that the network was trained on and is
sure of, says less (docs/repair.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

import numpy as np

from onnxcompress.analyse.answers import is_classifier
from onnxcompress.calibrate.targets import are_probabilities
from onnxcompress.verify.fidelity import Array, is_floating
from onnxcompress.verify.intervals import FloatArray

_TINY = 1e-9
"""Probabilities below this are rounding of a softmax in float32."""


class ScoreError:
    """Relative squared error of a classifier's scores, batch by batch."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0
        self._applies = False

    def add(self, reference: Sequence[Array], candidate: Sequence[Array]) -> None:
        """Take one batch into account: all outputs of both networks, in graph order."""
        floating = [at for at, output in enumerate(reference) if is_floating(np.asarray(output))]
        self._applies = is_classifier([np.shape(reference[at]) for at in floating])
        if not self._applies:
            return
        expected, found = (np.asarray(outputs[floating[0]]) for outputs in (reference, candidate))
        logarithms = are_probabilities(expected)
        expected, found = (_centred(scores, logarithms) for scores in (expected, found))
        self._signal += float(np.square(expected).sum())
        self._noise += float(np.square(found - expected).sum())

    @property
    def value(self) -> float | None:
        """The error; None where the network does not answer with one class."""
        if not self._applies:
            return None
        if not isfinite(self._noise):
            return inf
        if self._signal > 0.0:
            return self._noise / self._signal
        return inf if self._noise > 0.0 else 0.0


def _centred(scores: Array, probabilities: bool) -> FloatArray:
    """Scores [N, K, ...] without what those of a sample have in common, [N, K]."""
    rows = scores.astype(np.float64).reshape(len(scores), -1)
    if probabilities:
        rows = np.log(np.maximum(rows, _TINY))
    return np.asarray(rows - rows.mean(axis=1, keepdims=True))
