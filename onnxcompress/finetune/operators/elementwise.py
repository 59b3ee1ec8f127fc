"""Operators that look at one element of every operand at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import torch
from torch.nn import functional

from onnxcompress.finetune.operators.call import Call, Operator, UnsupportedError, torch_type


def unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Operator:
    """An operator of one operand."""
    return lambda call: function(call.x)


def binary(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Operator:
    """An operator of two operands that are broadcast."""
    return lambda call: function(call.x, call.input(1))


def chained(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Operator:
    """An operator of any number of operands."""
    return lambda call: reduce(function, (call.input(at) for at in range(len(call.inputs))))


def divide(call: Call) -> torch.Tensor:
    """Div; of integers, towards zero."""
    whole = not call.x.is_floating_point()
    return torch.div(call.x, call.input(1), rounding_mode="trunc" if whole else None)


def power(call: Call) -> torch.Tensor:
    """Pow; the result has the type of the base."""
    return torch.pow(call.x, call.input(1)).to(call.x.dtype)


def modulo(call: Call) -> torch.Tensor:
    """Mod; with fmod the sign of the first operand, else of the second."""
    function = torch.fmod if call.get("fmod", 0) else torch.remainder
    return function(call.x, call.input(1))


def mean(call: Call) -> torch.Tensor:
    """Mean of any number of operands."""
    operands = [call.input(at) for at in range(len(call.inputs))]
    return reduce(torch.add, operands) / len(operands)


def clip(call: Call) -> torch.Tensor:
    """Clip; bounds are attributes before operator set 11."""
    low, high = call.optional(1), call.optional(2)
    if call.opset < 11:
        return torch.clamp(call.x, call.get("min", -math.inf), call.get("max", math.inf))
    # A minimum above the maximum gives the maximum, as torch has it, too.
    value = call.x if low is None else torch.maximum(call.x, low)
    return value if high is None else torch.minimum(value, high)


def prelu(call: Call) -> torch.Tensor:
    """PRelu with a slope that is broadcast."""
    return torch.where(call.x < 0, call.x * call.input(1), call.x)


def hard_sigmoid(call: Call) -> torch.Tensor:
    """HardSigmoid."""
    return torch.clamp(call.get("alpha", 0.2) * call.x + call.get("beta", 0.5), 0.0, 1.0)


def hard_swish(call: Call) -> torch.Tensor:
    """HardSwish."""
    return call.x * torch.clamp(call.x / 6 + 0.5, 0.0, 1.0)


def selu(call: Call) -> torch.Tensor:
    """Selu with the constants of the standard."""
    alpha = call.get("alpha", 1.67326319217681884765625)
    gamma = call.get("gamma", 1.05070102214813232421875)
    below = torch.mul(torch.expm1(torch.clamp(call.x, max=0)), alpha)
    return torch.mul(torch.where(call.x > 0, call.x, below), gamma)


def thresholded_relu(call: Call) -> torch.Tensor:
    """ThresholdedRelu."""
    return torch.where(call.x > call.get("alpha", 1.0), call.x, torch.zeros_like(call.x))


def shrink(call: Call) -> torch.Tensor:
    """Shrink."""
    bias, limit = call.get("bias", 0.0), call.get("lambd", 0.5)
    rest = torch.zeros_like(call.x)
    above = torch.where(call.x > limit, call.x - bias, rest)
    return torch.where(call.x < -limit, call.x + bias, above)


def cast(call: Call) -> torch.Tensor:
    """Cast; half precision stays single."""
    if call.get("round_mode", "up") != "up":
        raise UnsupportedError("rounds in a way of its own")
    return call.x.to(torch_type(call.get("to")))


def cast_like(call: Call) -> torch.Tensor:
    """CastLike."""
    return call.x.to(call.input(1).dtype)


def is_infinite(call: Call) -> torch.Tensor:
    """IsInf, of one sign or both."""
    found = torch.zeros_like(call.x, dtype=torch.bool)
    if call.get("detect_positive", 1):
        found = found | torch.isposinf(call.x)
    if call.get("detect_negative", 1):
        found = found | torch.isneginf(call.x)
    return found


def softmax(function: Callable[..., torch.Tensor]) -> Operator:
    """Softmax and LogSoftmax; before operator set 13 over everything from the axis on."""

    def operator(call: Call) -> torch.Tensor:
        if call.opset >= 13:
            return function(call.x, dim=call.axis(-1))
        axis = call.axis(1)
        rows = call.x.reshape(math.prod(call.x.shape[:axis]), -1)
        return function(rows, dim=1).reshape(call.x.shape)

    return operator


def dropout(call: Call) -> list[torch.Tensor]:
    """Dropout as at inference, where it does nothing."""
    training = call.has(2) and bool(call.input(2).item())
    if training and call.number(1, "ratio", 0.5):
        raise UnsupportedError("it is in training mode")
    return [call.x, torch.ones_like(call.x, dtype=torch.bool)]


def where(call: Call) -> torch.Tensor:
    """Where."""
    return torch.where(call.x, call.input(1), call.input(2))


def gelu(call: Call) -> torch.Tensor:
    """Gelu, exact or by tanh."""
    return functional.gelu(call.x, approximate=call.get("approximate", "none"))


def swish(call: Call) -> torch.Tensor:
    """Swish."""
    alpha = call.get("alpha", 1.0)
    return functional.silu(call.x) if alpha == 1 else call.x * torch.sigmoid(alpha * call.x)


OPERATORS: dict[str, Operator] = {
    "Abs": unary(torch.abs),
    "Acos": unary(torch.acos),
    "Acosh": unary(torch.acosh),
    "Add": binary(torch.add),
    "And": binary(torch.logical_and),
    "Asin": unary(torch.asin),
    "Asinh": unary(torch.asinh),
    "Atan": unary(torch.atan),
    "Atanh": unary(torch.atanh),
    "Cast": cast,
    "CastLike": cast_like,
    "Ceil": unary(torch.ceil),
    "Celu": lambda call: functional.celu(call.x, call.get("alpha", 1.0)),
    "Clip": clip,
    "Cos": unary(torch.cos),
    "Cosh": unary(torch.cosh),
    "Div": divide,
    "Dropout": dropout,
    "Elu": lambda call: functional.elu(call.x, call.get("alpha", 1.0)),
    "Equal": binary(torch.eq),
    "Erf": unary(torch.erf),
    "Exp": unary(torch.exp),
    "Floor": unary(torch.floor),
    "Gelu": gelu,
    "Greater": binary(torch.gt),
    "GreaterOrEqual": binary(torch.ge),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Identity": lambda call: call.x,
    "IsInf": is_infinite,
    "IsNaN": unary(torch.isnan),
    "LeakyRelu": lambda call: functional.leaky_relu(call.x, call.get("alpha", 0.01)),
    "Less": binary(torch.lt),
    "LessOrEqual": binary(torch.le),
    "Log": unary(torch.log),
    "LogSoftmax": softmax(functional.log_softmax),
    "Max": chained(torch.maximum),
    "Mean": mean,
    "Min": chained(torch.minimum),
    "Mish": unary(functional.mish),
    "Mod": modulo,
    "Mul": binary(torch.mul),
    "Neg": unary(torch.neg),
    "Not": unary(torch.logical_not),
    "Or": binary(torch.logical_or),
    "PRelu": prelu,
    "Pow": power,
    "Reciprocal": unary(torch.reciprocal),
    "Relu": unary(torch.relu),
    "Round": unary(torch.round),
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": unary(torch.sigmoid),
    "Sign": unary(torch.sign),
    "Sin": unary(torch.sin),
    "Sinh": unary(torch.sinh),
    "Softmax": softmax(functional.softmax),
    "Softplus": unary(lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "Softsign": unary(functional.softsign),
    "Sqrt": unary(torch.sqrt),
    "Sub": binary(torch.sub),
    "Sum": chained(torch.add),
    "Swish": swish,
    "Tan": unary(torch.tan),
    "Tanh": unary(torch.tanh),
    "ThresholdedRelu": thresholded_relu,
    "Where": where,
    "Xor": binary(torch.logical_xor),
}
