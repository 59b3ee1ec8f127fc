"""Families of kernels that an atom can make: linear subspaces, found by least squares.

An atom with free numbers spans a subspace of all kernels: an edge filter one of dimension k, a
tetromino at one place a line. A sum of atoms spans the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import log2

import numpy as np
from numpy.typing import NDArray

from onnxcompress.kernels.cost import VALUE_BITS, gamma_bits, words
from onnxcompress.kernels.language import (
    HORIZONTAL,
    VERTICAL,
    EdgeFilter,
    OriginalKernel,
    Program,
    Sum,
    Tetromino,
)
from onnxcompress.kernels.tetrominoes import Placement, cells, placements

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Family:
    """What one atom can make.

    Attributes:
        kind: original, edge-vertical, edge-horizontal, or the name of a tetromino.
        placement: where the tetromino lies.
        lines: the subspace's basis as rows of cells, [d][k * k].
    """

    kind: str
    placement: Placement | None
    lines: tuple[tuple[float, ...], ...]

    @property
    def basis(self) -> Array:
        """[d, k * k]."""
        return np.array(self.lines)

    @property
    def dimensions(self) -> int:
        """How many numbers choose a kernel of the family."""
        return len(self.lines)

    def program(self, values: Sequence[float], size: int) -> Program:
        """The atom with these numbers."""
        found = tuple(float(value) for value in values)
        if self.kind == "original":
            return OriginalKernel(tuple(found[r * size : (r + 1) * size] for r in range(size)))
        if self.placement is None:
            return EdgeFilter(found, self.kind.removeprefix("edge-"))
        at = self.placement
        return Tetromino(at.shape, at.x, at.y, found[0], at.turns, at.mirrored)


@cache
def library(size: int) -> tuple[Family, ...]:
    """All families for kernels of `size`, but for the original kernel."""
    grid = np.eye(size)
    ones = np.ones(size)
    edges = (
        Family(f"edge-{VERTICAL}", None, _rows([np.outer(ones, line) for line in grid])),
        Family(f"edge-{HORIZONTAL}", None, _rows([np.outer(line, ones) for line in grid])),
    )
    return (*edges, *map(_laid(size), placements(size)))


@cache
def original(size: int) -> Family:
    """Every kernel."""
    return Family("original", None, _rows(list(np.eye(size * size).reshape(-1, size, size))))


def _laid(size: int) -> Callable[[Placement], Family]:
    def family(placement: Placement) -> Family:
        mask = np.zeros((size, size))
        mask[tuple(zip(*cells(placement), strict=True))] = 1.0
        return Family(placement.shape, placement, _rows([mask]))

    return family


def _rows(kernels: Sequence[Array]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(v) for v in kernel.ravel()) for kernel in kernels)


@dataclass(frozen=True)
class Form:
    """A program without its numbers: a sum of families.

    Attributes:
        terms: the families; none for the kernel of zeros.
        size: k of the kernel k x k.
    """

    terms: tuple[Family, ...]
    size: int

    @property
    def basis(self) -> Array:
        """[d, k * k], the bases of the terms one below the other."""
        rows = [term.basis for term in self.terms]
        return np.concatenate(rows) if rows else np.empty((0, self.size**2))

    @property
    def dimensions(self) -> int:
        """How many numbers the program has."""
        return sum(term.dimensions for term in self.terms)

    def bits(self, value_bits: int = VALUE_BITS) -> float:
        """What `cost.bits` says of the program."""
        nodes = len(self.terms) + (len(self.terms) != 1)
        length = gamma_bits(len(self.terms) + 1) if len(self.terms) != 1 else 0.0
        return nodes * log2(words(self.size)) + length + value_bits * self.dimensions

    def program(self, values: Sequence[float]) -> Program:
        """The program with these numbers, one after the other."""
        terms, at = [], 0
        for term in self.terms:
            terms.append(term.program(values[at : at + term.dimensions], self.size))
            at += term.dimensions
        return terms[0] if len(terms) == 1 else Sum(tuple(terms))


@cache
def forms(size: int, terms: int) -> tuple[Form, ...]:
    """All programs that are sums of exactly so many different families."""
    return tuple(Form(chosen, size) for chosen in combinations(library(size), terms))


def levels(size: int, most: int) -> Iterator[tuple[Form, ...]]:
    """Programs by how many terms they have, from none to `most`."""
    for terms in range(most + 1):
        yield forms(size, terms)
