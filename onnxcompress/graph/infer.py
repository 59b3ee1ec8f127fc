"""Shapes, inferred on the skeleton so that large weights are never serialised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from onnxcompress.errors import ModelError
from onnxcompress.graph.skeleton import skeleton

Shapes = dict[str, tuple[int, ...]]


def with_value_info(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the value_info of `model`, in place, by freshly inferred types and shapes."""
    del model.graph.value_info[:]
    light = skeleton(model)
    inferred = _infer(light.model)
    model.graph.value_info.extend(
        value for value in inferred.graph.value_info if value.name not in light.weights
    )
    return model


def static_shapes(model: onnx.ModelProto) -> Shapes:
    """Every shape that is known without running the model, whatever the inputs' sizes."""
    return _complete(partial_shapes(model))


def partial_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """Every rank that is known without running the model, with None for a dynamic dimension."""
    light = onnx.ModelProto()
    light.CopyFrom(skeleton(model).model)
    del light.graph.value_info[:]
    return _declared(_infer(light))


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor for which it can be inferred."""
    light = onnx.ModelProto()
    light.CopyFrom(skeleton(model).model)
    del light.graph.value_info[:]
    inferred = _infer(light)
    types = {tensor.name: int(tensor.data_type) for tensor in model.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        types[value.name] = int(value.type.tensor_type.elem_type)
    return types


def shapes_at(model: onnx.ModelProto, sizes: Mapping[str, Sequence[int]]) -> Shapes:
    """Every shape that follows from giving the inputs the sizes in `sizes`.

    Raises:
        ModelError: the sizes contradict the graph.
    """
    light = onnx.ModelProto()
    light.CopyFrom(skeleton(model).model)
    del light.graph.value_info[:]
    for value in light.graph.input:
        if value.name in sizes:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in sizes[value.name]:
                shape.dim.add(dim_value=int(size))
    # The declared output shapes may hold symbols that now have values, or stale numbers.
    for output in light.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    return _complete(_declared(_infer(light)))


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception:  # noqa: BLE001, S110  (onnx raises several types; the second try reports)
        pass
    try:
        # Operators that are functions (GroupNormalization) are only looked into with type checks.
        return onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
    except Exception as error:
        raise ModelError(f"shape inference fails: {' '.join(str(error).split())[:300]}") from error


def _complete(shapes: dict[str, tuple[int | None, ...]]) -> Shapes:
    return {
        name: tuple(dim for dim in shape if dim is not None)
        for name, shape in shapes.items()
        if None not in shape
    }


def _declared(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    shapes: dict[str, tuple[int | None, ...]] = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            shapes[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else None
                for dim in value.type.tensor_type.shape.dim
            )
    return shapes
