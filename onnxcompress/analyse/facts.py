"""What a pass may know about the network; reading what it did not declare raises."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import onnx

from onnxcompress.analyse.activations import Activations
from onnxcompress.analyse.coupling.engine import couple
from onnxcompress.analyse.coupling.result import Coupling
from onnxcompress.analyse.moments import MomentsCollector
from onnxcompress.analyse.sensitivity import Sensitivity
from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.errors import ModelError, PassError
from onnxcompress.graph.cost import Cost, Shapes, model_cost, node_cost, node_macs
from onnxcompress.graph.spec import ConvSpec, DenseSpec, conv_spec, dense_spec
from onnxcompress.graph.view import GraphView

T = TypeVar("T")


class Need(enum.Enum):
    """Facts that cost something to obtain; a pass declares which it reads."""

    SHAPES = "shapes"
    COUPLING = "coupling"
    ACTIVATIONS = "activations"
    GRADIENTS = "gradients"
    MOMENTS = "moments"


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
    _activations: Activations | None = field(default=None, repr=False)
    _sensitivity: Sensitivity | None = field(default=None, repr=False)
    _moments: MomentsCollector | None = field(default=None, repr=False)
    _found: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)
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

    def coupling(self) -> Coupling:
        """Which channels go together; found once. Needs COUPLING and SHAPES.

        Raises:
            ModelError: the model does not run at the representative sizes.
        """
        self._demand(Need.COUPLING)
        self._demand(Need.SHAPES)
        return self.recall("coupling", lambda: couple(self.view, self.sizes, self._shapes))

    def activations(self) -> Activations | None:
        """Statistics of calibration inputs; None where there are none. Needs ACTIVATIONS."""
        self._demand(Need.ACTIVATIONS)
        return self._activations

    def sensitivity(self) -> Sensitivity | None:
        """What the loss does on calibration inputs; None without any. Needs GRADIENTS."""
        self._demand(Need.GRADIENTS)
        return self._sensitivity

    def moments(self) -> MomentsCollector | None:
        """Moments of what layers read; None without calibration inputs. Needs MOMENTS."""
        self._demand(Need.MOMENTS)
        return self._moments

    def with_activations(self, activations: Activations) -> Facts:
        """The same facts, and statistics of calibration inputs."""
        return replace(self, _activations=activations, _found={})

    def with_sensitivity(self, sensitivity: Sensitivity) -> Facts:
        """The same facts, and what the loss does on calibration inputs."""
        return replace(self, _sensitivity=sensitivity, _found={})

    def with_moments(self, moments: MomentsCollector) -> Facts:
        """The same facts, and moments of what layers read on calibration inputs."""
        return replace(self, _moments=moments, _found={})

    def recall(self, key: Hashable, find: Callable[[], T]) -> T:
        """What `find` finds, looked up once per model: passes keep no state of their own.

        Args:
            key: what is sought; must name everything that the finding depends on.
            find: finds it.
        """
        if key not in self._found:
            self._found[key] = find()
        found: T = self._found[key]
        return found

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
