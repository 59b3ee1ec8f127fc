"""Sums of products, in float64 and in place, from which moments are averaged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk

from onnxcompress.analyse.moments import Moments
from onnxcompress.errors import ModelError

Array = NDArray[np.float64]
Real = NDArray[np.generic]

LIMIT_BYTES = 12 * 2**30
"""Of memory for the moments of one layer, with what solving for its weights takes besides."""

_BLOCK_BYTES = 2**26


class Sums:
    """Running sums of x x', y x', x, y and y^2 of one layer.

    Args:
        layer: its name, for messages.
        groups: independent problems.
        outputs: answers per group.
        features: numbers that one answer of a group reads.
        copies: how many matrices [features, features] the caller holds at once.

    Raises:
        ModelError: they would not fit into memory.
    """

    def __init__(
        self, layer: str, groups: int, outputs: int, features: int, *, copies: int = 4
    ) -> None:
        needed = 8 * groups * features * (copies * features + outputs)
        if needed > LIMIT_BYTES:
            raise ModelError(
                f"the moments of '{layer}' ({features} inputs) take {needed / 2**30:.1f} GiB, more "
                f"than {LIMIT_BYTES / 2**30:.0f}: prune what feeds it first, or exclude it"
            )
        # In Fortran's order, so that BLAS adds to it in place; only one triangle is kept up.
        self._gram = np.zeros((features, features, groups), order="F")
        self._mean = np.zeros((groups, features))
        self._cross = np.zeros((groups, outputs, features))
        self._answer = np.zeros((groups, outputs))
        self._energy = np.zeros((groups, outputs))
        self.rows = 0

    def add(self, read: Real, answers: Real) -> None:
        """Take in some rows.

        Args:
            read: x, [rows, groups, features].
            answers: y, [rows, groups, outputs].
        """
        count = max(1, _BLOCK_BYTES // (8 * max(1, read.shape[1] * read.shape[2])))
        for start in range(0, len(read), count):
            self._add(
                read[start : start + count].astype(np.float64),
                answers[start : start + count].astype(np.float64),
            )
        self.rows += len(read)

    def _add(self, read: Array, answers: Array) -> None:
        if read.shape[1] == 1:
            dsyrk(1.0, read[:, 0].T, beta=1.0, c=self._gram[:, :, 0], overwrite_c=1, lower=1)
            self._cross[0] += answers[:, 0].T @ read[:, 0]
        else:
            across = read.transpose(1, 2, 0)
            self._gram += np.matmul(across, read.transpose(1, 0, 2)).transpose(1, 2, 0)
            self._cross += np.matmul(answers.transpose(1, 2, 0), read.transpose(1, 0, 2))
        self._mean += read.sum(axis=0)
        self._answer += answers.sum(axis=0)
        self._energy += np.square(answers).sum(axis=0)

    def moments(self, *others: Sums) -> Moments:
        """The averages over what these sums have seen together; the others stay as they are."""
        rows = max(1, self.rows + sum(other.rows for other in others))
        every = (self, *others)
        gram = self._gram.copy(order="F")
        for other in others:
            gram += other._gram
        gram /= rows
        if gram.shape[2] == 1:
            _mirror(gram[:, :, 0])
        return Moments(
            np.ascontiguousarray(gram.transpose(2, 0, 1)),
            sum((one._mean for one in every), np.zeros_like(self._mean)) / rows,
            sum((one._cross for one in every), np.zeros_like(self._cross)) / rows,
            sum((one._answer for one in every), np.zeros_like(self._answer)) / rows,
            sum((one._energy for one in every), np.zeros_like(self._energy)) / rows,
            rows,
        )


def _mirror(matrix: Array) -> None:
    """Fill the upper triangle from the lower one, block by block."""
    size, step = len(matrix), 1024
    for start in range(0, size, step):
        stop = min(start + step, size)
        block = matrix[start:stop, start:stop]
        block[...] = np.tril(block) + np.tril(block, -1).T
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T
