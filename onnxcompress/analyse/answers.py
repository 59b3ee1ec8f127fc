"""What kind of answer a network gives."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnxcompress.graph.view import FLOATING_TYPES


def is_class_shape(shape: Sequence[int | str | None]) -> bool:
    """Whether an output of this shape can be class scores: [N, K] with K > 1, then ones."""
    return (
        len(shape) >= 2
        and isinstance(shape[1], int)
        and shape[1] > 1
        and all(extent == 1 for extent in shape[2:])
    )


def is_classifier(output_shapes: Sequence[Sequence[int | str | None]]) -> bool:
    """Whether a network's answer is a class.

    Args:
        output_shapes: Shapes of the floating-point outputs only.

    Returns:
        True for exactly one output, of shape [N, K] with K > 1 but for trailing extents of one.
    """
    return len(output_shapes) == 1 and is_class_shape(output_shapes[0])


def declared_answers(model: onnx.ModelProto) -> list[list[int | None]]:
    """Shapes of the floating-point outputs as the model declares them; None where it is open."""
    return [
        [d.dim_value if d.HasField("dim_value") else None for d in o.type.tensor_type.shape.dim]
        for o in model.graph.output
        if o.type.tensor_type.elem_type in FLOATING_TYPES
    ]
