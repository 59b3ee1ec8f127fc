"""The state of a trace: flows of all tensors seen so far, channels, and what is left to decide."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnxcompress.analyse.coupling.channels import Channels
from onnxcompress.analyse.coupling.execute import NodeRunner
from onnxcompress.analyse.coupling.flow import UNKNOWN, Flow, Ids, Values, channel_flow
from onnxcompress.errors import ModelError
from onnxcompress.graph.view import GraphView, attributes
from onnxcompress.runtime import Array


@dataclass(frozen=True)
class GroupedLayer:
    """A grouped convolution whose channels may go group by group or position by position.

    Attributes:
        node: its name.
        inputs: ids of its input channels [groups, inputs per group].
        outputs: ids of its output channels [groups, outputs per group].
        values: values of the input channels, like `inputs`.
        border: whether zero padding shows the border to a constant channel.
    """

    node: str
    inputs: Ids
    outputs: Ids
    values: Values
    border: bool


@dataclass
class Tracer:
    """What the rules of the operators read and write.

    Attributes:
        view: the model.
        shapes: shape of every tensor; of two samples where the batch is free.
        types: element type of every tensor.
        observed: values of tensors that are computed at run time and decide where data goes.
        runner: executes single nodes.
        free_batch: whether the model takes any number of samples; then there are two of them.
        channels: ids and their classes.
        flows: the flow of every tensor that carries channels.
        grouped: decisions that wait until everything else is united.
        spread: flows whose ids change along several axes, one of which has to carry them.
        tied: for every weight the layer that read it first, with the ids on both sides.
        refusals: layers whose channels cannot be cut whatever their surroundings, and why.
    """

    view: GraphView
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]
    observed: Mapping[str, Array]
    runner: NodeRunner
    free_batch: bool = False
    channels: Channels = field(default_factory=Channels)
    flows: dict[str, Flow] = field(default_factory=dict)
    grouped: list[GroupedLayer] = field(default_factory=list)
    spread: list[tuple[str, Flow]] = field(default_factory=list)
    tied: dict[Hashable, tuple[str, Ids, Ids]] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    def flow(self, tensor: str) -> Flow | None:
        """The flow of a tensor, None if it carries no channels."""
        return self.flows.get(tensor)

    def put(self, node: onnx.NodeProto, flow: Flow | None, output: int = 0) -> None:
        """Say what flows out of a node."""
        if flow is None or not flow.tracked or output >= len(node.output):
            return
        if not flow.shape:
            self.block(flow, f"{describe(node)} makes one number of all channels")
            return
        name = node.output[output]
        if name:
            self.flows[name] = flow
            if len(flow.varying) > 1:
                self.spread.append((node.name, flow))

    def produce(self, node: onnx.NodeProto, axis: int) -> Ids:
        """Give the channels of a producing layer ids of their own; zero is what they become."""
        shape = self.shape(node.output[0])
        ids = self.channels.fresh(shape[axis])
        self.put(node, channel_flow(shape, axis, ids))
        return ids

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            ModelError: it is not known.
        """
        if self.view.is_constant(tensor):
            return tuple(self.view.initializers[tensor].dims)
        if tensor not in self.shapes:
            raise ModelError(f"the size of tensor '{tensor}' is not known")
        return self.shapes[tensor]

    def constant(self, tensor: str) -> Array | None:
        """The values of an initializer; None for anything else."""
        return self.view.array(tensor) if self.view.is_constant(tensor) else None

    def value(self, tensor: str) -> Array | None:
        """The values of an initializer or of an observed tensor; None if neither."""
        if self.view.is_constant(tensor):
            return self.view.array(tensor)
        return self.observed.get(tensor)

    def carry(self, node: onnx.NodeProto, flow: Flow, axis: int) -> Flow:
        """Make one axis carry the channels: ids that share an index along it are united."""
        for other in flow.varying:
            if other != axis:
                flow = self.fold(node, flow, other)
        return flow

    def fold(self, node: onnx.NodeProto, flow: Flow, axis: int) -> Flow:
        """Unite the ids along an axis, which cannot be cut.

        If it is the only axis along which ids change, cutting it is what removal would mean: its
        channels are blocked.
        """
        if axis not in flow.varying:
            return flow
        first = flow.ids.take([0], axis)
        if flow.varying == (axis,):
            self.block(flow, f"{describe(node)} works across channels")
        else:
            reason = f"{describe(node)} joins it with values that cannot be cut"
            self.channels.unite(np.broadcast_to(first, flow.ids.shape), flow.ids, reason)
        rows = flow.values
        if rows.shape[axis] > 1:
            head = rows.take([0], axis)
            rows = np.where((rows == head).all(axis=axis, keepdims=True), head, UNKNOWN)
        return Flow(flow.shape, first, rows)

    def block(self, flow: Flow, reason: str) -> None:
        """None of the channels in `flow` can be removed."""
        self.channels.block(flow.ids, reason)

    def refuse(self, node: onnx.NodeProto, reason: str) -> None:
        """Leave a layer alone, with everything that flows into it."""
        self.refusals[node.name] = reason
        self.block_inputs(node, f"{describe(node)}: {reason}")

    def block_if_used(self, node: onnx.NodeProto, flow: Flow, outputs: Iterable[int]) -> None:
        """Block what flows into a node if somebody reads outputs that are not followed."""
        visible = self.view.captured | set(self.view.outputs)
        for name in (node.output[at] for at in outputs if at < len(node.output)):
            if name and (self.view.uses(name) or name in visible):
                self.block(flow, f"'{name}' of {describe(node)} is not followed")

    def block_inputs(self, node: onnx.NodeProto, reason: str, inputs: Sequence[int] = ()) -> None:
        """Block what flows into a node, or into some of its inputs."""
        for index, name in enumerate(node.input):
            flow = self.flow(name)
            if flow is not None and (not inputs or index in inputs):
                self.block(flow, reason)


def describe(node: onnx.NodeProto) -> str:
    """A node as reasons call it."""
    return f"{node.op_type} '{node.name}'"


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """One attribute of a node."""
    return attributes(node).get(name, default)


def integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """One integer attribute of a node."""
    value = attribute(node, name, default)
    return int(value) if isinstance(value, (int, float)) else default


def operand(node: onnx.NodeProto, index: int) -> str:
    """The name of an input, empty when it is left out."""
    return str(node.input[index]) if index < len(node.input) else ""
