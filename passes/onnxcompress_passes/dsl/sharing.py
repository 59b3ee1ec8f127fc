"""Filters shared and merged: what clusters become in the graph.

Equal filters make equal channels, so those that read them can read one of them with the sum of
their weights: the network computes the same with fewer channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxcompress.analyse.coupling.result import Coupling
from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.linear import LinearLayer
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.view import GraphView
from onnxcompress_passes.dsl.clusters import Clusters
from onnxcompress_passes.dsl.filters import filters, makers_of
from onnxcompress_passes.exact.channels import Idle, merged

Array = NDArray[np.float64]


def share(edit: Editor, coupling: Coupling, chosen: Mapping[str, Clusters]) -> None:
    """Give the channels of every cluster the cluster's filter and bias.

    Args:
        edit: an editor of the original graph.
        coupling: its coupling.
        chosen: clusters, by name of the group.
    """
    facts = Facts(GraphView(edit.model), {})
    weights: dict[str, tuple[LinearLayer, NDArray[np.generic], Array]] = {}
    biases: dict[str, Array] = {}
    for name, found in chosen.items():
        for maker in makers_of(facts, coupling, coupling.group(name)):
            layer, view = maker.layer, facts.view
            node = layer.node
            if node not in weights:
                stored = view.array(layer.spec.weight)
                weights[node] = (layer, stored, layer.matrices(stored))
                known = layer.bias(view)
                biases[node] = np.zeros(layer.groups * layer.outputs) if known is None else known
            weight, bias = filters(maker, facts)
            matrices = weights[node][2].reshape(-1, layer.features)
            matrices[maker.rows] = found.centres(weight)
            biases[node][maker.rows] = found.centres(bias[:, np.newaxis])[:, 0]
    for name, (layer, stored, matrices) in weights.items():
        node = edit.node(name)
        edit.set_input(node, 1, edit.constant(f"{name}_dsl_weight", layer.stored(matrices, stored)))
        if layer.spec.bias and layer.can_hold_bias:
            values = layer.stored_bias(biases[name], np.asarray(stored).dtype)
            edit.set_input(node, 2, edit.constant(f"{name}_dsl_bias", values))


def merge(edit: Editor, coupling: Coupling, chosen: Mapping[str, Clusters]) -> None:
    """Let the readers of channels that share a filter read one of them for all."""
    idle = {name: Idle(found.gone, found.into) for name, found in chosen.items()}
    merged(edit, coupling, Facts(GraphView(edit.finish()), {}), idle)
