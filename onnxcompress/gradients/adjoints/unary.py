"""Functions of one tensor, element by element: dX = dY f'(X), at kinks one of the two slopes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import pi, sqrt

import numpy as np

from onnxcompress.errors import GradientError
from onnxcompress.gradients.step import Adjoint, Step

_SELU = (1.67326319217681884765625, 1.05070102214813232421875)
Rule = Callable[[Step], str]
"""Emits dX."""


def _scaled(slope: Rule) -> Rule:
    """The gradient from an expression for f'."""
    return lambda step: step.op("Mul", step.dy, slope(step))


def _where(step: Step, condition: str, yes: str | float, no: str | float = 0.0) -> str:
    operands = [v if isinstance(v, str) else step.number(v) for v in (yes, no)]
    return step.emit.op("Where", condition, *operands)


def _relu(step: Step) -> str:
    return _where(step, step.op("Greater", step.y, 0.0), step.dy)


def _leaky(step: Step) -> str:
    slope = float(step.attributes.get("alpha", 0.01))
    return _where(step, step.op("Greater", step.x, 0.0), step.dy, step.op("Mul", step.dy, slope))


def _elu(step: Step) -> str:
    alpha = float(step.attributes.get("alpha", 1.0))
    below = step.op("Mul", step.dy, step.op("Add", step.y, alpha))
    return _where(step, step.op("Greater", step.x, 0.0), step.dy, below)


def _celu(step: Step) -> str:
    alpha = float(step.attributes.get("alpha", 1.0))
    below = step.op("Mul", step.dy, step.op("Exp", step.op("Div", step.x, alpha)))
    return _where(step, step.op("Greater", step.x, 0.0), step.dy, below)


def _selu(step: Step) -> str:
    alpha = float(step.attributes.get("alpha", _SELU[0]))
    gamma = float(step.attributes.get("gamma", _SELU[1]))
    below = step.op("Mul", step.dy, step.op("Add", step.y, alpha * gamma))
    above = step.op("Mul", step.dy, gamma)
    return _where(step, step.op("Greater", step.x, 0.0), above, below)


def _thresholded(step: Step) -> str:
    alpha = float(step.attributes.get("alpha", 1.0))
    return _where(step, step.op("Greater", step.x, alpha), step.dy)


def _clip(step: Step) -> str:
    gradient = step.dy
    for index, name, kind in ((1, "min", "Greater"), (2, "max", "Less")):
        limit = step.given(index, name, None)
        if limit is not None:
            gradient = _where(step, step.op(kind, step.x, float(np.ravel(limit)[0])), gradient)
    return gradient


def _sigmoid(step: Step) -> str:
    return step.op("Mul", step.y, step.op("Sub", 1.0, step.y))


def _tanh(step: Step) -> str:
    return step.op("Sub", 1.0, step.op("Mul", step.y, step.y))


def _hard_sigmoid(step: Step) -> str:
    alpha = float(step.attributes.get("alpha", 0.2))
    open_ = step.op("And", step.op("Greater", step.y, 0.0), step.op("Less", step.y, 1.0))
    return _where(step, open_, step.op("Mul", step.dy, alpha))


def _hard_swish(step: Step) -> str:
    ramp = step.op("Add", step.op("Mul", step.x, 1.0 / 3.0), 0.5)
    above = _where(step, step.op("Less", step.x, 3.0), ramp, 1.0)
    return _where(step, step.op("Greater", step.x, -3.0), above)


def _softplus(step: Step) -> str:
    return step.op("Sigmoid", step.x)


def _softsign(step: Step) -> str:
    wide = step.op("Add", step.op("Abs", step.x), 1.0)
    return step.op("Div", 1.0, step.op("Mul", wide, wide))


def _erf(step: Step) -> str:
    square = step.op("Mul", step.op("Mul", step.x, step.x), -1.0)
    return step.op("Mul", step.op("Exp", square), 2.0 / sqrt(pi))


def _gelu(step: Step) -> str:
    """Of x Phi(x), or of its approximation by a hyperbolic tangent."""
    x = step.x
    if step.attributes.get("approximate", "none") == "tanh":
        rate, cubic = sqrt(2.0 / pi), 0.044715
        square = step.op("Mul", x, x)
        inner = step.op("Mul", x, step.op("Add", step.op("Mul", square, rate * cubic), rate))
        bent = step.op("Tanh", inner)
        slope = step.op("Add", step.op("Mul", square, 3.0 * rate * cubic), rate)
        rise = step.op("Mul", step.op("Sub", 1.0, step.op("Mul", bent, bent)), slope)
        both = step.op("Add", step.op("Add", bent, 1.0), step.op("Mul", x, rise))
        return step.op("Mul", both, 0.5)
    below = step.op("Mul", step.op("Add", step.op("Erf", step.op("Mul", x, sqrt(0.5))), 1.0), 0.5)
    square = step.op("Mul", step.op("Mul", x, x), -0.5)
    density = step.op("Mul", step.op("Exp", square), 1.0 / sqrt(2.0 * pi))
    return step.op("Add", below, step.op("Mul", x, density))


def _swish(step: Step) -> str:
    """Of x sigmoid(alpha x)."""
    alpha = float(step.attributes.get("alpha", 1.0))
    gate = step.op("Sigmoid", step.op("Mul", step.x, alpha))
    bend = step.op("Mul", step.op("Mul", step.y, alpha), step.op("Sub", 1.0, gate))
    return step.op("Add", gate, bend)


def _mish(step: Step) -> str:
    """Of x tanh(softplus(x))."""
    bent = step.op("Tanh", step.op("Softplus", step.x))
    rise = step.op("Mul", step.op("Sigmoid", step.x), _one_minus_square(step, bent))
    return step.op("Add", bent, step.op("Mul", step.x, rise))


def _one_minus_square(step: Step, tensor: str) -> str:
    return step.op("Sub", 1.0, step.op("Mul", tensor, tensor))


def _sqrt(step: Step) -> str:
    # At zero the slope is infinite: what is zero gets no gradient there, as in ReduceL2.
    return _where(step, step.op("Greater", step.y, 0.0), step.op("Div", 0.5, step.y))


def _reciprocal(step: Step) -> str:
    return step.op("Mul", step.op("Mul", step.y, step.y), -1.0)


def _sin(step: Step) -> str:
    return step.op("Cos", step.x)


def _cos(step: Step) -> str:
    return step.op("Neg", step.op("Sin", step.x))


def _cast(step: Step) -> str:
    kind = step.known.types[step.x]
    return step.emit.op("Cast", step.dy, to=kind)


_SLOPES: Mapping[str, Rule] = {
    "Abs": lambda step: step.op("Sign", step.x),
    "Cos": _cos,
    "Erf": _erf,
    "Exp": lambda step: step.y,
    "Gelu": _gelu,
    "HardSwish": _hard_swish,
    "Log": lambda step: step.op("Div", 1.0, step.x),
    "Mish": _mish,
    "Reciprocal": _reciprocal,
    "Sigmoid": _sigmoid,
    "Sin": _sin,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "Sqrt": _sqrt,
    "Swish": _swish,
    "Tanh": _tanh,
}

_RULES: Mapping[str, Rule] = {
    "Cast": _cast,
    "Celu": _celu,
    "Clip": _clip,
    "Elu": _elu,
    "HardSigmoid": _hard_sigmoid,
    "Identity": lambda step: step.dy,
    "LeakyRelu": _leaky,
    "Neg": lambda step: step.op("Neg", step.dy),
    "Relu": _relu,
    "Selu": _selu,
    "ThresholdedRelu": _thresholded,
} | {name: _scaled(slope) for name, slope in _SLOPES.items()}


def _adjoint(rule: Rule) -> Adjoint:
    def adjoint(step: Step) -> Mapping[int, str]:
        step.only(0)
        return {0: rule(step)}

    return adjoint


def dropout(step: Step) -> Mapping[int, str]:
    """Outside training it is the identity."""
    step.only(0)
    if step.has(2) and bool(step.value(2)):
        raise GradientError("it is in training mode")
    return {0: step.dy}


UNARY: Mapping[str, Adjoint] = {name: _adjoint(rule) for name, rule in _RULES.items()} | {
    "Dropout": dropout
}
