"""A learned dictionary: the kernels of a layer are entries that they share, each times a number.

After the clustering of kernels by Son et al. (ECCV 2018), in the metric of the data: entries are
found as lines through the kernels (k-means with scales), assigned channel by channel with errors
handed on (`feedback.py`), and entries and scales are then fitted to the layer's answers in turns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from onnxcompress.kernels.descent import descended
from onnxcompress.kernels.feedback import Handing, damped, mean_metric
from onnxcompress.kernels.induction import relative_error
from onnxcompress.kernels.language import Entry, Program, Scale

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_LINES = 20
_TURNS = 2
_TINY = 1e-300


@dataclass(frozen=True)
class LayerDictionary:
    """The kernels of a layer as entries times scales.

    Attributes:
        entries: [K, cells].
        choice: entry of every kernel, [outputs, channels].
        scales: what it is times, [outputs, channels].
    """

    entries: Array
    choice: Indices
    scales: Array

    @property
    def weights(self) -> Array:
        """[outputs, channels, cells]."""
        return np.asarray(self.scales[:, :, np.newaxis] * self.entries[self.choice])

    @property
    def numbers(self) -> int:
        """How many weights there are: entries and scales; which entry it is, is not one."""
        return self.entries.size + self.scales.size

    def bits(self, value_bits: int = 32) -> float:
        """Description length: all numbers, and for every kernel which entry it takes."""
        which = self.choice.size * np.log2(max(1, len(self.entries)))
        return float(value_bits * self.numbers + which)

    def program(self, output: int, channel: int) -> Program:
        """The program of one kernel."""
        scale = float(self.scales[output, channel])
        return Scale(scale, Entry(f"{self.choice[output, channel]}"))


def whole(weight: Array) -> LayerDictionary:
    """The dictionary in which every kernel is an entry of its own: nothing is lost.

    Args:
        weight: [outputs, channels, cells].
    """
    count = weight.shape[0] * weight.shape[1]
    choice = np.arange(count).reshape(weight.shape[:2])
    return LayerDictionary(weight.reshape(count, -1).copy(), choice, np.ones(weight.shape[:2]))


def learn(
    weight: Array, count: int, metric: Array | None = None, *, rounds: int = 2, seed: int = 0
) -> LayerDictionary:
    """Learn a dictionary for a layer.

    Args:
        weight: [outputs, channels, cells].
        count: entries; at most one per kernel.
        metric: covariance of what the layer reads, [channels * cells] squared; None weighs weights.
        rounds: of assignment and fit, at least one; the best of them is taken.
        seed: of the first entries.
    """
    if count >= weight.shape[0] * weight.shape[1]:
        return whole(weight)
    cells, chance = weight.shape[2], np.random.default_rng(seed)
    if metric is None:
        # Kernels do not depend on each other: lines through them are all there is to find.
        return _projected(weight, _lines(weight, count, np.eye(cells), chance))
    firm = damped(metric)
    handing = Handing(firm, cells)
    entries = _lines(weight, count, mean_metric(firm, cells), chance)
    tried = []
    for _ in range(rounds):
        found = _assigned(weight, entries, handing)
        for _ in range(_TURNS):
            found = _with_scales(weight, found, firm)
            found = _with_entries(weight, found, firm)
        tried.append(_with_scales(weight, found, firm))
        entries = found.entries
    return min(tried, key=lambda one: relative_error(weight, one.weights, firm))


def _projected(weight: Array, entries: Array) -> LayerDictionary:
    """Every kernel on the line that is nearest to it."""
    inner = weight @ entries.T
    lengths = np.maximum((entries**2).sum(axis=1), _TINY)
    choice = (inner**2 / lengths).argmax(axis=2)
    scales = np.take_along_axis(inner / lengths, choice[:, :, np.newaxis], axis=2)[:, :, 0]
    return LayerDictionary(entries, choice, scales)


def _lines(weight: Array, count: int, metric: Array, chance: np.random.Generator) -> Array:
    """Lines through the kernels in a metric [cells, cells]: k-means with scales."""
    cells = weight.shape[2]
    root = np.linalg.cholesky(metric)
    points = weight.reshape(-1, cells) @ root
    lengths = (points**2).sum(axis=1)
    # The longest first; then each with the chance that its distance from the lines so far gives.
    axes = [_unit(points[lengths.argmax()])]
    rest = np.maximum(lengths - (points @ axes[0]) ** 2, 0.0)
    while len(axes) < count:
        at = chance.choice(len(points), p=rest / rest.sum()) if rest.sum() > 0 else len(axes)
        axes.append(_unit(points[at]))
        rest = np.minimum(rest, np.maximum(lengths - (points @ axes[-1]) ** 2, 0.0))
    lines = np.array(axes)
    scatter = (points[:, :, np.newaxis] * points[:, np.newaxis]).reshape(len(points), -1)
    for _ in range(_LINES):
        nearest = ((points @ lines.T) ** 2).argmax(axis=1)
        member = csr_array(
            (np.ones(len(points)), (nearest, range(len(points)))), (count, len(points))
        )
        spread = (member @ scatter).reshape(count, cells, cells)
        moved = np.linalg.eigh(spread)[1][:, :, -1]
        used = np.bincount(nearest, minlength=count) > 0
        moved = np.where(used[:, np.newaxis], moved, lines)
        if np.allclose(np.abs((moved * lines).sum(axis=1)), 1.0, atol=1e-12):
            break
        lines = moved
    return np.asarray(lines @ np.linalg.inv(root))


def _unit(vector: Array) -> Array:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else np.eye(len(vector))[0]


def _assigned(weight: Array, entries: Array, handing: Handing) -> LayerDictionary:
    """The nearest entry for every kernel, errors handed on."""
    metrics = handing.metrics
    choice = np.zeros(weight.shape[:2], dtype=np.intp)
    scales = np.zeros(weight.shape[:2])

    def nearest(channel: int, target: Array) -> Array:
        weighed = entries @ metrics[channel]
        lengths = np.maximum((weighed * entries).sum(axis=1), _TINY)
        inner = target @ weighed.T
        at = (inner**2 / lengths).argmax(axis=1)
        choice[:, channel] = at
        scales[:, channel] = inner[np.arange(len(at)), at] / lengths[at]
        return np.asarray(scales[:, channel, np.newaxis] * entries[at])

    handing.through(weight, nearest)
    return LayerDictionary(entries, choice, scales)


def _with_scales(weight: Array, found: LayerDictionary, metric: Array) -> LayerDictionary:
    """The same entries with scales that come closer, output by output."""
    kernels = found.entries[found.choice]

    def normal(scales: Array) -> Array:
        answers = (scales[:, :, np.newaxis] * kernels).reshape(len(weight), -1) @ metric
        return np.asarray((answers.reshape(kernels.shape) * kernels).sum(axis=2))

    aim = (weight.reshape(len(weight), -1) @ metric).reshape(kernels.shape)
    right = (aim * kernels).sum(axis=2)
    return replace(found, scales=descended(normal, right, found.scales))


def _with_entries(weight: Array, found: LayerDictionary, metric: Array) -> LayerDictionary:
    """The same scales with entries that come closer, all of them together."""
    count, cells = found.entries.shape
    uses = found.choice.ravel()
    member = csr_array((found.scales.ravel(), (uses, range(uses.size))), (count, uses.size))

    def normal(entries: Array) -> Array:
        kernels = found.scales[:, :, np.newaxis] * entries[found.choice]
        answers = kernels.reshape(len(weight), -1) @ metric
        return np.asarray(member @ answers.reshape(-1, cells))

    right = member @ (weight.reshape(len(weight), -1) @ metric).reshape(-1, cells)
    return replace(found, entries=descended(normal, right, found.entries))
