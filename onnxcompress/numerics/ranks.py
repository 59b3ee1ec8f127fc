"""Rank policies: how a rank is chosen for a matrix, or a pair of ranks for a convolution weight.

A policy is written as text, and `str` writes it back:

    evbmf             what variational Bayes finds (evbmf:approximate: as in published work)
    weakened:0.8      0.8 of the way from the full rank down to the EVBMF rank
    energy:0.9        the least rank that keeps 0.9 of the squared singular values, in each mode
    ratio:0.5         at most 0.5 of the layer's parameters
    16 or 16x8        these ranks: one for both modes, or output x input
    full              every mode in full

A rank of 0 means that the policy found nothing to keep; it is for the caller to refuse the layer.

References:
    Y.-D. Kim et al., "Compression of deep convolutional neural networks for fast and low power
    mobile applications", ICLR 2016: EVBMF on both unfoldings.
    J. Gusak et al., "Automated multi-stage compression of neural networks" (MUSCO), ICCV
    workshops 2019: weakened ranks, and ranks from a parameter ratio.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from onnxcompress.errors import UsageError
from onnxcompress.numerics.evbmf import Tau, evbmf
from onnxcompress.numerics.low_rank import Array, finite_array

# Decides in favour of the whole number, or the share, that rounding has just missed.
_ROUNDING = 1e-9


class RankPolicy(ABC):
    """A rule that chooses ranks from a weight alone."""

    def tucker2_ranks(self, weight: ArrayLike) -> tuple[int, int]:
        """Choose the two ranks of a Tucker-2 decomposition.

        Args:
            weight: [T, S, *k], finite.

        Returns:
            (rank_out, rank_in), at most (T, S).

        Raises:
            ValueError: The weight is not a finite array of two axes or more.
            UsageError: The policy asks for a rank that the weight does not have.
        """
        source = finite_array(weight, name="weight", least_axes=2)
        outputs, inputs = source.shape[:2]
        unfolded_in = np.moveaxis(source, 1, 0).reshape(inputs, -1)
        rank_out = self._mode_rank(source.reshape(outputs, -1), outputs)
        return rank_out, self._mode_rank(unfolded_in, inputs)

    def svd_rank(self, matrix: ArrayLike) -> int:
        """Choose the rank of a truncated singular value decomposition.

        Args:
            matrix: [m, n], finite.

        Returns:
            The rank, at most min(m, n).

        Raises:
            ValueError: The matrix is not a finite matrix.
            UsageError: The policy asks for a rank that the matrix does not have.
        """
        source = finite_array(matrix, name="matrix", least_axes=2)
        if source.ndim != 2:
            raise ValueError(f"matrix has shape {source.shape}; svd_rank takes two axes")
        return self._mode_rank(source, min(source.shape))

    @abstractmethod
    def _mode_rank(self, matrix: Array, full: int) -> int:
        """Choose the rank of one matrix or unfolding, of which `full` is the largest."""


@dataclass(frozen=True)
class Evbmf(RankPolicy):
    """The rank that empirical variational Bayes finds."""

    tau: Tau = "exact"

    def __str__(self) -> str:
        return "evbmf" if self.tau == "exact" else f"evbmf:{self.tau}"

    def _mode_rank(self, matrix: Array, full: int) -> int:
        return min(full, evbmf(matrix, tau=self.tau).rank)


@dataclass(frozen=True)
class Weakened(RankPolicy):
    """int(full - k (full - EVBMF rank)), and 0 where EVBMF finds no signal at all."""

    k: float

    def __str__(self) -> str:
        return f"weakened:{self.k!r}"

    def _mode_rank(self, matrix: Array, full: int) -> int:
        least = min(full, evbmf(matrix).rank)
        return int(full - self.k * (full - least) + _ROUNDING) if least else 0


@dataclass(frozen=True)
class Energy(RankPolicy):
    """The smallest rank that keeps a share of the squared singular values, in each mode."""

    share: float

    def __str__(self) -> str:
        return f"energy:{self.share!r}"

    def _mode_rank(self, matrix: Array, full: int) -> int:
        values = scipy.linalg.svdvals(matrix)
        # Rounding leaves values near eps where the rank is lower; they are no part of the energy.
        floor = max(matrix.shape) * np.finfo(np.float64).eps * values[0]
        if values[0] == 0:
            return 0
        energies = np.square(values[values > floor] / values[0])
        # What each rank from 1 discards, summed from the small end: down to exactly 0 where all is
        # kept, as a share of 1 asks for.
        discarded = energies[:0:-1].cumsum()[::-1]
        allowed = (1 - self.share) * (1 + _ROUNDING) * energies.sum()
        return min(full, 1 + int(np.count_nonzero(discarded > allowed)))


@dataclass(frozen=True)
class Ratio(RankPolicy):
    """The largest ranks whose factors hold at most a share of the layer's parameters.

    Tucker-2 has S R3 + D R3 R4 + T R4 parameters, D = prod(k), and R4 = beta R3 with
    beta = max(0.8 T / S, 1), so that R3 is the root of a quadratic (MUSCO). A rank that would pass
    its mode stays at the mode, and the other one takes what is left.
    """

    share: float

    def __str__(self) -> str:
        return f"ratio:{self.share!r}"

    def tucker2_ranks(self, weight: ArrayLike) -> tuple[int, int]:
        """Choose the two ranks of a Tucker-2 decomposition; see `RankPolicy.tucker2_ranks`."""
        source = finite_array(weight, name="weight", least_axes=2)
        outputs, inputs = source.shape[:2]
        taps = math.prod(source.shape[2:])
        budget = self.share * source.size
        beta = max(0.8 * outputs / inputs, 1.0)
        linear = inputs + beta * outputs
        root = math.sqrt(linear**2 + 4 * beta * taps * budget)
        rank_in = (root - linear) / (2 * beta * taps)
        rank_out = beta * rank_in
        if rank_out > outputs:
            rank_out = outputs
            rank_in = (budget - outputs**2) / (inputs + taps * outputs)
        if rank_in > inputs:
            rank_in = inputs
            rank_out = (budget - inputs**2) / (outputs + taps * inputs)
        return int(rank_out), int(rank_in)

    def _mode_rank(self, matrix: Array, full: int) -> int:
        return min(full, int(self.share * matrix.size / sum(matrix.shape)))


@dataclass(frozen=True)
class Explicit(RankPolicy):
    """Ranks given as numbers."""

    rank_out: int
    rank_in: int | None = None

    def __str__(self) -> str:
        return str(self.rank_out) if self.rank_in is None else f"{self.rank_out}x{self.rank_in}"

    def tucker2_ranks(self, weight: ArrayLike) -> tuple[int, int]:
        """Check the two ranks against a weight; see `RankPolicy.tucker2_ranks`."""
        outputs, inputs = finite_array(weight, name="weight", least_axes=2).shape[:2]
        rank_in = self.rank_out if self.rank_in is None else self.rank_in
        return _within(self.rank_out, outputs, "output "), _within(rank_in, inputs, "input ")

    def _mode_rank(self, matrix: Array, full: int) -> int:
        if self.rank_in is not None:
            raise UsageError(f"rank {self} is a pair and a matrix {matrix.shape} has one: give one")
        return _within(self.rank_out, full, "")


@dataclass(frozen=True)
class Full(RankPolicy):
    """Every mode in full: an exact decomposition."""

    def __str__(self) -> str:
        return "full"

    def _mode_rank(self, matrix: Array, full: int) -> int:
        return full


_WORDS: Mapping[str, RankPolicy] = {
    str(policy): policy for policy in (Full(), Evbmf(), Evbmf(tau="approximate"))
}
_SHARES: Mapping[str, Callable[[float], RankPolicy]] = {
    "weakened": Weakened,
    "energy": Energy,
    "ratio": Ratio,
}


def parse_rank_policy(text: str) -> RankPolicy:
    """Read a rank policy.

    Args:
        text: One of the forms that the module lists.

    Returns:
        The policy, whose `str` reads back as the same policy.

    Raises:
        UsageError: The text has none of these forms, or its number is out of range.
    """
    text = text.strip()
    if text in _WORDS:
        return _WORDS[text]
    if match := re.fullmatch(r"([1-9][0-9]*)(?:x([1-9][0-9]*))?", text):
        return Explicit(int(match[1]), int(match[2]) if match[2] else None)
    kind, _, argument = text.partition(":")
    share = _share(argument)
    if kind in _SHARES and share is not None:
        return _SHARES[kind](share)
    raise UsageError(
        f"rank policy {text!r} is unknown; write evbmf, evbmf:approximate, weakened:K, energy:P, "
        "ratio:P (0 < K, P <= 1), R, ROUTxRIN (1 or more) or full"
    )


def _share(text: str) -> float | None:
    """Read a number above 0 and up to 1; None for anything else."""
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 < share <= 1 else None


def _within(rank: int, full: int, mode: str) -> int:
    """Refuse a rank beyond the full one: what is meant then is full, and it can be said."""
    if rank > full:
        raise UsageError(
            f"rank {rank} is larger than the full {mode}rank {full}; give {full} or less, or 'full'"
        )
    return rank
