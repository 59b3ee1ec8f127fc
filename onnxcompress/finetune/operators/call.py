"""One operator about to be carried out in PyTorch: its attributes and operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from onnxcompress.errors import ModelError

_WIDE = {
    **dict.fromkeys(("FLOAT16", "BFLOAT16"), torch.float32),
    **dict.fromkeys(("UINT16", "UINT32", "UINT64"), torch.int64),
}
"""Half precision is computed in single precision: its small steps would be lost in training. Of
wide unsigned integers PyTorch knows next to no arithmetic."""


class UnsupportedError(ModelError):
    """An operator, or a form of it, that the interpreter does not know."""


@dataclass(frozen=True)
class Call:
    """A node with the values of its inputs.

    Attributes:
        node: the operator.
        attributes: those that are given.
        opset: version of the operator set that the model imports.
        inputs: values; None where an optional input is left out.
        device: where constants are made.
    """

    node: onnx.NodeProto
    attributes: Mapping[str, Any]
    opset: int
    inputs: tuple[torch.Tensor | None, ...]
    device: torch.device

    def has(self, index: int) -> bool:
        """Whether there is an input of this index."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def input(self, index: int) -> torch.Tensor:
        """An input.

        Raises:
            UnsupportedError: it is not there.
        """
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise UnsupportedError(f"input {index} is missing")
        return value

    def optional(self, index: int) -> torch.Tensor | None:
        """An input, or None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    @property
    def x(self) -> torch.Tensor:
        """The first input."""
        return self.input(0)

    @property
    def outputs(self) -> int:
        """How many outputs somebody may read."""
        named = [at for at, name in enumerate(self.node.output) if name]
        return named[-1] + 1 if named else 0

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def integers(self, index: int, name: str | None = None) -> list[int] | None:
        """Integers that are an input in newer operator sets and an attribute in older ones."""
        if self.has(index):
            return [int(v) for v in self.input(index).reshape(-1).tolist()]
        given = self.attributes.get(name) if name is not None else None
        return None if given is None else [int(v) for v in given]

    def number(self, index: int, name: str, default: float) -> float:
        """A number that is an input in newer operator sets and an attribute in older ones."""
        if self.has(index):
            return float(self.input(index).item())
        return float(self.attributes.get(name, default))

    def axis(self, default: int) -> int:
        """Attribute `axis`, counted from the front."""
        axis: int = self.get("axis", default)
        return axis % max(1, self.x.dim())


Operator = Callable[[Call], "torch.Tensor | Sequence[torch.Tensor]"]
"""Computes the outputs of a node; raises UnsupportedError for a form that it does not know."""


def torch_type(kind: int) -> torch.dtype:
    """The type that tensors of an ONNX type are computed in.

    Raises:
        UnsupportedError: PyTorch has none.
    """
    name = onnx.TensorProto.DataType.Name(kind)
    if name in _WIDE:
        return _WIDE[name]
    try:
        return torch.from_numpy(np.zeros(0, onnx.helper.tensor_dtype_to_np_dtype(kind))).dtype
    except (TypeError, KeyError) as error:
        raise UnsupportedError(f"tensors of type {name} are not known") from error


def as_tensor(proto: onnx.TensorProto) -> torch.Tensor:
    """The values of a constant, in the type that it is computed in.

    Raises:
        UnsupportedError: PyTorch has no such type.
    """
    return widened(onnx.numpy_helper.to_array(proto), proto.data_type)


def widened(values: npt.NDArray[Any], kind: int) -> torch.Tensor:
    """An array of an ONNX type, copied into the type that it is computed in.

    Raises:
        UnsupportedError: PyTorch has no such type.
    """
    wanted = torch_type(kind)
    if kind == onnx.TensorProto.BFLOAT16:
        values = values.astype(np.float32)
    return torch.from_numpy(np.array(values, copy=True)).to(wanted)
