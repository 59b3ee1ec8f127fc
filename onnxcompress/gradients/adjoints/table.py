"""Every operator with an adjoint, and those whose gradient is zero wherever it exists."""

from __future__ import annotations

from collections.abc import Mapping

from onnxcompress.gradients.adjoints.arithmetic import ARITHMETIC
from onnxcompress.gradients.adjoints.layers import LAYERS
from onnxcompress.gradients.adjoints.movement import MOVEMENT
from onnxcompress.gradients.adjoints.normalising import NORMALISING
from onnxcompress.gradients.adjoints.pooling import POOLING
from onnxcompress.gradients.adjoints.reducing import REDUCING
from onnxcompress.gradients.adjoints.separable import SEPARABLE
from onnxcompress.gradients.adjoints.unary import UNARY
from onnxcompress.gradients.step import Adjoint

ADJOINTS: Mapping[str, Adjoint] = {
    **LAYERS,
    **UNARY,
    **ARITHMETIC,
    **MOVEMENT,
    **POOLING,
    **SEPARABLE,
    **REDUCING,
    **NORMALISING,
}

PIECEWISE_CONSTANT = frozenset(
    {
        "And",
        "ArgMax",
        "ArgMin",
        "Ceil",
        "ConstantOfShape",
        "Equal",
        "Floor",
        "Greater",
        "GreaterOrEqual",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "NonZero",
        "Not",
        "Or",
        "Round",
        "Shape",
        "Sign",
        "Size",
        "Xor",
    }
)
