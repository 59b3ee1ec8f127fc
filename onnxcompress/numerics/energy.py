"""What truncation loses, at every rank at once: tables of lost energy to plan with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcompress.numerics.low_rank import Array
from onnxcompress.numerics.tucker import hosvd


def lost_energy_tucker2(blocks: Sequence[Array]) -> Array:
    """Relative squared error of the truncated HOSVD at every pair of ranks.

    The error at ranks (r_out, r_in) is one minus the energy of the leading block of the HOSVD
    core (De Lathauwer et al. 2000, property 7), which bounds the error of higher-order orthogonal
    iteration from above.

    Args:
        blocks: one weight [T, S, *k] per group, of equal shapes, not all zero.

    Returns:
        [T + 1, S + 1]; entry (0, 0) is 1 and the last is 0 up to rounding.
    """
    energy = np.zeros((blocks[0].shape[0] + 1, blocks[0].shape[1] + 1))
    for block in blocks:
        spectra = hosvd(block)
        # [T, S, K] -> [K, T, S]: two matrix products per kernel tap.
        taps = np.moveaxis(block.reshape(*block.shape[:2], -1), 2, 0)
        core = spectra.factor_out.T @ taps @ spectra.factor_in
        energy[1:, 1:] += (core**2).sum(axis=0).cumsum(axis=0).cumsum(axis=1)
    return np.asarray(np.clip(1.0 - energy / energy[-1, -1], 0.0, 1.0), dtype=np.float64)


def lost_energy_svd(blocks: Sequence[Array]) -> Array:
    """Relative squared error of truncated SVD at every rank (Eckart and Young 1936).

    Args:
        blocks: one matrix [m, n] per group, of equal shapes, not all zero.

    Returns:
        [min(m, n) + 1], from 1 at rank 0 to exactly 0 at full rank.
    """
    energy = sum(np.linalg.svd(block, compute_uv=False) ** 2 for block in blocks)
    kept = np.concatenate([[0.0], np.cumsum(energy)])
    lost = np.clip(1.0 - kept / kept[-1], 0.0, 1.0)
    lost[-1] = 0.0
    return np.asarray(lost, dtype=np.float64)
