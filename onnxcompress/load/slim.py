"""Constant folding and clean-up by onnxslim, where it is safe and has anything to do.

onnxslim runs on the skeleton, so it costs no copies of the weights and cannot tie them together.
It is left out when the graph holds what it is known to mishandle, and its result is compared with
the original in ONNX Runtime before it is believed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from onnxcompress.graph.constants import dense_constant
from onnxcompress.graph.skeleton import Skeleton, skeleton
from onnxcompress.graph.view import subgraphs
from onnxcompress.load.checks import check_structure, one_line

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
    for node in copy.graph.node:
        tensor = dense_constant(node)
        if tensor is not None:
            # onnxslim takes value_float and its kin for double precision.
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("value", tensor))
    try:
        # Imported here: it pulls in sympy, which most models never need.
        import onnxslim
        from onnxslim.core.pattern.registry import DEFAULT_FUSION_PATTERNS

        folded = onnxslim.slim(
            copy,
            skip_optimizations=_SKIPPED,
            skip_fusion_patterns=_fusions(DEFAULT_FUSION_PATTERNS),
        )
        if folded is None:
            return Slimmed(light, False, "constant folding skipped: onnxslim gave no model")
        slimmed = _reframed(folded, light.model)
        check_structure(slimmed)
    except Exception as error:  # noqa: BLE001  (a third-party optimiser may fail in any way)
        return Slimmed(light, False, f"constant folding skipped: onnxslim: {one_line(error)}")
    return Slimmed(Skeleton(slimmed, light.weights), True, "")


def _fusions(patterns: Iterable[str]) -> list[str]:
    """Patterns that merge layers: ONNX Runtime does that itself, and so nodes keep their names."""
    return [name for name in patterns if name.startswith("Fusion")]


def _reframed(folded: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """The folded nodes inside the original's interface, metadata, opsets and doc strings."""
    model = onnx.ModelProto()
    model.CopyFrom(original)
    del model.graph.node[:]
    del model.graph.initializer[:]
    del model.graph.value_info[:]
    names = Counter(node.name for node in original.graph.node)
    before = {node.name: node for node in original.graph.node if names[node.name] == 1}
    for node in folded.graph.node:
        kept = before.get(node.name)
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
        if node.op_type == "Constant" and dense_constant(node) is None:
            return f"node '{node.name}' holds a sparse or string constant"
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
