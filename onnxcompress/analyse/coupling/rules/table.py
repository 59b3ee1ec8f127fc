"""Which rule is for which operator."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from onnxcompress.analyse.coupling.rules import (
    elementwise,
    layers,
    movement,
    normalising,
    reducing,
    resizing,
)
from onnxcompress.analyse.coupling.tracer import Tracer

Rule = Callable[[onnx.NodeProto, Tracer], None]


def _reads_the_size(node: onnx.NodeProto, tracer: Tracer) -> None:
    """Shape: sizes that are computed at run time adapt by themselves, or are refused later."""


RULES: dict[str, Rule] = {
    **dict.fromkeys(elementwise.UNARY, elementwise.unary),
    **dict.fromkeys(elementwise.BROADCASTING, elementwise.broadcasting),
    **dict.fromkeys(reducing.POOLS, reducing.pool),
    **dict.fromkeys(reducing.REDUCTIONS, reducing.reduction),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), reducing.softmax),
    **dict.fromkeys(("Reshape", "Flatten", "SpaceToDepth"), movement.moved),
    **dict.fromkeys(("Transpose", "Unsqueeze"), movement.kept),
    **dict.fromkeys(("Resize", "Upsample"), resizing.resize),
    "BatchNormalization": normalising.batch_norm,
    "Concat": movement.concat,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "DepthToSpace": movement.depth_to_space,
    "DequantizeLinear": normalising.quantisation,
    "Expand": resizing.expand_,
    "Gather": movement.gather,
    "Gemm": layers.gemm,
    "GroupNormalization": normalising.group_norm,
    "InstanceNormalization": normalising.instance_norm,
    "LRN": normalising.local_response_norm,
    "LayerNormalization": normalising.layer_norm,
    "MatMul": layers.matmul,
    "Pad": resizing.pad,
    "QuantizeLinear": normalising.quantisation,
    "Shape": _reads_the_size,
    "Slice": movement.slice_,
    "Split": movement.split,
    "Squeeze": movement.squeeze,
    "Tile": resizing.tile,
}


def rule_for(node: onnx.NodeProto) -> Rule | None:
    """The rule of a node's operator; None for operators of other domains, and unknown ones."""
    return RULES.get(node.op_type) if node.domain in {"", "ai.onnx"} else None
