"""Two layers with nothing between them are one: W = W2 W1, b = W2 b1 + b2.

A 1x1 layer is merged into the convolution in front or behind; two dense layers into one. The
result may take more MACs (a bottleneck without an activation loses its narrow middle), so the
measured time has the last word. Behind a 1x1 layer with a bias, zero padding is not what the bias
would have put there: such pairs stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxcompress.errors import ModelError
from onnxcompress.graph.cost import Shapes
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.spec import ConvSpec, DenseSpec, conv_spec, dense_spec
from onnxcompress.graph.view import FLOATING_TYPES, GraphView
from onnxcompress_passes.exact.finding import Finding, Kind, is_kind

Array = NDArray[np.float64]

_MOST = 4
"""Parameters of the merged layer, at most, as a multiple of those of both: more is never faster."""


def _find(view: GraphView, _: Shapes) -> Iterator[Finding]:
    taken: set[str] = set()
    for node in view.model.graph.node:
        use = view.sole_use(node.output[0]) if node.output else None
        if use is None or use.index or node.name in taken:
            continue
        pair = (node, use.node)
        merged = all(is_kind(n, "Conv") for n in pair) and _convolutions(*pair, view)
        if merged or (all(is_kind(n, "Gemm", "MatMul") for n in pair) and _dense(*pair, view)):
            # A third layer behind is left for another round.
            taken.add(use.node.name)
            yield Finding(use.node.name, (node.name, use.node.name))


def _convolutions(one: onnx.NodeProto, two: onnx.NodeProto, view: GraphView) -> bool:
    try:
        first, second = conv_spec(one, view), conv_spec(two, view)
    except ModelError:
        return False
    if first.spatial != second.spatial or not _constant(view, first, second):
        return False
    if not (_moveless(second) or (_moveless(first) and _unpadded(first, second, view))):
        return False
    groups = first.group if first.group == second.group else 1
    kernel = first.kernel if _moveless(second) else second.kernel
    size = second.out_channels * first.in_channels // groups * prod(kernel)
    return size <= _MOST * sum(view.array(s.weight).size for s in (first, second))


def _moveless(conv: ConvSpec) -> bool:
    """Whether a convolution answers at every position from that position alone."""
    still = conv.pointwise and set(conv.strides) == {1} and not any(conv.pads)
    return still and conv.auto_pad in {"NOTSET", "VALID"}


def _unpadded(first: ConvSpec, second: ConvSpec, view: GraphView) -> bool:
    """Whether what the second layer pads with is what the first answers to zeros."""
    plain = second.auto_pad in {"NOTSET", "VALID"} and not any(second.pads)
    return plain or first.bias is None or not view.array(first.bias).any()


def _dense(one: onnx.NodeProto, two: onnx.NodeProto, view: GraphView) -> bool:
    try:
        first, second = dense_spec(one, view), dense_spec(two, view)
    except ModelError:
        return False
    size = first.in_features * second.out_features
    return _constant(view, first, second) and size <= _MOST * (
        first.in_features * first.out_features + second.in_features * second.out_features
    )


def _constant(view: GraphView, *layers: ConvSpec | DenseSpec) -> bool:
    """Whether weights are floating, finite and of one type, and biases are constants."""
    kinds = {view.initializers[layer.weight].data_type for layer in layers}
    biases = [layer.bias for layer in layers if layer.bias is not None]
    known = all(view.is_constant(bias) for bias in biases)
    whole = all(np.isfinite(view.array64(layer.weight)).all() for layer in layers)
    vectors = known and all(
        isinstance(layer, ConvSpec) or view.array(layer.bias).size == layer.out_features
        for layer in layers
        if layer.bias is not None
    )
    return len(kinds) == 1 and kinds <= FLOATING_TYPES and whole and vectors


def _apply(edit: Editor, names: Sequence[str], view: GraphView) -> None:
    one, two = (view.nodes[name] for name in names)
    merge = _merged_convolutions if one.op_type == "Conv" else _merged_dense
    op, attrs, weight, bias = merge(one, two, view)
    dtype = view.array(one.input[1]).dtype
    last = edit.node(two.name)
    inputs = [edit.node(one.name).inputs[0]]
    inputs.append(edit.constant(f"{two.name}_exact_weight", weight.astype(dtype)))
    if bias is not None:
        inputs.append(edit.constant(f"{two.name}_exact_bias", bias.astype(dtype)))
    edit.replace(last, [gs.Node(op, f"{two.name}_exact", attrs, inputs=inputs)])


Merged = tuple[str, dict[str, object], Array, Array | None]


def _merged_convolutions(one: onnx.NodeProto, two: onnx.NodeProto, view: GraphView) -> Merged:
    first, second = conv_spec(one, view), conv_spec(two, view)
    groups = first.group if first.group == second.group else 1
    a = _blocks(view.array64(first.weight), first.group, groups)
    b = _blocks(view.array64(second.weight), second.group, groups)
    # [groups, out, middle, taps] and [groups, middle, in, taps]; one of them has a single tap.
    weight = np.einsum("gomt,gmis->goits", b, a)
    kernel = first.kernel if _moveless(second) else second.kernel
    weight = weight.reshape(second.out_channels, first.in_channels // groups, *kernel)
    geometry = (first if _moveless(second) else second).geometry()
    bias = None
    if first.bias is not None:
        pushed = b.sum(axis=3) @ view.array64(first.bias).reshape(groups, -1, 1)
        bias = pushed.reshape(-1)
    if second.bias is not None:
        own = view.array64(second.bias)
        bias = own if bias is None else bias + own
    attrs = {"kernel_shape": list(kernel), "group": groups, **geometry}
    return "Conv", attrs, weight, bias


def _blocks(weight: Array, group: int, groups: int) -> Array:
    """A weight [out, in / group, *k] as [groups, out, in, taps], zeros where nothing is joined."""
    rows, columns = len(weight), weight.shape[1]
    flat = weight.reshape(rows, columns, -1)
    if group == groups:
        return flat.reshape(groups, rows // groups, columns, -1)
    whole = np.zeros((rows, columns * group, flat.shape[2]))
    each = rows // group
    for at in range(group):
        own = slice(at * each, (at + 1) * each)
        whole[own, at * columns : (at + 1) * columns] = flat[own]
    return whole[np.newaxis]


def _merged_dense(one: onnx.NodeProto, two: onnx.NodeProto, view: GraphView) -> Merged:
    first, second = dense_spec(one, view), dense_spec(two, view)
    a, b = (_matrix(spec, view) for spec in (first, second))
    bias = None
    if first.bias is not None:
        bias = first.beta * view.array64(first.bias).reshape(-1) @ b
    if second.bias is not None:
        own = second.beta * view.array64(second.bias).reshape(-1)
        bias = own if bias is None else bias + own
    # MatMul takes any number of leading axes, Gemm a bias.
    op = "Gemm" if "Gemm" in {first.op, second.op} else "MatMul"
    return op, {}, a @ b, bias


def _matrix(spec: DenseSpec, view: GraphView) -> Array:
    """What the layer multiplies a row of features by, from the right."""
    stored = view.array64(spec.weight)
    return spec.alpha * (stored.T if spec.transposed else stored)


LINEAR = Kind(_find, _apply, "merged with the layer in front")
