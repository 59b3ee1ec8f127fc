"""The filters of a group of layers, as what they answer on real inputs, and their distances.

A channel of a group is made by one row of every layer that produces it, and read by the layers
behind. Channels share a filter where those that read them could not tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcompress.analyse.coupling.result import Coupling, Group
from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.linear import LinearLayer, linear_layer
from onnxcompress.errors import ModelError
from onnxcompress.kernels.search import factor_of
from onnxcompress.numerics.clustering import merges
from onnxcompress.numerics.ssim import similarities
from onnxcompress.plan.channels.damage import channel_damage
from onnxcompress.plan.known_moments import MOST_FEATURES, layer_moments
from onnxcompress_passes.exact.channels import alike, channel_numbers
from onnxcompress_passes.recentred import metric_of

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

ANSWERS, SSIM = "answers", "ssim"
DISTANCES = (ANSWERS, SSIM)

_SAMPLES = 32
"""Inputs whose responses are compared by SSIM."""


@dataclass(frozen=True)
class Maker:
    """A layer that makes the channels of a group.

    Attributes:
        layer: the layer.
        rows: row of its weight, as [outputs, d], that makes each channel of the group.
    """

    layer: LinearLayer
    rows: Indices


def makers_of(facts: Facts, coupling: Coupling, group: Group) -> list[Maker]:
    """The layers that make the channels of a group.

    Raises:
        ModelError: channels of the group cannot share filters; the message says why.
    """
    if not alike(group, facts.view):
        raise ModelError("a constant or an operator behind it tells its channels apart")
    place = {channel: at for at, channel in enumerate(group.channels)}
    found = []
    for name in group.producers:
        layer = linear_layer(facts.view.nodes[name], facts.view)
        made = channel_numbers(layer.output, coupling, place)
        if layer.groups > 1 and not np.array_equal(
            channel_numbers(layer.input, coupling, place), made
        ):
            raise ModelError(f"'{name}' makes its channels from different groups of inputs")
        if layer.bias(facts.view) is None:
            raise ModelError(f"the bias of '{name}' is computed")
        counts = np.bincount(made[made >= 0], minlength=group.width)
        if (counts != 1).any() or len(made) != layer.groups * layer.outputs:
            raise ModelError(f"'{name}' does not make every channel of the group once")
        rows = np.empty(group.width, dtype=np.intp)
        rows[made[made >= 0]] = np.flatnonzero(made >= 0)
        found.append(Maker(layer, rows))
    return found


def filters(maker: Maker, facts: Facts) -> tuple[Array, Array]:
    """What makes each channel: weights [width, d] and biases [width]."""
    layer, view = maker.layer, facts.view
    weight = layer.matrices(view.array(layer.spec.weight)).reshape(-1, layer.features)
    bias = layer.bias(view)
    assert bias is not None  # noqa: S101  (makers_of saw to it)
    return weight[maker.rows], bias[maker.rows]


@dataclass(frozen=True)
class Likeness:
    """How the channels of a group compare.

    Attributes:
        tree: the order in which they join, as `numerics.clustering.merges` gives it.
        points: answers' errors are squared differences of these, [width, n]: filters of all
            makers in the metric of what they read, relative to the mean energy of their answers.
        weights: how much such an error counts in the layers that read a channel, [width].
    """

    tree: Array
    points: Array
    weights: Array


def likeness(
    facts: Facts, coupling: Coupling, group: Group, distance: str, linkage: str
) -> Likeness:
    """Compare the filters of a group; looked up once.

    Raises:
        ModelError: they cannot share, or there are no calibration inputs to compare responses on.
    """

    def find() -> Likeness:
        makers = makers_of(facts, coupling, group)
        points = np.concatenate([_points(facts, coupling, maker) for maker in makers], axis=1)
        spread = np.maximum((points**2).sum(axis=1), 1e-12)
        weights = channel_damage(facts, coupling, group) / spread
        weights = np.maximum(weights, 1e-9 * max(float(weights.max()), 1e-12))
        if distance == SSIM:
            apartness = 1.0 - _mean_similarity(facts, coupling, makers)
        else:
            # What it costs to join two of them, at the mean of both.
            joint = weights[:, np.newaxis] * weights / (weights[:, np.newaxis] + weights)
            squares = (points**2).sum(axis=1)
            gaps = squares[:, np.newaxis] + squares - 2.0 * points @ points.T
            apartness = joint * np.maximum(gaps, 0.0)
        np.fill_diagonal(apartness, 0.0)
        apartness = (apartness + apartness.T) / 2.0
        return Likeness(merges(apartness, linkage), points, weights)

    return facts.recall(("likeness", group.name, distance, linkage), find)


def _points(facts: Facts, coupling: Coupling, maker: Maker) -> Array:
    """The filters of a maker, such that squared lengths are energies of answers."""
    weight, bias = filters(maker, facts)
    layer = maker.layer
    if layer.groups > 1:
        # Depthwise: what a channel reads goes along with it; its own weights are all there is.
        return _scaled(np.concatenate([weight, bias[:, np.newaxis]], axis=1))
    moments = None
    if facts.moments() is not None and layer.features <= MOST_FEATURES:
        every = [name for group in coupling.groups for name in group.producers]
        moments = layer_moments(facts, _fitting(facts, every)).get(layer.node)
    if moments is None:
        return _scaled(weight)
    metric = metric_of(layer, moments, facts.view)[0]
    found = weight @ factor_of(metric)
    # Means differ, too, and no bias behind tells channels of one filter apart.
    means = weight @ moments.mean[0] + bias
    return _scaled(np.concatenate([found, means[:, np.newaxis]], axis=1))


def _scaled(points: Array) -> Array:
    """Relative to the mean energy."""
    return np.asarray(points / np.sqrt(max((points**2).sum(axis=1).mean(), 1e-12)))


def _fitting(facts: Facts, names: list[str]) -> list[str]:
    found = []
    for name in dict.fromkeys(names):
        try:
            layer = linear_layer(facts.view.nodes[name], facts.view)
        except ModelError:
            continue
        if layer.features <= MOST_FEATURES and layer.groups == 1:
            found.append(name)
    return found


def _mean_similarity(facts: Facts, coupling: Coupling, makers: list[Maker]) -> Array:
    collect = facts.activations()
    if collect is None:
        raise ModelError("distance=ssim compares responses to real inputs: give --data")
    names = tuple(dict.fromkeys(t for n, t in coupling.producers.items() if n in facts.view.nodes))
    values = facts.recall(("responses", names), lambda: collect.values(names, _SAMPLES))
    each = [_similarity(values[maker.layer.output], maker) for maker in makers]
    return np.asarray(np.mean(each, axis=0))


def _similarity(response: NDArray[np.generic], maker: Maker) -> Array:
    """Mean SSIM of every two channels of one layer's responses."""
    found = response.astype(np.float64)
    if maker.layer.convolves:
        images = found.reshape(*found.shape[:2], *_flat(found.shape[2:]))[:, maker.rows]
    else:
        # Answers without positions: all samples together are the picture.
        rows = found.reshape(-1, found.shape[-1]).T[maker.rows]
        images = rows[np.newaxis, :, np.newaxis, :]
    extent = float(images.max() - images.min())
    window = 7 if maker.layer.convolves else images.shape[-1]
    return similarities(images, extent or 1.0, window=window)


def _flat(extents: tuple[int, ...]) -> tuple[int, int]:
    """A plane for any number of spatial axes."""
    return (1, extents[0]) if len(extents) == 1 else (int(np.prod(extents[:-1])), extents[-1])
