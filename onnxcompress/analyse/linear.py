"""Layers that are linear in what they read: one matrix per group, whatever the operator.

A convolution and a dense layer both answer y = A x + b, where x is what the layer reads for one
position: an input patch [channels / group, *kernel] in row-major order, or a row of features.
Statistics, selection and repair work on A alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.errors import ModelError
from onnxcompress.graph.spec import ConvSpec, DenseSpec, conv_spec, dense_spec
from onnxcompress.graph.view import FLOATING_TYPES, GraphView

Array = NDArray[np.float64]
OPERATORS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class LinearLayer:
    """A Conv, or a Gemm or MatMul by a constant.

    Attributes:
        spec: the layer as its operator describes it.
        groups: into how many independent problems it falls apart.
        outputs: answers per group, h.
        features: numbers that one answer of a group reads, d.
    """

    spec: ConvSpec | DenseSpec
    groups: int
    outputs: int
    features: int

    @property
    def node(self) -> str:
        """The node's name."""
        return self.spec.node

    @property
    def input(self) -> str:
        """The tensor that it reads."""
        return self.spec.input

    @property
    def output(self) -> str:
        """The tensor that it makes."""
        return self.spec.output

    @property
    def convolves(self) -> bool:
        """Whether it reads patches; else rows of features along the last axis."""
        return isinstance(self.spec, ConvSpec)

    @property
    def taps(self) -> int:
        """Columns of A per input channel: the size of the kernel."""
        return prod(self.spec.kernel) if isinstance(self.spec, ConvSpec) else 1

    def matrices(self, weight: NDArray[np.generic]) -> Array:
        """A [groups, h, d] of a weight as it is stored."""
        wide = weight.astype(np.float64)
        if isinstance(self.spec, ConvSpec):
            return wide.reshape(self.groups, self.outputs, self.features)
        rows = wide if self.spec.transposed else wide.T
        return (self.spec.alpha * rows)[np.newaxis]

    def stored(self, matrices: Array, like: NDArray[np.generic]) -> NDArray[np.generic]:
        """The weight that A is stored as, in the shape and type of the one in its place."""
        if isinstance(self.spec, ConvSpec):
            return matrices.reshape(like.shape).astype(like.dtype)
        rows = matrices[0] / self.spec.alpha
        return np.ascontiguousarray(rows if self.spec.transposed else rows.T).astype(like.dtype)

    def bias(self, view: GraphView) -> Array | None:
        """The bias [groups * h]; zeros where there is none, None where it is no constant."""
        name = self.spec.bias
        width = self.groups * self.outputs
        if not name:
            return np.zeros(width)
        if not view.is_constant(name):
            return None
        beta = self.spec.beta if isinstance(self.spec, DenseSpec) else 1.0
        values = beta * view.array64(name)
        if values.size not in {1, width}:
            return None
        return np.broadcast_to(values.ravel(), width).copy()

    def stored_bias(self, values: Array, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
        """The operand that makes the bias `values` [groups * h], where the layer can hold one."""
        beta = self.spec.beta if isinstance(self.spec, DenseSpec) else 1.0
        return np.asarray(values.ravel() / beta).astype(dtype)

    @property
    def can_hold_bias(self) -> bool:
        """Whether the operator has a bias of its own; MatMul has not."""
        return isinstance(self.spec, ConvSpec) or (self.spec.op == "Gemm" and self.spec.beta != 0.0)

    def can_recentre(self, view: GraphView) -> bool:
        """Whether its bias can make up for what new weights change in the mean answer."""
        return self.can_hold_bias and self.bias(view) is not None


def linear_layer(node: onnx.NodeProto, view: GraphView) -> LinearLayer:
    """Read a layer.

    Raises:
        ModelError: it is not a Conv, Gemm or MatMul with a constant floating-point weight.
    """
    if node.op_type not in OPERATORS or node.domain not in {"", "ai.onnx"}:
        raise ModelError(f"'{node.name}' ({node.op_type}) is not a layer that is linear in patches")
    spec = conv_spec(node, view) if node.op_type == "Conv" else dense_spec(node, view)
    if view.initializers[spec.weight].data_type not in FLOATING_TYPES:
        raise ModelError(f"the weight of '{node.name}' is not floating point")
    if isinstance(spec, ConvSpec):
        features = spec.in_channels // spec.group * prod(spec.kernel)
        return LinearLayer(spec, spec.group, spec.out_channels // spec.group, features)
    if spec.alpha == 0.0:
        raise ModelError(f"alpha of '{node.name}' is 0")
    return LinearLayer(spec, 1, spec.out_features, spec.in_features)
