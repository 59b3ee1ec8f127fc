"""Constant folding and clean-up by onnxslim, where it is safe and has anything to do.

onnxslim runs on the skeleton, so it costs no copies of the weights and cannot tie them together.
It is left out when the graph holds what it is known to mishandle, and its result is compared with
the original in ONNX Runtime before it is believed.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from onnxcompress.graph.skeleton import Skeleton, skeleton
from onnxcompress.graph.view import subgraphs
from onnxcompress.load.checks import one_line

_WEIGHT_READERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})
_FOLDABLE = frozenset({"Shape", "Size", "ConstantOfShape", "Dropout", "Identity", "Range"})
_SKIPPED = ["weight_tying", "subexpression_elimination"]


@dataclass(frozen=True)
class Slimmed:
    """The skeleton after slimming, and what happened in words (empty when nothing was done)."""

    skeleton: Skeleton
    changed: bool
    note: str


def slim(model: onnx.ModelProto) -> Slimmed:
    """Fold constants and remove dead nodes; the model given is not changed."""
    keep = _folded_weights(model)
    light = skeleton(model, keep=keep)
    if not _has_work(model):
        return Slimmed(light, False, "")
    reason = _unsafe(model)
    if reason:
        return Slimmed(light, False, f"constant folding skipped: {reason}")
    copy = onnx.ModelProto()
    copy.CopyFrom(light.model)
    try:
        # Imported here: it pulls in sympy, which most models never need.
        import onnxslim

        folded = onnxslim.slim(copy, skip_optimizations=_SKIPPED)
    except Exception as error:  # noqa: BLE001  (a third-party optimiser may fail in any way)
        return Slimmed(light, False, f"constant folding skipped: onnxslim: {one_line(error)}")
    if folded is None:
        return Slimmed(light, False, "constant folding skipped: onnxslim gave no model")
    return Slimmed(Skeleton(_reframed(folded, light.model), light.weights), True, "")


def _reframed(folded: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """The folded nodes inside the original's interface, metadata, opsets and doc strings."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    del model.graph.node[:]
    del model.graph.initializer[:]
    del model.graph.value_info[:]
    before = {(node.name, tuple(node.output)): node for node in original.graph.node}
    for node in folded.graph.node:
        kept = before.get((node.name, tuple(node.output)))
        copied = model.graph.node.add()
        copied.CopyFrom(node)
        if kept is not None and kept.op_type == node.op_type:
            copied.doc_string = kept.doc_string
            copied.metadata_props.extend(kept.metadata_props)
    model.graph.initializer.extend(folded.graph.initializer)
    return model


def _has_work(model: onnx.ModelProto) -> bool:
    """Whether some node other than Constant computes from constants alone, or is foldable."""
    constant = {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            constant.update(node.output)
        elif node.op_type in _FOLDABLE or (
            node.input and all(name in constant for name in node.input if name)
        ):
            return True
    return False


def _unsafe(model: onnx.ModelProto) -> str:
    """Why onnxslim should not touch this model, or an empty string."""
    for node in model.graph.node:
        if any(True for _ in subgraphs(node)):
            return f"node '{node.name}' ({node.op_type}) has a subgraph"
        if node.domain not in {"", "ai.onnx"}:
            return f"node '{node.name}' is of custom domain '{node.domain}'"
    if model.graph.sparse_initializer:
        return "the graph has sparse initializers"
    return ""


def _folded_weights(model: onnx.ModelProto) -> frozenset[str]:
    """Initializers that something else than a layer reads: they may have to be folded."""
    return frozenset(
        name
        for node in model.graph.node
        if node.op_type not in _WEIGHT_READERS
        for name in node.input
        if name
    )
