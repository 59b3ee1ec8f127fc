"""Programs for all kernels of a layer at once, by what they do to the layer's answers.

Input channels are gone through one after the other, errors handed on (`feedback.py`). In the end
all numbers of an output are fitted together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from onnxcompress.kernels.families import Form
from onnxcompress.kernels.feedback import Handing, damped
from onnxcompress.kernels.language import Program
from onnxcompress.kernels.search import (
    Projections,
    Vocabulary,
    best_forms,
    coefficients,
    plain_projections,
)

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_RIDGE = 1e-12


@dataclass(frozen=True)
class LayerPrograms:
    """A program for every kernel of a layer.

    Attributes:
        words: the programs that were on offer.
        choice: index of the form of every kernel, [outputs, channels].
        values: its numbers, [outputs, channels, most dimensions]; zeros behind the last.
    """

    words: Vocabulary
    choice: Indices
    values: Array

    @property
    def weights(self) -> Array:
        """What the programs evaluate to, [outputs, channels, k * k]."""
        found = np.zeros((*self.choice.shape, self.words.size**2))
        for index in np.unique(self.choice):
            form = self.words.forms[index]
            where = self.choice == index
            found[where] = self.values[where][:, : form.dimensions] @ form.basis
        return found

    @property
    def bits(self) -> float:
        """Description length of all programs."""
        return float(self.words.bits[self.choice].sum())

    @property
    def numbers(self) -> int:
        """How many weights the programs hold together."""
        dimensions = np.array([form.dimensions for form in self.words.forms])
        return int(dimensions[self.choice].sum())

    def form(self, output: int, channel: int) -> Form:
        """The program of one kernel, without its numbers."""
        return self.words.forms[int(self.choice[output, channel])]

    def program(self, output: int, channel: int) -> Program:
        """The program of one kernel."""
        form = self.form(output, channel)
        return form.program(self.values[output, channel, : form.dimensions].tolist())

    def shares(self) -> dict[str, float]:
        """Fraction of kernels by kinds of atoms: zero, a name, or names joined by +."""
        names = [" + ".join(t.kind for t in form.terms) or "zero" for form in self.words.forms]
        found: dict[str, float] = {}
        for index, count in zip(*np.unique(self.choice, return_counts=True), strict=True):
            found[names[index]] = found.get(names[index], 0.0) + count / self.choice.size
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))


class Induction:
    """Finds programs for the kernels of one layer, at any price.

    Args:
        weight: [outputs, channels, k * k].
        words: the programs on offer.
        metric: covariance of what the layer reads, [channels * k * k] squared; None weighs weights.
    """

    def __init__(self, weight: Array, words: Vocabulary, metric: Array | None = None) -> None:
        self._weight, self._words = weight, words
        self._metric = None if metric is None else damped(metric)
        flat = weight.reshape(len(weight), -1)
        weighed = flat if metric is None else flat @ metric
        self._energy = float((weighed * flat).sum())
        self._handing: Handing | None = None
        self._within = [plain_projections(words)]
        if self._metric is not None:
            self._handing = Handing(self._metric, weight.shape[2])
            self._within = [Projections(words, own) for own in self._handing.metrics]

    def __call__(self, price: float) -> LayerPrograms:
        """The programs at a price: the part of the layer's squared answer that a bit is worth.

        With price 0 every kernel stays what it is, as the original kernel.
        """
        outputs, channels, cells = self._weight.shape
        cost = price * self._energy
        if self._handing is None:
            found = best_forms(self._weight.reshape(-1, cells), cost, self._within[0])
            chosen = found.choice.reshape(outputs, channels)
            return fitted(self._weight, self._words, chosen, None)
        chosen = np.zeros((outputs, channels), dtype=np.intp)

        def nearest(channel: int, target: Array) -> Array:
            within = self._within[channel]
            chosen[:, channel] = best_forms(target, cost, within).choice
            kernels = np.empty_like(target)
            for index in np.unique(chosen[:, channel]):
                where = chosen[:, channel] == index
                form = self._words.forms[index]
                kernels[where] = coefficients(target[where], form, within.factor) @ form.basis
            return kernels

        self._handing.through(self._weight, nearest)
        return fitted(self._weight, self._words, chosen, self._metric)


def induce(
    weight: Array, words: Vocabulary, price: float, metric: Array | None = None
) -> LayerPrograms:
    """Find programs for the kernels of a layer; see `Induction`."""
    return Induction(weight, words, metric)(price)


def fitted(
    weight: Array, words: Vocabulary, choice: Indices, metric: Array | None
) -> LayerPrograms:
    """Forms with the numbers that come closest to a layer's answers, all of an output together."""
    outputs, channels, cells = weight.shape
    most = max(words.forms[index].dimensions for index in np.unique(choice))
    values = np.zeros((outputs, channels, most))
    programs = LayerPrograms(words, choice, values)
    if metric is None:
        for index in np.unique(choice):
            where, form = choice == index, words.forms[index]
            values[where, : form.dimensions] = coefficients(weight[where], form)
        return programs
    ridge = _RIDGE * np.trace(metric) / len(metric)
    for output in range(outputs):
        bases = [programs.form(output, channel).basis for channel in range(channels)]
        sizes = [len(basis) for basis in bases]
        if not sum(sizes):
            continue
        if all(size == cells for size in sizes):
            # Nothing is left out: rounding must not touch it.
            values[output, :, :cells] = weight[output]
            continue
        spread = np.zeros((sum(sizes), channels * cells))
        ends = np.cumsum(sizes)
        for channel, (end, basis) in enumerate(zip(ends, bases, strict=True)):
            spread[end - len(basis) : end, channel * cells : (channel + 1) * cells] = basis
        weighed = spread @ metric
        gram = weighed @ spread.T
        # Atoms of a sum may overlap so that some of their numbers are free.
        gram[np.diag_indices_from(gram)] += ridge
        solved = cho_solve(cho_factor(gram), weighed @ weight[output].ravel())
        for channel, (end, size) in enumerate(zip(ends, sizes, strict=True)):
            values[output, channel, :size] = solved[end - size : end]
    return replace(programs, values=values)


def relative_error(weight: Array, other: Array, metric: Array | None = None) -> float:
    """Relative squared error of the answers when `other` takes the place of `weight`.

    Args:
        weight: [outputs, channels, k * k].
        other: of the same shape.
        metric: as for `induce`.
    """
    flat = weight.reshape(len(weight), -1)
    missed = flat - other.reshape(len(weight), -1)
    if metric is None:
        return float((missed**2).sum() / (flat**2).sum())

    def energy(rows: Array) -> float:
        return float(np.einsum("oi,oi->", rows @ metric, rows))

    return max(0.0, energy(missed)) / energy(flat)
