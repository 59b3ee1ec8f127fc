"""Representative input sizes: what dynamic dimensions stand at while costs are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxcompress.errors import ModelError, UsageError
from onnxcompress.runtime import Array

MAX_ELEMENTS = 2**31
"""An input above this many elements is taken for a mistake, not for a network input."""


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Its name in the graph.
        dtype: Its element type.
        shape: Its dimensions, batch first; a name, None or a number below 1 means dynamic.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def fixed(self, axis: int) -> int | None:
        """Return the dimension of an axis, or None when it is dynamic."""
        size = self.shape[axis]
        return size if isinstance(size, int) and size > 0 else None


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """The true inputs of `model` (initializers that are also inputs are left out).

    Raises:
        ModelError: an input is not a tensor.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.elem_type:
            raise ModelError(f"input '{value.name}' is not a tensor of a known type")
        tensor = value.type.tensor_type
        dims: list[int | str | None] = []
        for dim in tensor.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value > 0:
                dims.append(dim.dim_value)
            else:
                dims.append(dim.dim_param or None)
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        specs.append(InputSpec(value.name, dtype, tuple(dims)))
    return tuple(specs)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Parse `name:d0,d1,...`.

    Raises:
        UsageError: it is not of that form.
    """
    name, colon, dims = text.rpartition(":")
    try:
        sizes = tuple(int(part) for part in dims.replace("x", ",").split(","))
    except ValueError:
        sizes = ()
    if not colon or not name or not sizes or any(size < 1 for size in sizes):
        raise UsageError(
            f"--shape '{text}' is not understood: give NAME:D0,D1,... like x:1,3,224,224"
        )
    return name, sizes


def representative_sizes(
    model: onnx.ModelProto,
    given: Mapping[str, Sequence[int]] | None = None,
    *,
    batch: int | None = None,
    seen: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, tuple[int, ...]]:
    """A size for every input: what the user gave, else what the data has, else batch 1.

    Args:
        model: the model.
        given: sizes from `--shape`, by input name.
        batch: batch size for a dynamic first dimension (default 1).
        seen: sizes of one sample as the data has them (the first dimension is ignored).

    Raises:
        UsageError: a size contradicts the model, or a dynamic dimension has no size.
    """
    given = dict(given or {})
    specs = input_specs(model)
    unknown = [name for name in given if name not in {spec.name for spec in specs}]
    if unknown:
        raise UsageError(
            f"--shape names '{unknown[0]}', but the inputs are "
            f"{', '.join(spec.name for spec in specs)}"
        )
    return {
        spec.name: _size(spec, given.get(spec.name), batch, (seen or {}).get(spec.name))
        for spec in specs
    }


def _size(
    spec: InputSpec,
    given: Sequence[int] | None,
    batch: int | None,
    seen: Sequence[int] | None,
) -> tuple[int, ...]:
    if given is not None:
        size = tuple(int(v) for v in given)
        fits = (
            len(size) == len(spec.shape)
            and min(size, default=1) > 0
            and all(
                not isinstance(want, int) or want == have
                for want, have in zip(spec.shape, size, strict=True)
            )
        )
        if not fits:
            raise UsageError(
                f"--shape {spec.name}:{','.join(map(str, size))} does not fit the input's shape "
                f"{shape_text(spec.shape)}"
            )
    else:
        size = ()
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, int):
                size += (dim,)
            elif axis == 0:
                size += (batch or 1,)
            elif seen is not None and len(seen) == len(spec.shape):
                size += (int(seen[axis]),)
            else:
                raise UsageError(
                    f"input '{spec.name}' has dynamic sizes {shape_text(spec.shape)}: say at which "
                    f"size to count and measure, as in --shape {spec.name}:"
                    f"{','.join(str(d) if isinstance(d, int) else '?' for d in spec.shape)}"
                )
    elements = 1
    for dim in size:
        elements *= dim
    if elements > MAX_ELEMENTS:
        asked = given is not None or (batch is not None and not isinstance(spec.shape[0], int))
        fault = UsageError if asked else ModelError
        raise fault(f"input '{spec.name}' of size {list(size)} has {elements} elements: absurd")
    return size


def shape_text(shape: Sequence[int | str | None]) -> str:
    """A shape as people write it, `?` for an unnamed dynamic dimension."""
    return "[" + ",".join("?" if dim is None else str(dim) for dim in shape) + "]"


def random_feeds(
    model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]], *, seed: int = 0
) -> dict[str, Array]:
    """Inputs of the given sizes: standard normal, or small integers; the same for the same seed."""
    generator = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in input_specs(model):
        shape = tuple(sizes[spec.name])
        if np.issubdtype(spec.dtype, np.integer) or spec.dtype == np.bool_:
            feeds[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
        else:
            feeds[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return feeds
