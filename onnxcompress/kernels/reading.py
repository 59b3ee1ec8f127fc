"""Programs read back from a model's file: what `emission.py` writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.errors import ModelError
from onnxcompress.graph.view import GraphView
from onnxcompress.kernels.emission import DOMAIN, SHARED_KERNELS, kind_of
from onnxcompress.kernels.families import library, original
from onnxcompress.kernels.language import Entry, Program, Scale, Sum

Array = NDArray[np.float64]


@dataclass(frozen=True)
class WrittenLayer:
    """A layer whose kernels are programs in the file.

    Attributes:
        node: the layer.
        shape: of its weight.
        programs: of every kernel, row by row: outputs, then input channels.
        entries: the layer's dictionary, by name; empty where the language is predefined.
    """

    node: str
    shape: tuple[int, ...]
    programs: tuple[Program, ...]
    entries: dict[str, Array]

    @property
    def size(self) -> int:
        """How wide the kernels are."""
        return self.shape[-1]


def written_layers(model: onnx.ModelProto) -> Iterator[WrittenLayer]:
    """Every layer whose weight is a call of functions of the language, in order of execution.

    Raises:
        ModelError: a call is not one that onnxcompress writes.
    """
    view = GraphView(model)
    for node in model.graph.node:
        if node.op_type != "Conv" or view.is_constant(node.input[1]):
            continue
        calls = list(_calls(node.input[1], view))
        if calls:
            yield _read(node.name, calls, view)


def _calls(tensor: str, view: GraphView) -> Iterator[onnx.NodeProto]:
    """The nodes that make a weight, the last first; none where something else makes it."""
    found: list[onnx.NodeProto] = []
    while not view.is_constant(tensor):
        node = view.producers.get(tensor)
        if node is None or (node.domain != DOMAIN and node.op_type not in _AROUND):
            return
        found.append(node)
        tensor = node.input[0]
    if any(node.domain == DOMAIN for node in found):
        yield from found


_AROUND = frozenset({"Reshape", "ConstantOfShape"})


def _read(name: str, calls: list[onnx.NodeProto], view: GraphView) -> WrittenLayer:
    last = calls[0]
    if last.op_type == SHARED_KERNELS and last.domain == DOMAIN:
        entries, index, scale, shape = (view.array(operand) for operand in last.input)
        pairs = zip(index.tolist(), scale.ravel().tolist(), strict=True)
        programs: tuple[Program, ...] = tuple(Scale(float(s), Entry(str(i))) for i, s in pairs)
        extents = tuple(int(extent) for extent in shape)
        table = entries.astype(np.float64).reshape(-1, *extents[2:])
        named = {str(i): entry for i, entry in enumerate(table)}
        return WrittenLayer(name, extents, programs, named)
    extents = tuple(int(extent) for extent in view.array(last.input[1]))
    terms: list[list[Program]] = [[] for _ in range(extents[0] * extents[1])]
    for call in reversed(calls):
        if call.domain == DOMAIN:
            _add(call, extents, terms, view)
    programs = tuple(one[0] if len(one) == 1 else Sum(tuple(one)) for one in terms)
    return WrittenLayer(name, extents, programs, {})


def _add(
    call: onnx.NodeProto, shape: tuple[int, ...], terms: list[list[Program]], view: GraphView
) -> None:
    """The atoms of one call, to the programs that they belong to."""
    size, channels = shape[-1], shape[1]
    kind = kind_of(call.op_type)
    families = [f for f in (*library(size), original(size)) if f.kind == kind]
    if not families:
        raise ModelError(f"'{call.name}' calls '{call.op_type}', which is no function of ours")
    place, values, *which = (view.array(operand) for operand in call.input[1:])
    numbers = which[0].tolist() if which else [0] * len(values)
    for (output, channel), row, number in zip(place.tolist(), values, numbers, strict=True):
        terms[output * channels + channel].append(
            families[number].program(row.astype(np.float64).tolist(), size)
        )
