"""Criteria of channels that go together: one gate for all layers of a group.

A channel of a residual stream is made by many layers at once, and is lost in all of them. Its gate
is shared (Molchanov et al. 2019, section 3.3), so gradients add up before anything is squared or
made positive, and the oracle zeroes everything at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np

from onnxcompress.plan.saliency.gradients import gate_gradients, map_size
from onnxcompress.plan.saliency.question import Array, Question, sensitivity_of

Joint = Callable[[Question], dict[str, Array]]
"""Scores [width] of every group."""


def _taylor(question: Question) -> dict[str, Array]:
    """The mean over samples of |sum over members of h / M|."""
    sizes = {layer: float(map_size(question, layer)) for layer in question.layers}
    return {name: np.abs(h).mean(axis=0) for name, h in _shared(question, sizes).items()}


def _taylor_gate(question: Question) -> dict[str, Array]:
    """The mean over samples of (sum over members of h)^2."""
    sizes = dict.fromkeys(question.layers, 1.0)
    return {name: np.square(h).mean(axis=0) for name, h in _shared(question, sizes).items()}


def _oracle_loss(question: Question) -> dict[str, Array]:
    """C(without the channel in any layer) - C."""
    sensitivity = sensitivity_of(question)
    places = places_of(question)
    ablations = []
    for group in question.coupling.groups:
        for channel in group.channels:
            found: dict[str, list[int]] = defaultdict(list)
            for layer, index in places[channel]:
                found[question.taps[layer]].append(index)
            ablations.append({tap: tuple(indices) for tap, indices in found.items()})
    changes = question.recall(
        "joint ablations", lambda model: sensitivity.ablate(question.axes, ablations, model)
    )
    ends = np.cumsum([group.width for group in question.coupling.groups])
    names = [group.name for group in question.coupling.groups]
    return dict(zip(names, np.split(changes, ends[:-1]), strict=True))


def _oracle_abs(question: Question) -> dict[str, Array]:
    return {name: np.abs(changes) for name, changes in _oracle_loss(question).items()}


JOINT: Mapping[str, Joint] = {
    "taylor": _taylor,
    "taylor-gate": _taylor_gate,
    "oracle-abs": _oracle_abs,
    "oracle-loss": _oracle_loss,
}


def _shared(question: Question, sizes: Mapping[str, float]) -> dict[str, Array]:
    """By group, the sum over members of h / size [samples, width]."""
    gradients = gate_gradients(question)
    places = places_of(question)
    return {
        group.name: np.stack(
            [
                sum(gradients[layer][:, index] / sizes[layer] for layer, index in places[channel])
                for channel in group.channels
            ],
            axis=1,
        )
        for group in question.coupling.groups
    }


def places_of(question: Question) -> dict[int, list[tuple[str, int]]]:
    """By class of channels, the layers that make it and the index in each."""
    places: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for layer in question.layers:
        for index, channel in enumerate(question.lane(layer).classes.tolist()):
            places[channel].append((layer, index))
    return places
