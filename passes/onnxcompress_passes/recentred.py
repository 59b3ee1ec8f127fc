"""The bias of a layer that was approximated: its mean answer stays what it was."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxcompress.graph.editor import Editor
from onnxcompress.plan.known_moments import moments_of

Array = NDArray[np.float64]


def recentred_bias(edit: Editor, node: gs.Node, matrices: Array) -> gs.Tensor | None:
    """A bias that makes up for what other weights change in the mean answer.

    Args:
        edit: the editor that the node belongs to.
        node: a Conv, as it was.
        matrices: the weights that take its place, [groups, h, d].

    Returns:
        A new constant; or the bias as it is, where it is computed at run time.
    """
    old = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if old is not None and not isinstance(old, gs.Constant):
        return old
    weight = np.asarray(node.inputs[1].values)
    missing = weight.astype(np.float64).reshape(matrices.shape) - matrices
    moved = np.einsum("ghd,gd->gh", missing, moments_of(edit, node.name).mean).ravel()
    if old is not None:
        moved = moved + np.asarray(old.values, dtype=np.float64).ravel()
    dtype = weight.dtype if old is None else np.asarray(old.values).dtype
    return edit.constant(f"{node.name}_recentred", moved.astype(dtype))
