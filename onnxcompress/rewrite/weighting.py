"""Which errors of a layer's answers matter: the Fisher information in them, as a metric.

A change e of what a layer answers at one position changes the network's answer by about e'F e / 2
(Kullback-Leibler, Martens 2014, arXiv 1412.1193, section 9), with F = E[g g'] and g the gradient of
the loss for classes drawn from the network's own probabilities. Least squares of a whole layer
solves every answer by itself and does not see it; what a low-rank layer gives up does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.linear import LinearLayer, linear_layer
from onnxcompress.errors import ModelError

Array = NDArray[np.float64]

DAMPING = 0.1
"""Share of the average that every direction gets besides: F is estimated on few samples, holds at
the original only, and the layers behind are fitted again."""


def fishers(facts: Facts) -> dict[str, Array]:
    """The Fisher information [channels, channels] in the answers of all linear layers, by tensor.

    Raises:
        GradientError: an operator has no adjoint.
    """
    sensitivity = facts.sensitivity()
    if sensitivity is None:
        return {}
    axes: dict[str, int] = {}
    for node in facts.model.graph.node:
        try:
            layer = linear_layer(node, facts.view)
        except ModelError:
            continue
        rank = len(facts.shapes()[layer.output])
        axes[layer.output] = 1 if layer.convolves else rank - 1
    return sensitivity.fisher(axes)


def root_of(
    fisher: Mapping[str, Array], layer: LinearLayer, kept: NDArray[np.intp] | None
) -> Array | None:
    """L [groups, h, h], lower triangular, with L L' the damped Fisher information in the answers.

    Args:
        fisher: by tensor of the original.
        layer: the layer of the result that answers.
        kept: channels of the original's tensor that are left; None for all.

    Returns:
        L; None where the information is not known, or is none.
    """
    found = fisher.get(layer.output)
    if found is None:
        return None
    if kept is not None:
        found = found[np.ix_(kept, kept)]
    size = layer.outputs
    blocks = [found[at : at + size, at : at + size] for at in range(0, len(found), size)]
    levels = [float(np.trace(block)) / size for block in blocks]
    if len(blocks) != layer.groups or not all(level > 0.0 for level in levels):
        return None
    damped = [
        block / level + DAMPING * np.eye(size) for block, level in zip(blocks, levels, strict=True)
    ]
    return np.linalg.cholesky(np.stack(damped))
