"""What every kind of exact rewrite finds and does, and how it reads constant operands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxcompress.graph.cost import Shapes
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.view import GraphView, attributes

OWN = frozenset({"", "ai.onnx"})


@dataclass(frozen=True)
class Finding:
    """An occasion: nodes that others, exactly as good, can stand for.

    Attributes:
        node: the node that the site is named after.
        nodes: all that vanish or change, in order of execution; the last makes the result.
    """

    node: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of exact rewrite.

    Attributes:
        find: every occasion in a graph with its shapes.
        apply: carries one out on a graph that a view shows as it is now.
        words: what becomes of the nodes, for tables.
    """

    find: Callable[[GraphView, Shapes], Iterator[Finding]]
    apply: Callable[[Editor, Sequence[str], GraphView], None]
    words: str


def is_kind(node: onnx.NodeProto, *kinds: str) -> bool:
    """Whether a node is one of ONNX's own operators of these kinds."""
    return node.op_type in kinds and node.domain in OWN


def numbers(node: onnx.NodeProto, index: int, name: str, view: GraphView) -> list[int] | None:
    """Whole numbers that are an attribute in old opsets and a constant input in newer ones.

    Returns:
        None where they are computed at run time, or not given.
    """
    values = attributes(node).get(name)
    if values is not None:
        return [int(v) for v in np.ravel(np.asarray(values))]
    tensor = node.input[index] if len(node.input) > index else ""
    if not view.is_constant(tensor):
        return None
    return [int(v) for v in np.ravel(view.array(tensor))]


def given(node: onnx.NodeProto, index: int) -> bool:
    """Whether an optional input is there."""
    return len(node.input) > index and bool(node.input[index])


def floating(view: GraphView, tensor: str) -> np.dtype[np.generic] | None:
    """The type of a tensor where it is one that ONNX Runtime has convolutions for."""
    graph = view.model.graph
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.name == tensor:
            kind = value.type.tensor_type.elem_type
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind else None
            return dtype if dtype in {np.dtype(np.float32), np.dtype(np.float16)} else None
    return None
