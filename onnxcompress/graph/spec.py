"""What a convolution or dense layer is, read once from its node, with every default filled in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import onnx

from onnxcompress.errors import ModelError
from onnxcompress.graph.view import GraphView, attributes


@dataclass(frozen=True)
class ConvSpec:
    """A Conv node: weight [out_channels, in_channels / group, *kernel].

    `pads` are ONNX order (all begins, then all ends); with `auto_pad` other than NOTSET they are
    decided by ONNX Runtime from the sizes and the field is all zero.
    """

    node: str
    weight: str
    bias: str | None
    out_channels: int
    in_channels: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    group: int
    auto_pad: str
    input: str
    output: str

    @property
    def spatial(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel)

    @property
    def pointwise(self) -> bool:
        """Whether the kernel is 1 along every spatial axis."""
        return prod(self.kernel) == 1

    @property
    def depthwise(self) -> bool:
        """Whether every group has a single input channel."""
        return self.group > 1 and self.group == self.in_channels

    def geometry(self) -> dict[str, object]:
        """Attributes that give another Conv the same spatial geometry (kernel_shape excluded)."""
        values: dict[str, object] = {
            "strides": list(self.strides),
            "dilations": list(self.dilations),
        }
        if self.auto_pad == "NOTSET":
            values["pads"] = list(self.pads)
        else:
            values["auto_pad"] = self.auto_pad
        return values


@dataclass(frozen=True)
class DenseSpec:
    """A Gemm or MatMul with one constant matrix on its right.

    `y = alpha * x @ W + beta * c`, where W is [in_features, out_features] after `transposed` is
    undone. For MatMul alpha is 1 and there is no bias.
    """

    node: str
    op: str
    weight: str
    bias: str | None
    in_features: int
    out_features: int
    transposed: bool
    alpha: float
    beta: float
    input: str
    output: str


def conv_spec(node: onnx.NodeProto, view: GraphView) -> ConvSpec:
    """Read a Conv node.

    Raises:
        ModelError: the weight is not a constant, or shape and attributes contradict each other.
    """
    weight = node.input[1]
    if not view.is_constant(weight):
        raise ModelError(f"the weight '{weight}' is computed or fed at run time, not a constant")
    shape = tuple(view.initializers[weight].dims)
    values = attributes(node)
    group = int(_scalar(values.get("group", 1)))
    spatial = len(shape) - 2
    if spatial < 1 or group < 1 or shape[0] % group:
        raise ModelError(f"weight shape {list(shape)} does not fit a Conv with group={group}")
    kernel = _ints(values.get("kernel_shape"), shape[2:])
    if kernel != shape[2:]:
        raise ModelError(f"kernel_shape {list(kernel)} contradicts weight {list(shape)}")
    return ConvSpec(
        node=node.name,
        weight=weight,
        bias=node.input[2] if len(node.input) > 2 and node.input[2] else None,
        out_channels=shape[0],
        in_channels=shape[1] * group,
        kernel=kernel,
        strides=_ints(values.get("strides"), (1,) * spatial),
        pads=_ints(values.get("pads"), (0,) * (2 * spatial)),
        dilations=_ints(values.get("dilations"), (1,) * spatial),
        group=group,
        auto_pad=str(values.get("auto_pad", "NOTSET") or "NOTSET"),
        input=node.input[0],
        output=node.output[0],
    )


def dense_spec(node: onnx.NodeProto, view: GraphView) -> DenseSpec:
    """Read a Gemm or MatMul whose right operand is a constant matrix.

    Raises:
        ModelError: the right operand is not a constant matrix, or the left one is transposed.
    """
    weight = node.input[1]
    if not view.is_constant(weight):
        raise ModelError(f"the right operand '{weight}' is computed or fed at run time")
    shape = tuple(view.initializers[weight].dims)
    if len(shape) != 2:
        raise ModelError(f"the right operand '{weight}' has shape {list(shape)}, not a matrix")
    values = attributes(node) if node.op_type == "Gemm" else {}
    if _scalar(values.get("transA", 0)):
        raise ModelError("the left operand is transposed (transA=1)")
    transposed = bool(_scalar(values.get("transB", 0)))
    rows, columns = shape[::-1] if transposed else shape
    return DenseSpec(
        node=node.name,
        op=node.op_type,
        weight=weight,
        bias=node.input[2] if len(node.input) > 2 and node.input[2] else None,
        in_features=rows,
        out_features=columns,
        transposed=transposed,
        alpha=_scalar(values.get("alpha", 1.0)),
        beta=_scalar(values.get("beta", 1.0)),
        input=node.input[0],
        output=node.output[0],
    )


def _ints(value: object, default: tuple[int, ...]) -> tuple[int, ...]:
    if value is None:
        return default
    if not isinstance(value, Sequence):
        raise ModelError(f"expected a list of integers, found {value!r}")
    return tuple(int(v) for v in value)


def _scalar(value: object) -> float:
    if not isinstance(value, (int, float)):
        raise ModelError(f"expected a number, found {value!r}")
    return value
