"""From a model to its coupling: trace, decide, and read the classes off the flows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from onnxcompress.analyse.coupling.deciding import decide
from onnxcompress.analyse.coupling.execute import NodeRunner
from onnxcompress.analyse.coupling.flow import FIXED, Flow, Ids
from onnxcompress.analyse.coupling.grouping import LAYERS, find_groups, joint_covers
from onnxcompress.analyse.coupling.result import Coupling, Lane
from onnxcompress.analyse.coupling.rules.table import rule_for
from onnxcompress.analyse.coupling.shuffles import Shuffle, find_shuffles
from onnxcompress.analyse.coupling.size_checks import refuse_sizes_that_do_not_follow
from onnxcompress.analyse.coupling.tracer import Tracer, describe
from onnxcompress.analyse.shapes import observe, shapes_for
from onnxcompress.errors import ModelError
from onnxcompress.graph.cost import COUNTED_OPERATORS
from onnxcompress.graph.infer import element_types
from onnxcompress.graph.view import GraphView
from onnxcompress.runtime import Array

_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_PARAMETERS = frozenset(
    [
        "Reshape",
        "Slice",
        "Split",
        "Resize",
        "Upsample",
        "Expand",
        "Tile",
        "Pad",
        "Unsqueeze",
        "Squeeze",
        "Gather",
    ]
)


def couple(
    view: GraphView, sizes: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> Coupling:
    """Find out which channels of a model must go together.

    Args:
        view: a model in canonical form.
        sizes: representative size of every input.
        shapes: the shapes known at these sizes.

    Raises:
        ModelError: the model does not run at these sizes.
    """
    double = _at_two_samples(view, sizes)
    shapes, observed = double or _complete(view, sizes, shapes)
    with NodeRunner(view.model) as runner:
        types = element_types(view.model)
        tracer = Tracer(view, shapes, types, observed, runner, free_batch=double is not None)
        for node in view.model.graph.node:
            _trace(node, tracer)
        _block_what_is_visible(tracer)
        shuffles = find_shuffles(tracer)
        decide(tracer)
        refuse_sizes_that_do_not_follow(tracer, shuffles)
    return _result(tracer, shuffles)


def _complete(
    view: GraphView, sizes: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], dict[str, Array]]:
    """All shapes, and the values of what decides at run time where data goes, from one real run."""
    wanted, parameters = [], []
    for node in view.model.graph.node:
        wanted += [n for n in node.output if n and n not in shapes]
        if node.op_type in _PARAMETERS:
            parameters += [n for n in node.input[1:] if n and n in view.producers]
    names = list(dict.fromkeys([*wanted, *parameters]))
    values = observe(view.model, sizes, names) if names else {}
    found = {name: tuple(map(int, value.shape)) for name, value in values.items()}
    return {**shapes, **found}, {name: values[name] for name in parameters}


def _at_two_samples(
    view: GraphView, sizes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], dict[str, Array]] | None:
    """The same for a batch of two, where the batch is free: a single sample hides what mixes them.

    None where the batch is fixed, in the interface or by some node inside.
    """
    free = {
        value.name
        for value in view.model.graph.input
        if sizes.get(value.name) and value.type.tensor_type.shape.dim[0].dim_value < 1
    }
    if not free:
        return None
    double = {name: (2, *size[1:]) if name in free else size for name, size in sizes.items()}
    try:
        return _complete(view, double, shapes_for(view.model, double))
    except ModelError:
        return None


def _trace(node: onnx.NodeProto, tracer: Tracer) -> None:
    rule = rule_for(node)
    if rule is not None:
        rule(node, tracer)
    elif node.op_type in _CONTROL_FLOW:
        tracer.block_inputs(node, f"it enters {describe(node)}")
    else:
        reason = f"{describe(node)} is no operator with a known rule"
        tracer.block_inputs(node, reason)
        if node.op_type in COUNTED_OPERATORS:
            tracer.refusals[node.name] = reason


def _block_what_is_visible(tracer: Tracer) -> None:
    for name, what in (
        *((name, "the graph's output '{}' shows it") for name in tracer.view.outputs),
        *((name, "a subgraph reads '{}'") for name in sorted(tracer.view.captured)),
    ):
        flow = tracer.flow(name)
        if flow is not None:
            tracer.block(flow, what.format(name))


def _result(tracer: Tracer, shuffles: dict[str, Shuffle]) -> Coupling:
    lanes = {name: _lane(name, flow, tracer) for name, flow in tracer.flows.items()}
    _block_what_would_be_empty(lanes, tracer)
    producers = {
        node.name: node.output[0]
        for node in tracer.view.model.graph.node
        if node.op_type in LAYERS and node.output[0] in lanes and node.name not in tracer.refusals
    }
    blocked = {
        int(c): reason
        for c in np.unique(
            np.concatenate([np.array([FIXED]), *(lane.classes for lane in lanes.values())])
        )
        if c != FIXED and (reason := tracer.channels.reason(int(c))) is not None
    }
    cut = {
        name: Lane(
            lane.axis,
            np.where(np.isin(lane.classes, list(blocked)), FIXED, lane.classes),
            lane.values,
        )
        for name, lane in lanes.items()
    }
    cut = {name: lane for name, lane in cut.items() if lane.classes.any()}
    groups = find_groups(tracer.view, producers, cut)
    joint = joint_covers(groups, cut)
    refusals = dict(tracer.refusals)
    for name, tensor in producers.items():
        if tensor not in cut:
            first = int(lanes[tensor].classes[0])
            refusals[name] = blocked.get(first, "its channels cannot be cut")
    return Coupling(groups, refusals, cut, producers, joint, blocked, shuffles, tracer.shapes)


def _lane(name: str, flow: Flow, tracer: Tracer) -> Lane:
    """The classes along the axis that carries them."""
    roots = tracer.channels.roots(flow.ids)
    varying = [a for a in range(roots.ndim) if (roots != roots.take([0], a)).any()]
    if len(varying) > 1:
        # Nothing may be cut where the decision did not hold: a later union undid it.
        tracer.channels.block(flow.ids, f"tensor '{name}' would not stay rectangular")
    axis = varying[0] if varying else (flow.varying[0] if flow.varying else 0)
    line = Flow(flow.shape, _first_along(roots, axis), flow.values)
    return Lane(axis, np.array(line.along(axis)), np.array(line.values_along(axis)))


def _first_along(roots: Ids, axis: int) -> Ids:
    for other in range(roots.ndim):
        if other != axis:
            roots = roots.take([0], other)
    return roots


def _block_what_would_be_empty(lanes: Mapping[str, Lane], tracer: Tracer) -> None:
    for name, lane in lanes.items():
        classes = np.unique(lane.classes)
        if len(classes) == 1 and classes[0] != FIXED:
            tracer.channels.block(classes, f"nothing would be left of tensor '{name}'")
