"""Convolutions and matrix products.

The adjoint of a convolution in its input is the transposed convolution with the same weight; with
stride one that is a plain convolution with the weight turned round, for which kernels are faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxcompress.gradients.adjoints.windows import Windows, windows
from onnxcompress.gradients.known import Shape
from onnxcompress.gradients.step import Adjoint, Step
from onnxcompress.runtime import Array


def conv(step: Step) -> Mapping[int, str]:
    """Y = W * X: dX is the transposed convolution of dY."""
    step.only(0)
    weight, size = step.node.input[1], step.shape(step.x)[2:]
    out = step.shape(step.y)[2:]
    group = int(step.attributes.get("group", 1))
    window = windows(step.attributes, step.shape(weight)[2:], size, out)
    reach = window.reach
    begins = [r - p for r, p in zip(reach, window.begins, strict=True)]
    ends = [r - p for r, p in zip(reach, window.ends, strict=True)]
    plain = set(window.strides) == {1} and min(begins + ends) >= 0
    if plain and step.known.view.is_constant(weight):
        turned = step.emit.constant(_turned(step.value(1), group))
        geometry = {"pads": begins + ends, "dilations": list(window.dilations), "group": group}
        return {0: step.op("Conv", step.dy, turned, **geometry)}
    return {0: _transposed(step, step.dy, weight, window, size, out, group)}


def _transposed(
    step: Step, dy: str, weight: str, window: Windows, size: Shape, out: Shape, group: int
) -> str:
    """The transposed convolution that ends at exactly `size`."""
    # What strides skip at the end: rows that no window reached get a gradient of zero.
    missing = [
        s + b + e - r - 1 - (o - 1) * t
        for s, b, e, r, o, t in zip(
            size, window.begins, window.ends, window.reach, out, window.strides, strict=True
        )
    ]
    # ONNX Runtime wants output_padding below the stride, which it is for every floor.
    return step.op(
        "ConvTranspose",
        dy,
        weight,
        strides=list(window.strides),
        dilations=list(window.dilations),
        pads=window.pads,
        output_padding=missing,
        group=group,
    )


def _turned(weight: Array, group: int) -> Array:
    """[Cout, Cin/g, *k] to [Cin, Cout/g, *k], every kernel turned round."""
    cout, inner, *kernel = weight.shape
    parts = weight.reshape(group, cout // group, inner, *kernel).swapaxes(1, 2)
    turned = parts.reshape(group * inner, cout // group, *kernel)
    return np.flip(turned, axis=tuple(range(2, turned.ndim)))


def conv_transpose(step: Step) -> Mapping[int, str]:
    """Y = W *' X: dX is the convolution of dY with the same weight."""
    step.only(0)
    weight, size = step.node.input[1], step.shape(step.y)[2:]
    out = step.shape(step.x)[2:]
    window = windows(step.attributes, step.shape(weight)[2:], size, out, transposed=True)
    made = step.op(
        "Conv",
        step.dy,
        weight,
        strides=list(window.strides),
        dilations=list(window.dilations),
        pads=window.pads,
        group=int(step.attributes.get("group", 1)),
    )
    # A large output_padding leaves room for windows that the operator itself does not have.
    longest = [
        (s + b + e - r - 1) // t + 1
        for s, b, e, r, t in zip(
            size, window.begins, window.ends, window.reach, window.strides, strict=True
        )
    ]
    if tuple(longest) == out:
        return {0: made}
    axes = range(2, 2 + len(out))
    sizes = step.emit.sizes
    return {0: step.emit.op("Slice", made, sizes([0] * len(out)), sizes(out), sizes(axes))}


def gemm(step: Step) -> Mapping[int, str]:
    """Y = alpha A' B' + beta C with A' = A or its transpose."""
    alpha = float(step.attributes.get("alpha", 1.0))
    left, right = (int(step.attributes.get(n, 0)) for n in ("transA", "transB"))
    a, b = step.node.input[:2]
    found: dict[int, str] = {}
    if 0 in step.wanted:
        found[0] = (
            step.op("Gemm", b, step.dy, transA=right, transB=1, alpha=alpha)
            if left
            else step.op("Gemm", step.dy, b, transB=1 - right, alpha=alpha)
        )
    if 1 in step.wanted:
        found[1] = (
            step.op("Gemm", step.dy, a, transA=1, transB=left, alpha=alpha)
            if right
            else step.op("Gemm", a, step.dy, transA=1 - left, alpha=alpha)
        )
    if 2 in step.wanted:
        beta = float(step.attributes.get("beta", 1.0))
        scaled = step.op("Mul", step.dy, beta)
        found[2] = step.within(scaled, step.shape(step.y), 2)
    return found


def matmul(step: Step) -> Mapping[int, str]:
    """NumPy's rules: vectors count as matrices, leading axes broadcast."""
    a, b = step.node.input[:2]
    shapes = step.shape(a), step.shape(b)
    dy = step.dy
    whole = list(step.shape(step.y))
    if len(shapes[0]) == 1:
        whole.insert(len(whole) - (len(shapes[1]) > 1), 1)
    if len(shapes[1]) == 1:
        whole.append(1)
    if len(whole) != len(step.shape(step.y)):
        dy = step.reshape(dy, whole)
    found: dict[int, str] = {}
    if 0 in step.wanted:
        turned = _swapped(step, 1, (-1, 1))
        found[0] = _reduced(step, step.op("MatMul", dy, turned), 0, whole[:-2])
    if 1 in step.wanted:
        turned = _swapped(step, 0, (1, -1))
        found[1] = _reduced(step, step.op("MatMul", turned, dy), 1, whole[:-2])
    return found


def _swapped(step: Step, index: int, vector: Sequence[int]) -> str:
    """An operand with its last two axes swapped; a vector as the matrix that it stands for."""
    name = step.node.input[index]
    rank = len(step.shape(name))
    if rank == 1:
        return step.reshape(name, vector[::-1])
    if step.known.view.is_constant(name):
        return step.emit.constant(step.value(index).swapaxes(-1, -2))
    order = [*range(rank - 2), rank - 1, rank - 2]
    return step.emit.op("Transpose", name, perm=order)


def _reduced(step: Step, gradient: str, index: int, lead: Sequence[int]) -> str:
    """Sum over the leading axes that operand `index` was broadcast along."""
    own = step.shape(step.node.input[index])
    if len(own) == 1:
        matrix: Shape = (1, own[0]) if index == 0 else (own[0], 1)
    else:
        matrix = own
    padded = (1,) * (len(lead) + 2 - len(matrix)) + matrix
    axes = [a for a in range(len(lead)) if padded[a] != lead[a]]
    summed = step.total(gradient, axes) if axes else gradient
    return summed if padded == own else step.reshape(summed, own)


LAYERS: Mapping[str, Adjoint] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
}
