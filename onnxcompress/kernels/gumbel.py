"""Programs chosen by gradient descent through a Gumbel-Softmax, as the poster did it.

Every kernel holds a distribution over the forms on offer. A sample of it, relaxed by a temperature
that falls, mixes the kernels that the forms come closest with; the error of the layer's answers
and the price of the bits are differentiated through it (Jang et al. 2017, arXiv 1611.01144). The
hard choice is used forwards and the relaxed one backwards: straight through.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcompress.kernels.induction import LayerPrograms, fitted
from onnxcompress.kernels.search import Vocabulary, coefficients, factor_of

Array = NDArray[np.float64]

_TINY = 1e-12


@dataclass(frozen=True)
class Schedule:
    """How the descent goes.

    Attributes:
        steps: of Adam.
        rate: its learning rate, in units of logits.
        start: temperature at the beginning.
        end: temperature at the end; in between it falls by a constant factor.
        seed: of the noise.
    """

    steps: int = 300
    rate: float = 0.1
    start: float = 2.0
    end: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Objective:
    """Relative squared error of a layer's answers, and the price of what is chosen.

    Attributes:
        weight: [outputs, channels, k * k].
        metric: covariance of what the layer reads, [channels * k * k] squared.
        nearest: what every form comes closest with, [outputs, channels, forms, k * k].
        costs: price of every form, [forms].
    """

    weight: Array
    metric: Array
    nearest: Array
    costs: Array

    def value(self, shares: Array) -> float:
        """Of a mixture with these shares, [outputs, channels, forms]."""
        missed = self._missed(shares)
        lost = np.einsum("oi,oi->", missed @ self.metric, missed) / self._energy
        return float(lost + (shares * self.costs).sum())

    def gradient(self, shares: Array) -> Array:
        """Of `value` by the shares."""
        slope = -2.0 * (self._missed(shares) @ self.metric) / self._energy
        by_kernel = slope.reshape(self.weight.shape)
        return np.asarray(np.einsum("ocfi,oci->ocf", self.nearest, by_kernel) + self.costs)

    @property
    def _energy(self) -> float:
        flat = self.weight.reshape(len(self.weight), -1)
        return float(np.einsum("oi,oi->", flat @ self.metric, flat))

    def _missed(self, shares: Array) -> Array:
        mixed = np.einsum("ocf,ocfi->oci", shares, self.nearest)
        return np.asarray((self.weight - mixed).reshape(len(self.weight), -1))


def relaxed(logits: Array, noise: Array, temperature: float) -> Array:
    """A sample of the relaxed distribution, softmax((logits + noise) / temperature)."""
    scores = (logits + noise) / temperature
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(scores / scores.sum(axis=-1, keepdims=True))


def through_softmax(shares: Array, slope: Array, temperature: float) -> Array:
    """The gradient by the logits, of a gradient by the shares of `relaxed`."""
    inner = (shares * slope).sum(axis=-1, keepdims=True)
    return np.asarray(shares * (slope - inner) / temperature)


def hardened(shares: Array) -> Array:
    """One for the largest share of each kernel, zero for the others."""
    return np.asarray(np.eye(shares.shape[-1])[shares.argmax(axis=-1)])


def refine(
    weight: Array,
    words: Vocabulary,
    price: float,
    metric: Array | None = None,
    schedule: Schedule | None = None,
) -> LayerPrograms:
    """Find programs for the kernels of a layer by descent.

    Args:
        weight: [outputs, channels, k * k].
        words: the programs on offer; memory grows with their number times that of the kernels.
        price: as for `induction.induce`.
        metric: as for `induction.induce`.
        schedule: how the descent goes.
    """
    schedule = schedule or Schedule()
    _, channels, cells = weight.shape
    metric = np.eye(channels * cells) if metric is None else metric
    objective = Objective(
        weight, metric, nearest_kernels(weight, words, metric), price * words.bits
    )
    chance = np.random.default_rng(schedule.seed)
    logits = np.zeros(objective.nearest.shape[:3])
    first, second = np.zeros_like(logits), np.zeros_like(logits)
    falling = (schedule.end / schedule.start) ** (1.0 / max(1, schedule.steps - 1))
    temperature = schedule.start
    best, least = logits.argmax(axis=-1), np.inf
    for step in range(1, schedule.steps + 1):
        shares = relaxed(logits, chance.gumbel(size=logits.shape), temperature)
        slope = objective.gradient(hardened(shares))
        gradient = through_softmax(shares, slope, temperature)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        moved = first / (1.0 - 0.9**step)
        logits -= schedule.rate * moved / (np.sqrt(second / (1.0 - 0.999**step)) + _TINY)
        temperature *= falling
        chosen = logits.argmax(axis=-1)
        found = objective.value(hardened(logits))
        if found < least:
            best, least = chosen, found
    return fitted(weight, words, best, metric)


def nearest_kernels(weight: Array, words: Vocabulary, metric: Array) -> Array:
    """What every form comes closest with by itself, channel by channel in the channel's metric.

    Args:
        weight: [outputs, channels, k * k].
        words: the forms.
        metric: covariance of what the layer reads, [channels * k * k] squared.

    Returns:
        [outputs, channels, forms, k * k].
    """
    outputs, channels, cells = weight.shape
    found = np.zeros((outputs, channels, len(words.forms), cells))
    for channel in range(channels):
        at = slice(channel * cells, (channel + 1) * cells)
        own = factor_of(metric[at, at])
        for index, form in enumerate(words.forms):
            if form.dimensions:
                numbers = coefficients(weight[:, channel], form, own)
                found[:, channel, index] = numbers @ form.basis
    return found
