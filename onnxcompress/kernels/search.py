"""The best program of every kernel under a price per bit, found by exhausting what could be it.

Programs are sums of atoms; for given atoms the numbers follow by least squares in a metric. Atoms
are added level by level: as errors are not negative, a kernel whose best program is cheaper than
the shortest program with one atom more is settled (a bound that is never too high), and only the
others are looked at again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from onnxcompress.kernels.cost import VALUE_BITS
from onnxcompress.kernels.families import Form, levels, original

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_RANK = 1e-10
"""Directions of a form's basis that are this much shorter than the longest one do not count."""

_CELLS = 2**23
"""Numbers of a table of scores that are held at once."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """All programs that a search looks at.

    Attributes:
        forms: sums of at most `most` atoms, and the original kernel at the end.
        starts: where each number of terms begins in `forms`; the last entry is their end.
        bits: description length of each.
    """

    forms: tuple[Form, ...]
    starts: tuple[int, ...]
    bits: Array

    @property
    def size(self) -> int:
        """How wide the kernels are."""
        return self.forms[0].size


@lru_cache(maxsize=8)
def vocabulary(size: int, most: int, value_bits: int = VALUE_BITS) -> Vocabulary:
    """Sums of up to `most` atoms for kernels of `size`, and the original kernel."""
    found: list[Form] = []
    starts = [0]
    for level in levels(size, most):
        found.extend(level)
        starts.append(len(found))
    found.append(Form((original(size),), size))
    lengths = np.array([form.bits(value_bits) for form in found])
    return Vocabulary(tuple(found), tuple(starts), lengths)


@dataclass(frozen=True)
class Found:
    """What a search found for every kernel.

    Attributes:
        choice: index of the form in the vocabulary, [n].
        loss: squared error in the metric, [n].
    """

    choice: Indices
    loss: Array


class Projections:
    """Which part of a kernel every form of a vocabulary can make, in one metric.

    Args:
        words: the vocabulary.
        metric: what an error costs, positive semi-definite [k * k, k * k]; None for its square.
    """

    def __init__(self, words: Vocabulary, metric: Array | None = None) -> None:
        self.words = words
        self.factor = factor_of(metric) if metric is not None else np.eye(words.size**2)
        self._tables: dict[tuple[int, int], Array] = {}

    def table(self, begin: int, end: int) -> Array:
        """Of the forms from `begin` to `end`; made when it is first asked for."""
        if (begin, end) not in self._tables:
            bases = [form.basis @ self.factor for form in self.words.forms[begin:end]]
            self._tables[begin, end] = projections(bases)
        return self._tables[begin, end]


@lru_cache(maxsize=4)
def plain_projections(words: Vocabulary) -> Projections:
    """Where errors count by their squares."""
    return Projections(words)


def best_forms(kernels: Array, price: float, within: Projections) -> Found:
    """The form of least error + price * bits, kernel by kernel.

    Args:
        kernels: [n, k * k].
        price: error that a bit is worth.
        within: what may be chosen, and the metric.

    Returns:
        Exactly the best: of equals the first, in order of the vocabulary.
    """
    words = within.words
    white = kernels @ within.factor
    energy = np.einsum("ni,ni->n", white, white)
    last = len(words.forms) - 1
    choice = np.full(len(kernels), last)
    value = np.full(len(kernels), price * words.bits[last])
    loss = np.zeros(len(kernels))
    for begin, end in zip(words.starts, words.starts[1:], strict=False):
        costs = price * words.bits[begin:end]
        open_ = np.flatnonzero(value > costs.min())
        if not len(open_):
            continue
        table = within.table(begin, end)
        for part in np.array_split(open_, -(-len(open_) * (end - begin) // _CELLS)):
            rest = np.maximum(energy[part] - table @ _squares(white[part]), 0.0)
            scores = rest + costs[:, np.newaxis]
            at = scores.argmin(axis=0)
            better = np.flatnonzero(scores[at, np.arange(len(part))] < value[part])
            where, at = part[better], at[better]
            choice[where] = begin + at
            value[where] = scores[at, better]
            loss[where] = rest[at, better]
    return Found(choice, loss)


def coefficients(kernels: Array, form: Form, factor: Array | None = None) -> Array:
    """The numbers with which a form comes closest to each kernel, [n, d].

    Args:
        kernels: [n, k * k].
        form: the program without its numbers.
        factor: L of the metric L L' that an error counts in; None for its square.
    """
    basis, target = form.basis, kernels
    if factor is not None:
        basis, target = basis @ factor, kernels @ factor
    return np.asarray(target @ np.linalg.pinv(basis, rcond=_RANK**0.5))


def projections(bases: Sequence[Array]) -> Array:
    """For every basis [d, m] the part of x x' that its span holds: upper triangles, [n, m (m+1)/2].

    The inner product with `_squares(x)` is the squared length of x's projection.
    """
    cells = bases[0].shape[1]
    found = np.zeros((len(bases), cells, cells))
    by_size: dict[int, list[int]] = {}
    for at, basis in enumerate(bases):
        by_size.setdefault(len(basis), []).append(at)
    for size, where in by_size.items():
        if size:
            stacked = np.stack([bases[at] for at in where])
            # Of rows that say the same, one is enough.
            _, lengths, right = np.linalg.svd(stacked, full_matrices=False)
            firm = lengths > _RANK**0.5 * lengths[:, :1]
            kept = right * firm[:, :, np.newaxis]
            found[where] = np.swapaxes(kept, 1, 2) @ kept
    rows, columns = np.triu_indices(cells)
    doubled = np.where(rows == columns, 1.0, 2.0)
    return np.asarray(found[:, rows, columns] * doubled)


def _squares(vectors: Array) -> Array:
    """Upper triangles of x x', one column per vector."""
    rows, columns = np.triu_indices(vectors.shape[1])
    return np.asarray((vectors[:, rows] * vectors[:, columns]).T)


def factor_of(metric: Array) -> Array:
    """L with metric = L L'."""
    values, vectors = np.linalg.eigh(metric)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
