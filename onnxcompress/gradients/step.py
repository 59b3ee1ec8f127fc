"""One operator on the way back: what its adjoint is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from onnxcompress.errors import GradientError
from onnxcompress.gradients.emitter import Emitter
from onnxcompress.gradients.known import Known, Shape
from onnxcompress.graph.view import attributes
from onnxcompress.runtime import Array


@dataclass(frozen=True)
class Step:
    """An operator whose outputs' gradients are known.

    Attributes:
        node: the operator.
        known: shapes, types and constants of the model.
        emit: where nodes are added.
        cotangents: gradient of the loss in every output; None where it does not depend on it.
        wanted: indices of the inputs whose gradient is wanted.
    """

    node: onnx.NodeProto
    known: Known
    emit: Emitter
    cotangents: tuple[str | None, ...]
    wanted: frozenset[int]

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """The attributes that are given."""
        return attributes(self.node)

    @property
    def dy(self) -> str:
        """The gradient in the first output.

        Raises:
            GradientError: the loss depends on another output only.
        """
        if self.cotangents[0] is None:
            raise GradientError("only a further output is used")
        return self.cotangents[0]

    @property
    def x(self) -> str:
        """The first input."""
        return str(self.node.input[0])

    @property
    def y(self) -> str:
        """The first output."""
        return str(self.node.output[0])

    def has(self, index: int) -> bool:
        """Whether there is an input of this index."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def shape(self, tensor: str) -> Shape:
        """The shape of a tensor of the model."""
        return self.known.shapes[tensor]

    def value(self, index: int) -> Array:
        """The values of an input that does not depend on the data.

        Raises:
            GradientError: it does.
        """
        return self.known.value(self.node.input[index])

    def given(self, index: int, name: str, default: Any) -> Any:
        """A parameter that is an input in newer opsets and an attribute in older ones."""
        if self.has(index):
            return self.value(index).tolist()
        return self.attributes.get(name, default)

    def only(self, *indices: int) -> None:
        """Refuse gradients in other inputs than these.

        Raises:
            GradientError: one is wanted.
        """
        others = sorted(self.wanted - set(indices))
        if others:
            raise GradientError(f"its input {others[0]} depends on channels, too")

    def op(self, kind: str, *operands: str | float, **attributes: Any) -> str:
        """Append an operator; numbers become constants of the type that the gradient has."""
        names = [v if isinstance(v, str) else self.number(v) for v in operands]
        return self.emit.op(kind, *names, **attributes)

    def number(self, value: float) -> str:
        """A scalar constant of the type that the gradient has."""
        return self.emit.constant(np.asarray(value, dtype=self.known.dtype(self.y)))

    def array(self, values: Array) -> str:
        """A constant of the type that the gradient has."""
        return self.emit.constant(np.asarray(values).astype(self.known.dtype(self.y)))

    def zeros(self, shape: Sequence[int]) -> str:
        """Zeros of the type that the gradient has."""
        return self.emit.op("Expand", self.number(0.0), self.emit.sizes(shape))

    def reshape(self, tensor: str, shape: Sequence[int]) -> str:
        """A tensor in another shape."""
        return self.emit.op("Reshape", tensor, self.emit.sizes(shape), allowzero=1)

    def total(self, tensor: str, axes: Sequence[int], *, keepdims: bool = True) -> str:
        """The sum along some axes."""
        return self.emit.op("ReduceSum", tensor, self.emit.sizes(axes), keepdims=int(keepdims))

    def within(self, tensor: str, shape: Shape, index: int) -> str:
        """A gradient of `shape` summed over what input `index` was broadcast along."""
        own = self.shape(self.node.input[index])
        if own == shape:
            return tensor
        lead = len(shape) - len(own)
        axes = [a for a in range(len(shape)) if a < lead or own[a - lead] != shape[a]]
        summed = self.total(tensor, axes) if axes else tensor
        return self.reshape(summed, own) if lead else summed


Adjoint = Callable[[Step], Mapping[int, str]]
"""Emits the gradient in every wanted input; raises GradientError where it cannot."""
