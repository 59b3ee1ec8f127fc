"""Low rank in the metric of the data: E|W x - M x|^2 in place of |W - M|^2.

With R the covariance of x, the best M of rank r is U U' W, U the first r eigenvectors of
W R W', the principal components of the answers; what is lost is the rest of its eigenvalues. The
input side of a convolution is projected by a whitening of its channels, and the core between the
two is least squares (SEEDS: Robin's low-rank cousin of LNR, closed form).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, eigh

from onnxcompress.numerics.low_rank import LowRank, column_signs, relative_error
from onnxcompress.numerics.tucker import Tucker2

Array = NDArray[np.float64]
_RIDGE = 1e-9
_FLOOR = 1e-9
_EXACT_FEATURES = 2400
"""Above this many inputs what a projected input side loses is estimated without least squares."""

_GRID = 8
_MOST_UNKNOWNS = 1600
_FEW_UNKNOWNS = 600
SWEEPS = 3


@dataclass(frozen=True)
class Answers:
    """Principal components of a layer's answers.

    Attributes:
        basis: eigenvectors [h, h], the largest first.
        energies: their eigenvalues [h].
    """

    basis: Array
    energies: Array

    @property
    def lost(self) -> Array:
        """Share of the variance that is lost at rank 0, 1, ..., h; ones where there is none."""
        return relative(rests(self.energies))


def rests(energies: Array) -> Array:
    """What is left of a spectrum [n] behind its first 0, 1, ..., n values, [n + 1]."""
    left = np.maximum(energies.sum() - np.cumsum(energies), 0.0)
    return np.concatenate([[energies.sum()], left])


def answers(weight: Array, covariance: Array) -> Answers:
    """Principal components of W x.

    Args:
        weight: W [h, d].
        covariance: R [d, d] of x.
    """
    values, vectors = eigh(weight @ covariance @ weight.T)
    basis = vectors[:, ::-1]
    return Answers(basis * column_signs(basis), np.maximum(values[::-1], 0.0))


def data_svd(weight: Array, covariance: Array, rank: int) -> LowRank:
    """The matrix of a given rank whose answers are closest: U U' W.

    Args:
        weight: W [h, d].
        covariance: R [d, d] of x.
        rank: at most min(h, d).
    """
    basis = answers(weight, covariance).basis[:, :rank]
    found = LowRank(basis, basis.T @ weight, 0.0)
    return replace(found, relative_error=relative_error(weight, found.reconstruct()))


def relative(lost: Array) -> Array:
    """Losses relative to the loss of everything, exactly 0 at the end."""
    if not lost[0] > 0.0:
        return np.where(np.arange(len(lost)) < len(lost) - 1, 1.0, 0.0)
    found: Array = np.minimum.accumulate(lost / lost[0])
    found[-1] = 0.0
    return found


def input_projection(weight: Array, covariance: Array) -> tuple[Array, Array]:
    """Which mixtures of input channels matter most to a convolution.

    Channels are whitened by their covariance, the average over kernel positions.

    Args:
        weight: W [T, S, *k].
        covariance: R [S * K, S * K] of patches, K the size of the kernel.

    Returns:
        (V [S, S], energies [S]): the first r columns of V mix S channels into r; energies are what
        each contributes, as if positions were uncorrelated.
    """
    channels, taps = weight.shape[1], prod(weight.shape[2:])
    blocks = covariance.reshape(channels, taps, channels, taps)
    pooled = np.einsum("ikjk->ij", blocks) / taps
    values, vectors = eigh(pooled)
    values = np.maximum(values, _FLOOR * max(values[-1], np.finfo(np.float64).tiny))
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    unfolded = np.moveaxis(weight.reshape(len(weight), channels, taps), 1, 2)
    stacked = unfolded.reshape(-1, channels) @ root
    energies, mixtures = eigh(stacked.T @ stacked)
    return inverse @ mixtures[:, ::-1], np.maximum(energies[::-1], 0.0)


def projection_loss(weight: Array, covariance: Array, mixture: Array) -> float:
    """What mixing the input channels loses, E|W x - C V'x|^2 with the best C.

    Args:
        weight: W [T, S, *k].
        covariance: R [S * K, S * K] of patches.
        mixture: V [S, r].
    """
    flat = weight.reshape(len(weight), -1)
    half, gram = _mixed(covariance, mixture, weight.shape[1])
    cross = flat @ half.T
    total = float(np.einsum("hd,hd->", flat @ covariance, flat))
    return max(0.0, total - float(np.einsum("hr,hr->", _solved(gram, cross), cross)))


def data_tucker2(
    weight: Array,
    covariance: Array,
    rank_out: int,
    rank_in: int,
    *,
    sweeps: int = SWEEPS,
    most_unknowns: int = _MOST_UNKNOWNS,
) -> Tucker2:
    """Tucker-2 in the metric of the data: mixtures in, core, components out, in turns.

    For given mixtures of the input channels the best core and output factor are the principal
    components of a least-squares fit; for given core and output factor the best mixtures are least
    squares as well.

    Args:
        weight: W [T, S, *k].
        covariance: R [S * K, S * K] of patches.
        rank_out: R_out, at most T.
        rank_in: R_in, at most S.
        sweeps: how often the mixtures are fitted again.
        most_unknowns: not at all where there are more of them, S * R_in: solving takes their cube.
    """
    rows, channels = weight.shape[:2]
    if rank_in >= channels:
        core, basis = _components(weight, covariance, np.eye(channels), rank_out)
        found = Tucker2(core, basis, np.eye(channels), 0.0)
        return replace(found, relative_error=relative_error(weight, found.reconstruct()))
    flat = weight.reshape(rows, -1)
    outer = answers(flat, covariance).basis[:, :rank_out]
    inner = (outer.T @ flat).reshape(rank_out, *weight.shape[1:])
    mixture = _orthonormal(input_projection(inner, covariance)[0][:, :rank_in])
    core, basis = _components(weight, covariance, mixture, rank_out)
    if channels * rank_in <= most_unknowns:
        for _ in range(sweeps):
            mixture = _mixtures(weight, covariance, core, basis)
            core, basis = _components(weight, covariance, mixture, rank_out)
    found = Tucker2(core, basis, mixture, 0.0)
    return replace(found, relative_error=relative_error(weight, found.reconstruct()))


def data_loss(weight: Array, covariance: Array, rank_out: int, rank_in: int) -> float:
    """Share of the variance of the answers that data_tucker2 loses, or a little more.

    One sweep tells nearly as much as all of them. Very wide layers are not factored for it: the
    bound of `data_lost_energy_tucker2` is given.
    """
    flat = weight.reshape(len(weight), -1)
    total = float(np.einsum("hd,hd->", flat @ covariance, flat))
    if not total > 0.0:
        return 0.0
    if flat.shape[1] > _EXACT_FEATURES:
        return float(data_lost_energy_tucker2(weight, covariance)[rank_out, rank_in])
    factors = data_tucker2(
        weight, covariance, rank_out, rank_in, sweeps=1, most_unknowns=_FEW_UNKNOWNS
    )
    found = factors.reconstruct()
    missing = flat - found.reshape(flat.shape)
    return float(np.einsum("hd,hd->", missing @ covariance, missing)) / total


def _components(weight: Array, covariance: Array, mixture: Array, rank: int) -> tuple[Array, Array]:
    """Core [rank, r, *k] and output factor [T, rank] that are best for given mixtures [S, r]."""
    rows, channels = weight.shape[:2]
    if mixture.shape[1] >= channels:
        fit, gram = weight, covariance
    else:
        half, gram = _mixed(covariance, mixture, channels)
        fit = _solved(gram, weight.reshape(rows, -1) @ half.T)
        fit = fit.reshape(rows, mixture.shape[1], *weight.shape[2:])
    if rank >= rows:
        return fit, np.eye(rows)
    basis = answers(fit.reshape(rows, -1), gram).basis[:, :rank]
    core = (basis.T @ fit.reshape(rows, -1)).reshape(rank, *fit.shape[1:])
    return core, basis


def _mixtures(weight: Array, covariance: Array, core: Array, basis: Array) -> Array:
    """Mixtures [S, r] of input channels that are best for a given core and output factor."""
    rows, channels = weight.shape[:2]
    rank, taps = core.shape[1], prod(core.shape[2:])
    taken = core.reshape(len(core), rank, taps)
    target = (basis.T @ weight.reshape(rows, -1) @ covariance).reshape(len(core), channels, taps)
    right = np.einsum("oak,osk->sa", taken, target, optimize=True)
    pairs = np.einsum("oak,obl->akbl", taken, taken, optimize=True)
    blocks = covariance.reshape(channels, taps, channels, taps)
    normal = np.einsum("akbl,sktl->satb", pairs, blocks, optimize=True)
    size = channels * rank
    found = _solved(normal.reshape(size, size), right.reshape(1, size))
    return _orthonormal(found.reshape(channels, rank))


def _orthonormal(factor: Array) -> Array:
    """An orthonormal basis of the columns, with signs that do not depend on LAPACK."""
    basis = np.asarray(np.linalg.qr(factor)[0], dtype=np.float64)
    return basis * column_signs(basis)


def _mixed(covariance: Array, mixture: Array, channels: int) -> tuple[Array, Array]:
    """(E[z x'], E[z z']) of mixed channels z = V' x, for every kernel position."""
    rank = mixture.shape[1]
    taps = len(covariance) // channels
    blocks = covariance.reshape(channels, taps * channels * taps)
    half = (mixture.T @ blocks).reshape(rank * taps, channels, taps)
    gram = np.einsum("zck,cr->zrk", half, mixture, optimize=True).reshape(rank * taps, rank * taps)
    return half.reshape(rank * taps, channels * taps), (gram + gram.T) / 2.0


def _solved(gram: Array, cross: Array) -> Array:
    """Least squares T R^-1, with a ridge that only rounding would notice."""
    level = float(np.trace(gram)) / len(gram)
    shifted = gram.copy()
    shifted[np.diag_indices(len(gram))] += _RIDGE * level if level > 0.0 else 1.0
    factor = cho_factor(shifted, lower=True, overwrite_a=True, check_finite=False)
    return np.asarray(cho_solve(factor, cross.T, check_finite=False).T)


def data_lost_energy_tucker2(weight: Array, covariance: Array) -> Array:
    """Share of the variance of the answers that data_tucker2 loses, by (rank_out, rank_in).

    What both sides lose is added up; exact for each side alone on a grid of ranks, interpolated
    between, and estimated from the whitened spectrum for very wide layers.
    """
    rows, channels = weight.shape[:2]
    flat = weight.reshape(rows, -1)
    outer = answers(flat, covariance)
    total = float(outer.energies.sum())
    mixtures, energies = input_projection(weight, covariance)
    inner = relative(rests(energies))
    if flat.shape[1] <= _EXACT_FEATURES and total > 0.0:
        steps = max(1, -(-channels // _GRID))
        ranks = [*range(steps, channels, steps)]
        exact = []
        for rank in ranks:
            mixture = _orthonormal(mixtures[:, :rank])
            exact.append(projection_loss(weight, covariance, mixture) / total)
        inner = np.interp(np.arange(channels + 1), [0, *ranks, channels], [1.0, *exact, 0.0])
        inner = np.minimum.accumulate(inner)
    table: Array = np.minimum(outer.lost[:, np.newaxis] + inner[np.newaxis], 1.0)
    return table


def variances(pairs: Sequence[tuple[Array, Array]]) -> Array:
    """Share of every (W [h, d], R [d, d]) in the variance of all answers together, [pairs]."""
    each = np.array([float(np.einsum("hd,hd->", w @ r, w)) for w, r in pairs])
    return each / each.sum() if each.sum() > 0.0 else np.full(len(each), 1.0 / len(each))
