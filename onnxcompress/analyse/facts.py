"""What a pass may know about the network; reading what it did not declare raises."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import onnx

from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.errors import ModelError, PassError
from onnxcompress.graph.cost import Cost, Shapes, model_cost, node_cost, node_macs
from onnxcompress.graph.spec import ConvSpec, DenseSpec, conv_spec, dense_spec
from onnxcompress.graph.view import GraphView


class Need(enum.Enum):
    """Facts that cost something to obtain; a pass declares which it reads."""

    SHAPES = "shapes"


@dataclass(frozen=True)
class Unsupported:
    """A layer that cannot be described, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class Facts:
    """A model in canonical form together with what is known about it.

    Structure and constants (`view`, `convs`, `denses`) are free to read; everything else must be
    declared in the pass's `needs`.

    Attributes:
        view: read-only index of the model.
        sizes: representative size of every input.
        excluded: names of nodes that the user wants left alone.
    """

    view: GraphView
    sizes: Mapping[str, tuple[int, ...]]
    excluded: frozenset[str] = frozenset()
    _shapes: Shapes = field(default_factory=dict, repr=False)
    _allowed: frozenset[Need] | None = None

    @property
    def model(self) -> onnx.ModelProto:
        """The canonical model; not to be changed."""
        return self.view.model

    def restricted(self, needs: frozenset[Need]) -> Facts:
        """The same facts, of which only those in `needs` may be read."""
        return replace(self, _allowed=needs)

    def convs(self) -> Iterator[ConvSpec | Unsupported]:
        """Every Conv in order of execution, or why it cannot be described."""
        for node in self.model.graph.node:
            if node.op_type == "Conv" and node.domain in {"", "ai.onnx"}:
                try:
                    yield conv_spec(node, self.view)
                except ModelError as error:
                    yield Unsupported(node.name, str(error))

    def denses(self) -> Iterator[DenseSpec | Unsupported]:
        """Every Gemm and MatMul in order of execution, or why it cannot be described."""
        for node in self.model.graph.node:
            if node.op_type in {"Gemm", "MatMul"} and node.domain in {"", "ai.onnx"}:
                try:
                    yield dense_spec(node, self.view)
                except ModelError as error:
                    yield Unsupported(node.name, str(error))

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor at the representative sizes. Needs SHAPES.

        Raises:
            PassError: SHAPES was not declared.
            ModelError: the shape is not known.
        """
        return self._known(tensor)

    def shapes(self) -> Shapes:
        """Every known shape at the representative sizes. Needs SHAPES."""
        self._demand(Need.SHAPES)
        return self._shapes

    def macs(self, node: str) -> int:
        """MACs of one node at the representative sizes. Needs SHAPES."""
        self._demand(Need.SHAPES)
        return node_macs(self.view.nodes[node], self._shapes, self.view)

    def cost(self, node: str) -> Cost:
        """Cost of one node with its constants. Needs SHAPES."""
        self._demand(Need.SHAPES)
        return node_cost(self.view.nodes[node], self._shapes, self.view)

    def total(self) -> Cost:
        """Cost of the whole network. Needs SHAPES."""
        self._demand(Need.SHAPES)
        return model_cost(self.model, self._shapes)

    def _known(self, tensor: str) -> tuple[int, ...]:
        self._demand(Need.SHAPES)
        if tensor not in self._shapes:
            raise ModelError(f"the size of tensor '{tensor}' cannot be inferred")
        return self._shapes[tensor]

    def _demand(self, need: Need) -> None:
        if self._allowed is not None and need not in self._allowed:
            raise PassError(f"a pass read {need.name}, which its `needs` do not declare")


def analyse(
    model: onnx.ModelProto,
    sizes: Mapping[str, tuple[int, ...]],
    *,
    excluded: frozenset[str] = frozenset(),
) -> Facts:
    """Collect the facts about a model in canonical form.

    Args:
        model: the canonical model.
        sizes: representative size of every input.
        excluded: names of nodes to leave alone.

    Raises:
        ModelError: the sizes contradict the graph.
    """
    return Facts(
        view=GraphView(model),
        sizes=dict(sizes),
        excluded=excluded,
        _shapes=shapes_for(model, sizes),
    )
