"""Approximating a layer's kernels one input channel after the other, with errors handed on.

What the kernels of one channel miss, those of the channels behind it make up for as well as they
can before they are approximated themselves: optimal brain surgery (Hassibi and Stork 1993) with
whole kernels in place of weights, in the order that a Cholesky factor gives (Frantar and Alistarh
2022, arXiv 2210.17323, for single weights).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky

Array = NDArray[np.float64]

DAMPING = 1e-3
"""Of the mean variance, added to every variance: directions that no sample shows stay cheap, but
not free."""


def damped(metric: Array) -> Array:
    """A metric in which every error counts a little."""
    return np.asarray(metric + DAMPING * np.trace(metric) / len(metric) * np.eye(len(metric)))


def mean_metric(metric: Array, cells: int) -> Array:
    """What an error of a kernel costs in the mean over input channels, [cells, cells]."""
    channels = len(metric) // cells
    own = metric.reshape(channels, cells, channels, cells)[range(channels), :, range(channels)]
    return np.asarray(own.mean(axis=0))


class Handing:
    """The order of approximation for layers that read the same inputs.

    Args:
        metric: covariance of what the layer reads, [channels * cells] squared; positive definite.
        cells: numbers per kernel.
    """

    def __init__(self, metric: Array, cells: int) -> None:
        self._cells = cells
        # With the upper factor U of the inverse, what is left from channel c on has the inverse
        # with first block U_cc' U_cc and first row U_cc' U_c.
        self._upper = cholesky(np.linalg.inv(metric), lower=False)
        blocks = range(0, len(metric), cells)
        self._corners = [np.linalg.inv(self._upper[a : a + cells, a : a + cells]) for a in blocks]

    @property
    def metrics(self) -> list[Array]:
        """Per channel, what an error costs once all channels behind have made up for it."""
        return [corner @ corner.T for corner in self._corners]

    def through(self, weight: Array, nearest: Callable[[int, Array], Array]) -> Array:
        """Approximate every channel.

        Args:
            weight: [outputs, channels, cells].
            nearest: given a channel and what its kernels should be, [outputs, cells], what they
                become.

        Returns:
            [outputs, channels, cells].
        """
        cells, outputs = self._cells, len(weight)
        left = weight.reshape(outputs, -1).copy()
        found = np.empty_like(left)
        for channel, corner in enumerate(self._corners):
            at = slice(channel * cells, (channel + 1) * cells)
            found[:, at] = nearest(channel, left[:, at])
            behind = slice((channel + 1) * cells, None)
            missed = (left[:, at] - found[:, at]) @ corner
            left[:, behind] -= missed @ self._upper[at, behind]
        return found.reshape(weight.shape)
