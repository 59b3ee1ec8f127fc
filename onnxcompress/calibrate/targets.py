"""What the answers of samples are held to: labels, or the network's own answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxcompress.gradients.answer import Answer
from onnxcompress.runtime import Array

_TINY = 1e-30


@dataclass(frozen=True)
class Targets:
    """The answers of some samples of the original network, and what they are held to.

    Attributes:
        answer: what the loss is computed from.
        classes: class of every sample [samples]; empty where the answer is not a class.
        scores: log-probabilities [samples, K] of the network itself.
        energies: by output, the sum of squares of every sample [samples].
        seed: of random classes and signs.
    """

    answer: Answer
    classes: NDArray[np.int64]
    scores: NDArray[np.float64]
    energies: Mapping[str, NDArray[np.float64]]
    seed: int

    def given(self, rows: NDArray[np.int64]) -> Array:
        """The classes of some samples as distributions [rows, K]."""
        return _one_hot(self.classes[rows], self.answer.classes)

    def drawn(self, rows: NDArray[np.int64]) -> Array:
        """Classes drawn from the network's own probabilities, as distributions [rows, K]."""
        uniform = np.random.default_rng([self.seed, 1]).random(len(self.scores))[rows]
        below = np.cumsum(np.exp(self.scores[rows]), axis=1)
        chosen = (below < uniform[:, np.newaxis] * below[:, -1:]).sum(axis=1)
        return _one_hot(chosen, self.answer.classes)

    def signs(self, output: str, rows: NDArray[np.int64], shape: tuple[int, ...]) -> Array:
        """Random signs [rows, ...], divided by the norm of every sample's output."""
        norms = np.sqrt(self.energies[output][rows])
        # An output that is zero everywhere has nothing to be relative to.
        scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0.0)
        which, each = self.answer.outputs.index(output), prod(shape) // len(rows)
        drawn = [
            np.random.default_rng([self.seed, 2, which, row]).integers(0, 2, each) * 2 - 1
            for row in rows.tolist()
        ]
        values: Array = (np.stack(drawn) * scale[:, np.newaxis]).astype(np.float32)
        return values.reshape(shape)

    def losses(
        self,
        outputs: Mapping[str, Array],
        rows: NDArray[np.int64],
        reference: Mapping[str, Array],
    ) -> NDArray[np.float64]:
        """The loss of every sample.

        Args:
            outputs: the logits, or every floating-point output, of some samples.
            rows: which samples they are.
            reference: the network's own outputs of these samples; not read for classes.
        """
        if self.answer.classes:
            scores = log_probabilities(outputs[self.answer.logits], self.answer)
            found: NDArray[np.float64] = -scores[np.arange(len(rows)), self.classes[rows]]
            return found
        total = np.zeros(len(rows))
        for name in self.answer.outputs:
            moved = outputs[name].astype(np.float64) - reference[name].astype(np.float64)
            squared = np.square(moved).reshape(len(rows), -1).sum(axis=1)
            energy = self.energies[name][rows]
            total += 0.5 * np.divide(squared, energy, out=np.zeros(len(rows)), where=energy > 0.0)
        return total


def log_probabilities(logits: Array, answer: Answer) -> NDArray[np.float64]:
    """Log-probabilities [samples, K] from a classifier's scores."""
    rows = logits.astype(np.float64).reshape(len(logits), answer.classes)
    if answer.probabilities:
        rows = np.log(np.maximum(rows, _TINY))
    largest = rows.max(axis=1, keepdims=True)
    shifted = rows - largest
    total = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    result: NDArray[np.float64] = shifted - total
    return result


def are_probabilities(logits: Array) -> bool:
    """Whether scores [samples, ...] are distributions already."""
    rows = logits.astype(np.float64).reshape(len(logits), -1)
    return bool((rows >= 0.0).all() and np.allclose(rows.sum(axis=1), 1.0, rtol=0.0, atol=1e-3))


def _one_hot(classes: NDArray[np.int64], count: int) -> Array:
    rows = np.zeros((len(classes), count), dtype=np.float32)
    rows[np.arange(len(classes)), classes] = 1.0
    return rows
