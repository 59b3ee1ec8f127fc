"""A few kernels that a whole layer mixes: every kernel is a sum of all, each times a number.

Spatial filtering and mixing fall apart: each input channel is filtered by every atom, and a 1x1
convolution mixes what comes out. With as many atoms as a kernel has cells nothing is lost; with
fewer, the error in the weights is at least that of the spatial mode's SVD.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxcompress.kernels.descent import descended
from onnxcompress.kernels.feedback import damped, mean_metric

Array = NDArray[np.float64]

_ROUNDS = 6


@dataclass(frozen=True)
class LayerAtoms:
    """The kernels of a layer as sums of atoms.

    Attributes:
        atoms: [K, cells].
        numbers: what they are times, [outputs, channels, K].
    """

    atoms: Array
    numbers: Array

    @property
    def weights(self) -> Array:
        """[outputs, channels, cells]."""
        return np.asarray(self.numbers @ self.atoms)


def learn_atoms(weight: Array, count: int, metric: Array | None = None) -> LayerAtoms:
    """Find atoms for a layer.

    Args:
        weight: [outputs, channels, cells].
        count: of atoms; at most as many as there are cells.
        metric: covariance of what the layer reads, [channels * cells] squared; None weighs weights,
            for which the SVD of the kernels is the best there is.
    """
    cells = weight.shape[2]
    if count >= cells:
        return LayerAtoms(np.eye(cells), weight.copy())
    own = np.eye(cells) if metric is None else mean_metric(damped(metric), cells)
    root = np.linalg.cholesky(own)
    _, _, right = np.linalg.svd(weight.reshape(-1, cells) @ root, full_matrices=False)
    atoms = right[:count] @ np.linalg.inv(root)
    found = LayerAtoms(atoms, (weight @ root) @ right[:count].T)
    if metric is None:
        return found
    for _ in range(_ROUNDS):
        found = _with_atoms(weight, _with_numbers(weight, found, metric), metric)
    return _with_numbers(weight, found, metric)


def _with_numbers(weight: Array, found: LayerAtoms, metric: Array) -> LayerAtoms:
    """The same atoms with numbers that come closer, output by output."""

    def normal(numbers: Array) -> Array:
        return np.asarray(_answers(numbers @ found.atoms, metric) @ found.atoms.T)

    right = _answers(weight, metric) @ found.atoms.T
    return replace(found, numbers=descended(normal, right, found.numbers))


def _with_atoms(weight: Array, found: LayerAtoms, metric: Array) -> LayerAtoms:
    """The same numbers with atoms that come closer."""

    def gathered(answers: Array) -> Array:
        return np.asarray(np.einsum("ock,oci->ki", found.numbers, answers, optimize=True))

    def normal(atoms: Array) -> Array:
        return gathered(_answers(found.numbers @ atoms, metric))

    aim = gathered(_answers(weight, metric))
    return replace(found, atoms=descended(normal, aim, found.atoms))


def _answers(kernels: Array, metric: Array) -> Array:
    """Kernels [outputs, channels, cells] times the metric."""
    return np.asarray((kernels.reshape(len(kernels), -1) @ metric).reshape(kernels.shape))
