"""All operators that the interpreter knows."""

from __future__ import annotations

from onnxcompress.finetune.operators import (
    elementwise,
    indexing,
    layers,
    movement,
    normalising,
    pooling,
    reducing,
    resizing,
)
from onnxcompress.finetune.operators.call import Operator

OPERATORS: dict[str, Operator] = {
    **elementwise.OPERATORS,
    **indexing.OPERATORS,
    **layers.OPERATORS,
    **movement.OPERATORS,
    **normalising.OPERATORS,
    **pooling.OPERATORS,
    **reducing.OPERATORS,
    **resizing.OPERATORS,
}
