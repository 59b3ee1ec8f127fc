"""Criteria that look at what comes out of a layer on calibration inputs.

Definitions: Molchanov et al. 2017 (arXiv 1611.06440), section 2.2; APoZ as the average percentage
of positive values, as there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import entropy

from onnxcompress.analyse.activations import ChannelStatistics
from onnxcompress.plan.saliency.question import Array, Question, sensitivity_of, without_data

BINS = 16


def activation_mean(question: Question) -> dict[str, Array]:
    """The average activation: (1/|a|) sum a."""
    return {layer: found.mean for layer, found in _statistics(question).items()}


def activation_std(question: Question) -> dict[str, Array]:
    """The standard deviation of the activation."""
    return {layer: found.deviation for layer, found in _statistics(question).items()}


def apoz(question: Question) -> dict[str, Array]:
    """The average percentage of positive activations (Hu et al. 2016, arXiv 1607.03250)."""
    return {layer: found.positive for layer, found in _statistics(question).items()}


def mutual_information(question: Question) -> dict[str, Array]:
    """The information gain between a channel's mean activation and the class of the sample.

    IG = H(x) + H(y) - H(x, y) in nats, of the mean over positions of every sample, quantised into
    bins that hold equally many samples.

    Raises:
        UsageError: the network does not answer with a class.
    """
    sensitivity, axes = sensitivity_of(question), question.axes(question.taps)
    found = question.recall("responses", lambda model: sensitivity.responses(axes, model))
    return {
        layer: information_gain(found.means[tap], found.classes)
        for layer, tap in question.taps.items()
    }


def information_gain(values: Array, classes: NDArray[np.int64]) -> Array:
    """Information gain [channels] of values [samples, channels] about classes [samples]."""
    _, targets = np.unique(classes, return_inverse=True)
    gains = []
    for column in values.T:
        edges = np.unique(np.quantile(column, np.arange(1, BINS) / BINS))
        bins = np.searchsorted(edges, column, side="right")
        table = np.zeros((len(edges) + 1, int(targets.max()) + 1))
        np.add.at(table, (bins, targets), 1.0)
        joint = entropy(table.ravel())
        gains.append(entropy(table.sum(axis=1)) + entropy(table.sum(axis=0)) - joint)
    return np.array(gains)


def _statistics(question: Question) -> dict[str, ChannelStatistics]:
    collect = question.facts.activations()
    if collect is None:
        raise without_data()
    axes = question.axes(question.taps)
    found = question.recall("activations", lambda model: collect(axes, model))
    return {layer: found[tap] for layer, tap in question.taps.items()}
