"""The oracle: the loss is measured with a channel set to zero, one channel after the other.

Molchanov et al. 2017, section 2.1; there the absolute change (`oracle-abs`) prunes better than
the signed one.
"""

from __future__ import annotations

import numpy as np

from onnxcompress.plan.saliency.question import Array, Question, sensitivity_of


def oracle_loss(question: Question) -> dict[str, Array]:
    """C(without the channel) - C, averaged over samples."""
    sensitivity, axes = sensitivity_of(question), question.axes(question.gates)
    widths = {layer: len(question.lane(layer).classes) for layer in question.layers}
    ablations = [
        {question.gates[layer]: (channel,)}
        for layer, width in widths.items()
        for channel in range(width)
    ]
    changes = question.recall("ablations", lambda model: sensitivity.ablate(axes, ablations, model))
    ends = np.cumsum(list(widths.values()))
    return dict(zip(widths, np.split(changes, ends[:-1]), strict=True))


def oracle_abs(question: Question) -> dict[str, Array]:
    """|C(without the channel) - C|."""
    return {layer: np.abs(changes) for layer, changes in oracle_loss(question).items()}
