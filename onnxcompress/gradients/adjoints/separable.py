"""Linear operators that work along one axis at a time: dX = A' dY B, with small matrices.

The matrices are found by running the operator itself on unit vectors along each axis, so that
they are those of ONNX Runtime's kernel, rounding rules and all.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from onnxcompress.analyse.coupling.execute import as_wide
from onnxcompress.errors import GradientError
from onnxcompress.gradients.step import Adjoint, Step
from onnxcompress.runtime import Array, Execution, open_session

_EXECUTION = Execution(threads=1, optimise=False, spinning=False)


def along(step: Step, gradient: str, matrices: Mapping[int, Array]) -> str:
    """Multiply a gradient by matrices [out, in], transposed, along their axes."""
    rank = len(step.shape(step.x))
    for axis, matrix in sorted(matrices.items(), reverse=True):
        if axis == rank - 1:
            gradient = step.op("MatMul", gradient, step.array(matrix))
        elif axis == rank - 2:
            gradient = step.op("MatMul", step.array(matrix.T), gradient)
        else:
            order = [*range(axis), *range(axis + 1, rank), axis]
            last = step.emit.op("Transpose", gradient, perm=order)
            moved = step.op("MatMul", last, step.array(matrix))
            back = [order.index(a) for a in range(rank)]
            gradient = step.emit.op("Transpose", moved, perm=back)
    return gradient


def resize(step: Step) -> Mapping[int, str]:
    """Nearest, linear and cubic interpolation weigh every axis by itself."""
    step.only(0)
    if step.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise GradientError("coordinate_transformation_mode tf_crop_and_resize")
    if step.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise GradientError("keep_aspect_ratio_policy")
    shape, result = step.shape(step.x), step.shape(step.y)
    if shape == result:
        # Whatever the scales say, the kernel copies its input then.
        return {0: step.dy}
    scaled = [a for a in range(len(shape)) if _changes(step, a)]
    return {0: along(step, step.dy, {a: _response(step, a, shape[a], result[a]) for a in scaled})}


def _changes(step: Step, axis: int) -> bool:
    if step.shape(step.x)[axis] != step.shape(step.y)[axis]:
        return True
    scale = _scales(step)[axis]
    return scale is not None and scale != 1.0


def _scales(step: Step) -> list[float | None]:
    """The scale of every axis; None where sizes are given instead."""
    rank = len(step.shape(step.x))
    axes = [int(a) % rank for a in step.attributes.get("axes", range(rank))]
    given = step.value(2).tolist() if step.has(2) else []
    if not given:
        return [None] * rank
    scales: list[float | None] = [1.0] * rank
    for axis, scale in zip(axes, given, strict=True):
        scales[axis] = float(scale)
    return scales


def _response(step: Step, axis: int, extent: int, result: int) -> Array:
    """[out, in]: what comes out along an axis for every unit vector."""
    node = onnx.NodeProto()
    node.CopyFrom(step.node)
    kept = [a for a in node.attribute if a.name != "axes"]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.input[:] = ["x", "", "scales", ""]
    node.output[:] = ["y"]
    scale = _scales(step)[axis]
    # The vectors lie side by side along an axis that is not resized, before one of extent 1.
    if scale is None:
        node.input[2], node.input[3] = "", "sizes"
        extra = onnx.numpy_helper.from_array(np.array([extent, 1, result, 1]), "sizes")
    else:
        # An extent that a scale leaves as it is would be copied, did not another one change.
        other = 2.0 if result == extent else 1.0
        scales = np.array([1.0, 1.0, scale, other], dtype=np.float32)
        extra = onnx.numpy_helper.from_array(scales, "scales")
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)]
    outputs = [onnx.ValueInfoProto(name="y")]
    graph = onnx.helper.make_graph([node], "response", inputs, outputs, [extra])
    source = step.known.view.model
    model = onnx.helper.make_model(
        graph, opset_imports=source.opset_import, ir_version=max(source.ir_version, 8)
    )
    with open_session(model, _EXECUTION) as session:
        units = np.eye(extent, dtype=np.float32).reshape(extent, 1, extent, 1)
        found = as_wide(session.run({"x": units})[0])[:, 0, :, 0]
        # An extrapolation value is no part of the slope.
        level = as_wide(session.run({"x": np.zeros_like(units)})[0])[:, 0, :, 0]
    return (found - level).T


SEPARABLE: Mapping[str, Adjoint] = {"Resize": resize}
