"""Removed channels against zeroed ones, with nothing of the engine but its statement of places.

The reference is the canonical model with a Mul behind every producer, whose mask of ones and zeros
is an extra input; one ONNX Runtime session of it serves all sets of channels. Where rounding in
float32 is too much noise, both models are taken to float64 and run by the reference evaluator of
onnx, with convolutions and pools of our own, because ONNX Runtime has none for doubles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import ceil
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnxcompress.analyse.coupling.result import Coupling

FLOOR = 1e-2  # of every element: an output this small counts as this large
MASK = "mask of "
PASSING = {"Softmax", "Sigmoid", "Squeeze", "Reshape", "Flatten", "Transpose", "Identity"}
PRODUCERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Feeds = dict[str, np.ndarray]


def masked(model: onnx.ModelProto, coupling: Coupling) -> onnx.ModelProto:
    """Return the model with `output * mask` behind every producer that may lose channels."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in model.graph.output}
    wanted = {tensor for tensor in coupling.producers.values() if tensor in coupling.lanes}
    for node in model.graph.node:
        copy = result.graph.node.add()
        copy.CopyFrom(node)
        if not node.output or node.output[0] not in wanted:
            continue
        if node.op_type not in PRODUCERS:
            raise ValueError(f"{node.op_type} '{node.name}' is said to make channels")
        tensor = node.output[0]
        copy.output[0] = f"bare {tensor}"
        pair = [f"bare {tensor}", MASK + tensor]
        result.graph.node.append(helper.make_node("Mul", pair, [tensor]))
        kind = types.get(tensor) or TensorProto.FLOAT
        result.graph.input.append(helper.make_tensor_value_info(pair[1], kind, None))
    return result


def masks(
    model: onnx.ModelProto, coupling: Coupling, removed: Mapping[str, Sequence[int]]
) -> tuple[Feeds, dict[str, int]]:
    """Return the masks that zero these channels, and how many zeros each layer gets.

    Args:
        model: the canonical model.
        coupling: its coupling.
        removed: channel numbers by name of group.

    Raises:
        ValueError: channels are said to lie along an axis that the layer does not make.
    """
    chosen = {group.name: group.channels for group in coupling.groups}
    gone = {chosen[name][number] for name, numbers in removed.items() for number in numbers}
    nodes = {node.name: node for node in model.graph.node}
    constants = {tensor.name for tensor in model.graph.initializer}
    feeds: Feeds = {}
    zeros: dict[str, int] = {}
    for layer, tensor in coupling.producers.items():
        lane = coupling.lanes.get(tensor)
        if lane is None:
            continue
        node, rank = nodes[layer], len(coupling.shapes[tensor])
        axis = 1 if node.op_type != "MatMul" else rank - 1
        if node.op_type == "MatMul" and node.input[0] in constants:
            axis = rank - 2
        if lane.axis != axis:
            raise ValueError(f"{node.op_type} '{layer}' makes axis {axis}, not {lane.axis}")
        line = np.array([c not in gone for c in lane.classes.tolist()])
        zeros[layer] = int((~line).sum())
        shape = [-1 if a == axis else 1 for a in range(rank)]
        feeds[MASK + tensor] = line.reshape(shape).astype(np.float32)
    return feeds, zeros


def with_scores(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with more outputs: what goes into a Softmax or Sigmoid at its end.

    Probabilities of nearly 0 and 1 would hide differences.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    shown = {value.name for value in model.graph.output}
    for output in model.graph.output:
        node = makers.get(output.name)
        while node is not None and node.op_type in PASSING:
            name = node.input[0]
            if node.op_type in {"Softmax", "Sigmoid"} and name not in shown:
                kind = output.type.tensor_type.elem_type
                result.graph.output.append(helper.make_tensor_value_info(name, kind, None))
                shown.add(name)
            node = makers.get(name)
    return result


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """Open a model as it stands: one thread, no fusions."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(opened: ort.InferenceSession, feeds: Feeds) -> list[np.ndarray]:
    """Run a model on those of the feeds that it takes, cast to its types."""
    types = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    given = {
        i.name: feeds[i.name].astype(types[i.type]) if i.type in types else feeds[i.name]
        for i in opened.get_inputs()
    }
    return list(opened.run(None, given))


def relative_error(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Return the largest relative L2 error of any output.

    The norm of what is expected counts as at least FLOOR for every element.

    Raises:
        ValueError: shapes or types differ, or a number is not finite.
    """
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            raise ValueError(f"{one.dtype} {one.shape} instead of {other.dtype} {other.shape}")
        a, b = one.astype(np.float64), other.astype(np.float64)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError("an output is not finite")
        floor = FLOOR * np.sqrt(max(b.size, 1))
        worst = max(worst, float(np.linalg.norm(a - b) / max(np.linalg.norm(b), floor)))
    return worst


def to_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with float64 wherever it has float32 or float16."""
    kinds = {TensorProto.FLOAT, TensorProto.FLOAT16}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for tensor in graph.initializer:
        if tensor.data_type in kinds:
            values = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in kinds:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in {"to", "dtype"} and attribute.i in kinds:
                attribute.i = TensorProto.DOUBLE
            elif attribute.name == "value" and attribute.t.data_type in kinds:
                values = numpy_helper.to_array(attribute.t).astype(np.float64)
                attribute.t.CopyFrom(numpy_helper.from_array(values))
    return result


def run_double(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    """Run a float32 model in float64 throughout."""
    own = [Conv, MaxPool, AveragePool]
    evaluator = ReferenceEvaluator(to_double(model), new_ops=own)
    given = {name: feeds[name] for name in evaluator.input_names}
    wide = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in given.items()}
    return list(evaluator.run(None, wide))


def _windows(
    x: np.ndarray,
    kernel: Sequence[int],
    options: Mapping[str, Any],
    fill: float = 0.0,
    beyond: float = 0.0,
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Yield, for every place in the kernel, what it sees: x [N, C, *out].

    The padding is full of `fill`; what ceil_mode adds behind it, of `beyond`.
    """
    rank = len(kernel)
    strides = options.get("strides") or [1] * rank
    dilations = options.get("dilations") or [1] * rank
    pads = list(options.get("pads") or [0] * 2 * rank)
    wide = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto = options.get("auto_pad") or "NOTSET"
    if auto.startswith("SAME"):
        for a, extent in enumerate(x.shape[2:]):
            need = max((ceil(extent / strides[a]) - 1) * strides[a] + wide[a] - extent, 0)
            less, more = need // 2, need - need // 2
            pads[a], pads[rank + a] = (less, more) if auto == "SAME_UPPER" else (more, less)
    counts, extra = [], [(0, 0), (0, 0)]
    for a, extent in enumerate(x.shape[2:]):
        steps = (extent + pads[a] + pads[rank + a] - wide[a]) / strides[a]
        count = (ceil(steps) if options.get("ceil_mode") else int(steps)) + 1
        if (count - 1) * strides[a] >= extent + pads[a]:
            count -= 1  # a window that would start in the padding behind
        reach = (count - 1) * strides[a] + wide[a]
        extra.append((0, max(reach - extent - pads[a] - pads[rank + a], 0)))
        counts.append(count)
    around = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    padded = np.pad(np.pad(x, around, constant_values=fill), extra, constant_values=beyond)
    for place in product(*map(range, kernel)):
        cut = [
            slice(p * d, p * d + (n - 1) * s + 1, s)
            for p, d, n, s in zip(place, dilations, counts, strides, strict=True)
        ]
        yield place, padded[(slice(None), slice(None), *cut)]


class Conv(OpRun):
    """Convolution in the type of its inputs: a matrix product for every place in the kernel."""

    op_domain = ""

    def _run(self, x: np.ndarray, w: np.ndarray, b: Any = None, **options: Any) -> tuple[Any]:
        groups = options.get("group") or 1
        result: Any = 0.0
        for place, seen in _windows(x, w.shape[2:], options):
            at: tuple[Any, ...] = (slice(None), slice(None), *place)
            weight = w[at].reshape(groups, -1, w.shape[1])
            parts = seen.reshape(len(x), groups, w.shape[1], -1)
            single = w.shape[1] == 1
            result = result + (weight * parts if single else np.matmul(weight, parts))
            space = seen.shape[2:]
        result = result.reshape(len(x), len(w), *space)
        return (result if b is None else result + b.reshape(-1, *[1] * len(space)),)


class MaxPool(OpRun):
    """Largest value of every window."""

    op_domain = ""

    def _run(self, x: np.ndarray, **options: Any) -> tuple[Any]:
        low = -np.inf
        views = (seen for _, seen in _windows(x, options["kernel_shape"], options, low, low))
        result = next(views).copy()
        for seen in views:
            np.maximum(result, seen, out=result)
        return (result,)


class AveragePool(OpRun):
    """Average of every window; what ceil_mode adds behind the padding never counts."""

    op_domain = ""

    def _run(self, x: np.ndarray, **options: Any) -> tuple[Any]:
        kernel, ones = options["kernel_shape"], np.ones((1, 1, *x.shape[2:]))
        counted = float(options.get("count_include_pad") or 0)
        total = sum(seen for _, seen in _windows(x, kernel, options))
        return (total / sum(seen for _, seen in _windows(ones, kernel, options, counted)),)
