"""Clusters of filters: which channels share one, and which filter that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcompress.numerics.clustering import numbered
from onnxcompress_passes.dsl.filters import Likeness

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

MEAN, MEDOID = "mean", "medoid"
CENTRES = (MEAN, MEDOID)

_ROUNDS = 20


@dataclass(frozen=True)
class Clusters:
    """Channels that share filters.

    Attributes:
        labels: cluster of every channel of the group, counted from 0 in order of first appearance.
        shares: part that each channel's own filter has in its cluster's; they add up to one in
            every cluster.
    """

    labels: tuple[int, ...]
    shares: tuple[float, ...]

    @property
    def count(self) -> int:
        """How many clusters there are."""
        return max(self.labels) + 1

    @property
    def leaders(self) -> tuple[int, ...]:
        """Of every cluster the channel that stays: the first of those with the largest share."""
        labels, shares = np.array(self.labels), np.array(self.shares)
        found = []
        for label in range(self.count):
            mine = np.flatnonzero(labels == label)
            found.append(int(mine[shares[mine].argmax()]))
        return tuple(found)

    @property
    def gone(self) -> tuple[int, ...]:
        """The channels that another one stands for."""
        return tuple(sorted(set(range(len(self.labels))) - set(self.leaders)))

    @property
    def into(self) -> tuple[int, ...]:
        """For every channel that goes, the one that stands for it."""
        leaders = self.leaders
        return tuple(leaders[self.labels[channel]] for channel in self.gone)

    def centres(self, filters: Array) -> Array:
        """What every channel's filter becomes, [width, d]: its cluster's."""
        mixing = np.zeros((self.count, len(self.labels)))
        mixing[list(self.labels), np.arange(len(self.labels))] = self.shares
        return np.asarray((mixing @ filters)[list(self.labels)])


def clusters(alike: Likeness, labels: Indices, centre: str, *, refined: bool) -> Clusters:
    """Clusters from a cut of the tree.

    Args:
        alike: how the channels compare.
        labels: the cut.
        centre: mean (of least error in the metric of the data) or medoid.
        refined: move channels between clusters as long as that lowers the error (Lloyd 1982).
    """
    if refined:
        labels = _refined(alike, labels)
    shares = np.zeros(len(labels))
    for label in range(labels.max() + 1):
        mine = np.flatnonzero(labels == label)
        weights = alike.weights[mine]
        shares[mine] = weights / weights.sum()
        if centre == MEDOID:
            points = alike.points[mine]
            gaps = ((points[:, np.newaxis] - points) ** 2).sum(axis=2) @ weights
            shares[mine] = np.eye(len(mine))[gaps.argmin()]
    return Clusters(tuple(labels.tolist()), tuple(shares.tolist()))


def error(alike: Likeness, found: Clusters) -> float:
    """Relative error of the layers that read the channels, as if errors were independent."""
    gaps = ((alike.points - found.centres(alike.points)) ** 2).sum(axis=1)
    own = np.maximum((alike.points**2).sum(axis=1), 1e-12)
    return float((alike.weights * np.minimum(gaps, own)).sum())


def _refined(alike: Likeness, labels: Indices) -> Indices:
    for _ in range(_ROUNDS):
        count = labels.max() + 1
        mixing = np.zeros((count, len(labels)))
        mixing[labels, np.arange(len(labels))] = alike.weights
        centres = (mixing / mixing.sum(axis=1, keepdims=True)) @ alike.points
        gaps = ((alike.points[:, np.newaxis] - centres) ** 2).sum(axis=2)
        # Of equals the cluster that a channel is in already.
        gaps[np.arange(len(labels)), labels] *= 1.0 - 1e-12
        moved = gaps.argmin(axis=1)
        if len(np.unique(moved)) < count or (moved == labels).all():
            break
        labels = moved
    return numbered(labels)
