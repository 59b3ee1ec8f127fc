"""Tucker-2 decomposition of a convolution weight by higher-order orthogonal iteration (HOOI).

For W [T, S, *k], T output and S input channels, with orthonormal U4 [T, R4] and U3 [S, R3],

    What = C x_0 U4 x_1 U3,   C = W x_0 U4^T x_1 U3^T,   ||W - What||_F^2 = ||W||_F^2 - ||C||_F^2.

The truncated higher-order SVD (HOSVD) takes the factors from the two unfoldings apart; its squared
error is at most the sum of the two discarded energies, and at least the larger of them. HOOI starts
there and takes each factor in turn from the weight projected onto the other, which never raises the
error. Results are float64; a caller rounds them once, after it has absorbed or merged what it will.

References:
    L. De Lathauwer, B. De Moor and J. Vandewalle, "On the best rank-1 and rank-(R1, ..., RN)
    approximation of higher-order tensors", SIAM J. Matrix Anal. Appl. 21 (2000).
    Y.-D. Kim et al., "Compression of deep convolutional neural networks for fast and low power
    mobile applications", ICLR 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import tensorly
from numpy.typing import ArrayLike
from tensorly.decomposition import partial_tucker

from onnxcompress.numerics.low_rank import (
    Array,
    check_rank,
    column_signs,
    finite_array,
    relative_error,
)


@dataclass(frozen=True, eq=False)
class Tucker2:
    """A weight [T, S, *k] as a core between two orthonormal factors, in float64.

    Attributes:
        core: [R4, R3, *k].
        factor_out: [T, R4], orthonormal columns (U4).
        factor_in: [S, R3], orthonormal columns (U3).
        relative_error: ||W - What||_F / ||W||_F; 0 for the zero weight.
    """

    core: Array
    factor_out: Array
    factor_in: Array
    relative_error: float

    def reconstruct(self) -> Array:
        """Multiply everything out.

        Returns:
            The approximation What, [T, S, *k].
        """
        return _mode_product(self.absorb_in(), self.factor_out, axis=0)

    def absorb_in(self) -> Array:
        """Multiply the input factor into the core, for a chain without the first convolution.

        Returns:
            The weight [R4, S, *k] that precedes `factor_out`.
        """
        return _mode_product(self.core, self.factor_in, axis=1)

    def absorb_out(self) -> Array:
        """Multiply the output factor into the core, for a chain without the last convolution.

        Returns:
            The weight [T, R3, *k] that follows `factor_in`.
        """
        return _mode_product(self.core, self.factor_out, axis=0)


@dataclass(frozen=True, eq=False)
class ModeSpectra:
    """The full HOSVD of a weight [T, S, *k] in its two channel modes, in float64.

    One of these predicts the error of every pair of ranks, and starts HOOI for any of them.

    Attributes:
        factor_out: [T, T], left singular vectors of the unfolding [T, S * prod(k)].
        factor_in: [S, S], left singular vectors of the unfolding [S, T * prod(k)].
        values_out: [T], singular values of the first unfolding, largest first, zeros included.
        values_in: [S], those of the second.
    """

    factor_out: Array
    factor_in: Array
    values_out: Array
    values_in: Array

    def truncated_energy_bound(self, rank_out: int, rank_in: int) -> float:
        """Bound the relative error of `tucker2` at two ranks from above.

        Args:
            rank_out: R4, 0 to T.
            rank_in: R3, 0 to S.

        Returns:
            sqrt(energy discarded in both modes / ||W||_F^2), at most sqrt(2) times the error.

        Raises:
            ValueError: A rank is out of range.
        """
        for rank, values, name in (
            (rank_out, self.values_out, "rank_out"),
            (rank_in, self.values_in, "rank_in"),
        ):
            if not 0 <= rank <= values.size:
                raise ValueError(f"{name} is {rank}; it takes 0 to {values.size}")
        total = float(np.linalg.norm(self.values_out))
        if total == 0:
            return 0.0
        discarded = (self.values_out[rank_out:], self.values_in[rank_in:])
        return math.hypot(*(float(np.linalg.norm(part)) / total for part in discarded))


def hosvd(weight: ArrayLike) -> ModeSpectra:
    """Decompose both channel unfoldings of a weight.

    Args:
        weight: [T, S, *k], finite.

    Returns:
        The full factors and the singular values; the entry of largest magnitude in each column of
        a factor is positive.

    Raises:
        ValueError: The weight is not a finite array of two axes or more.
    """
    source = finite_array(weight, name="weight", least_axes=2)
    factor_out, values_out = _left_singular(source.reshape(source.shape[0], -1))
    factor_in, values_in = _left_singular(np.moveaxis(source, 1, 0).reshape(source.shape[1], -1))
    return ModeSpectra(factor_out, factor_in, values_out, values_in)


def tucker2(
    weight: ArrayLike,
    rank_out: int,
    rank_in: int,
    *,
    iterations: int = 50,
    tolerance: float = 1e-9,
    spectra: ModeSpectra | None = None,
) -> Tucker2:
    """Decompose a weight at two given ranks by HOOI, started from the truncated HOSVD.

    Args:
        weight: [T, S, *k], with any number of spatial axes; finite.
        rank_out: R4, 1 to T. Columns beyond R3 * prod(k), which no weight can use, meet zeros in
            the core.
        rank_in: R3, 1 to S; likewise beyond R4 * prod(k).
        iterations: Most sweeps over the two factors; 0 leaves the HOSVD.
        tolerance: Stop when a sweep lowers the relative error by less than this.
        spectra: `hosvd(weight)`, if it is at hand; saves two decompositions.

    Returns:
        Core and factors; the entry of largest magnitude in each column of a factor is positive.

    Raises:
        ValueError: The weight is not a finite array of two axes or more, a rank is out of range, or
            the spectra have other channel counts.
    """
    source = finite_array(weight, name="weight", least_axes=2)
    check_rank(rank_out, full=source.shape[0], name="rank_out")
    check_rank(rank_in, full=source.shape[1], name="rank_in")
    spectra = hosvd(source) if spectra is None else spectra
    if (spectra.values_out.size, spectra.values_in.size) != source.shape[:2]:
        raise ValueError(f"spectra are of another weight than this one of shape {source.shape}")

    best = _start(source, spectra.factor_out[:, :rank_out], spectra.factor_in[:, :rank_in])
    for _ in range(iterations):
        # An error below the tolerance cannot fall by as much as the tolerance.
        if best.relative_error < tolerance:
            break
        swept = _sweep(source, best)
        gain = best.relative_error - swept.relative_error
        best = swept if gain > 0 else best
        if gain < tolerance:
            break
    if best.core.shape[:2] == (rank_out, rank_in):
        return best
    return _project(source, _widened(best.factor_out, rank_out), _widened(best.factor_in, rank_in))


def _start(source: Array, factor_out: Array, factor_in: Array) -> Tucker2:
    """Narrow the factors, at no loss, to what partial_tucker can take.

    A factor wider than the other one feeds has columns that meet zeros in the core. partial_tucker
    would fill them from NumPy's global random state.
    """
    taps = math.prod(source.shape[2:])
    (outputs, rank_out), (inputs, rank_in) = factor_out.shape, factor_in.shape
    if rank_out > rank_in * taps:
        seen = _mode_product(source, factor_in.T, axis=1).reshape(outputs, -1)
        factor_out = _left_singular(seen)[0][:, : rank_in * taps]
    elif rank_in > rank_out * taps:
        seen = np.moveaxis(_mode_product(source, factor_out.T, axis=0), 1, 0).reshape(inputs, -1)
        factor_in = _left_singular(seen)[0][:, : rank_out * taps]
    return _project(source, factor_out, factor_in)


def _sweep(source: Array, start: Tucker2) -> Tucker2:
    """Improve both factors once.

    One sweep a call, because partial_tucker judges convergence by sqrt(||W||^2 - ||C||^2), which
    rounding keeps near 1e-8 of ||W||: on a weight of exactly low rank it would never stop.
    """
    with tensorly.backend_context("numpy", local_threadsafe=True):
        (_, (factor_out, factor_in)), _ = partial_tucker(
            source,
            rank=[start.core.shape[0], start.core.shape[1]],
            modes=[0, 1],
            n_iter_max=1,
            init=(start.core, [start.factor_out, start.factor_in]),
            tol=None,
        )
    return _project(
        source, factor_out * column_signs(factor_out), factor_in * column_signs(factor_in)
    )


def _project(source: Array, factor_out: Array, factor_in: Array) -> Tucker2:
    """Take the best core for two orthonormal factors, and measure what is lost."""
    core = _mode_product(_mode_product(source, factor_out.T, axis=0), factor_in.T, axis=1)
    draft = Tucker2(core, factor_out, factor_in, 0.0)
    return Tucker2(core, factor_out, factor_in, relative_error(source, draft.reconstruct()))


def _mode_product(tensor: Array, matrix: Array, *, axis: int) -> Array:
    """Multiply one axis of a tensor by a matrix [new, old]."""
    product: Array = np.moveaxis(np.tensordot(matrix, tensor, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(product)


def _left_singular(matrix: Array) -> tuple[Array, Array]:
    """Find all left singular vectors [m, m] and as many singular values, padded with zeros."""
    rows, columns = matrix.shape
    if columns > rows:
        # The right vectors, far the longer ones, are never formed; QR costs no accuracy, as the
        # Gram matrix would.
        matrix = scipy.linalg.qr(matrix.T, mode="r")[0][:rows].T
    left, values, _ = scipy.linalg.svd(matrix, full_matrices=True)
    return left * column_signs(left), np.pad(values, (0, rows - values.size))


def _widened(factor: Array, rank: int) -> Array:
    """Append orthonormal columns, at right angles to the present ones, up to a rank."""
    present = factor.shape[1]
    added = scipy.linalg.qr(factor, mode="full")[0][:, present:rank]
    return np.hstack([factor, added * column_signs(added)])
