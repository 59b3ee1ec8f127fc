"""The metric of the data, and the bias that goes with it: mean answers stay what they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxcompress.analyse.linear import LinearLayer, linear_layer
from onnxcompress.analyse.moments import Moments
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.view import GraphView
from onnxcompress.plan.known_moments import moments_of
from onnxcompress_passes.narrowed import left_of

Array = NDArray[np.float64]


def metric_of(layer: LinearLayer, moments: Moments, view: GraphView) -> Array:
    """What an error in a layer's weights costs, [groups, d, d].

    The covariance of what it reads, where its bias can make up for means; else E[x x'].
    """
    return moments.centred().gram if layer.can_recentre(view) else moments.gram


def metric_in(edit: Editor, node: str) -> Array:
    """The same for a layer of an editor's model, as it was."""
    view = GraphView(edit.model)
    layer = linear_layer(view.nodes[node], view)
    return metric_of(layer, moments_of(edit, node), view)


def recentred_bias(edit: Editor, node: gs.Node, matrices: Array) -> gs.Tensor | None:
    """A bias that makes up for what other weights change in the mean answer.

    Args:
        edit: the editor that the node belongs to.
        node: a Conv, Gemm or MatMul, as it was but for its bias and for channels that are gone.
        matrices: the weights that take its place, [groups, h, d], without alpha; of what is left.

    Returns:
        A new constant; or the bias as it is, where there can be no other.
    """
    view = GraphView(edit.model)
    layer = linear_layer(view.nodes[node.name], view)
    old = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if not layer.can_recentre(view) or (old is not None and not isinstance(old, gs.Constant)):
        return old
    weight = np.asarray(node.inputs[1].values)
    mean = moments_of(edit, node.name).mean
    left = left_of(edit, node)
    if left is not None:
        features = left.features(layer.taps)
        layer = replace(layer, outputs=len(left.rows), features=len(features))
        mean = mean[:, features]
    alpha = float(getattr(layer.spec, "alpha", 1.0))
    missing = layer.matrices(weight) - alpha * matrices
    moved = np.einsum("ghd,gd->gh", missing, mean)
    dtype = weight.dtype if old is None else np.asarray(old.values).dtype
    added = np.asarray(layer.stored_bias(moved, np.dtype(np.float64)), dtype=np.float64)
    if old is not None:
        added = added + np.asarray(old.values, dtype=np.float64).ravel()
    return edit.constant(f"{node.name}_recentred", added.astype(dtype))
