"""Criteria that look at gradients: what removing a channel costs, to first or second order.

With a gate g behind every channel, h = dC/dg = sum over positions of z dC/dz is the gradient of
one sample's loss in the gate at one.
"""

from __future__ import annotations

from math import prod

import numpy as np

from onnxcompress.plan.saliency.question import Array, Question, sensitivity_of


def gate_gradients(question: Question) -> dict[str, Array]:
    """By layer, h of every sample and channel [samples, channels].

    Raises:
        GradientError: an operator has no adjoint.
    """
    sensitivity, axes = sensitivity_of(question), question.axes(question.gates)
    found = question.recall("gate gradients", lambda model: sensitivity.gate_gradients(axes, model))
    return {layer: found[tap] for layer, tap in question.gates.items()}


def taylor(question: Question) -> dict[str, Array]:
    """The mean over samples of |h| / M, with M positions (Molchanov et al. 2017, eq. 8)."""
    return {
        layer: np.abs(rows).mean(axis=0) / map_size(question, layer)
        for layer, rows in gate_gradients(question).items()
    }


def taylor_gate(question: Question) -> dict[str, Array]:
    """The mean over samples of h^2 (Molchanov et al. 2019, arXiv 1906.10771, eq. 8).

    There the gradient is that of a minibatch; here of one sample, the smallest of minibatches,
    which is the empirical Fisher information in the gate.
    """
    return {layer: np.square(rows).mean(axis=0) for layer, rows in gate_gradients(question).items()}


def obd(question: Question) -> dict[str, Array]:
    """Half the second derivative of the loss in the gate (LeCun et al. 1989), g going to zero.

    Its absolute value: away from a minimum some of the diagonal is negative, and a channel whose
    removal is predicted to change the loss matters, whichever way.
    """
    sensitivity, axes = sensitivity_of(question), question.axes(question.gates)
    found = question.recall("curvature", lambda model: sensitivity.curvature(axes, model))
    return {layer: np.abs(0.5 * found[tap]) for layer, tap in question.gates.items()}


def map_size(question: Question, layer: str) -> int:
    """How many positions a channel of a layer has, for one sample."""
    tap = question.gates[layer]
    axis = question.coupling.lanes[tap].axis
    shape = question.coupling.shapes[tap]
    return prod(extent for at, extent in enumerate(shape) if at not in {0, axis})
