"""Functions of several tensors, element by element, with broadcasting."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxcompress.gradients.step import Adjoint, Step


def _summed(step: Step, gradients: Mapping[int, str]) -> dict[int, str]:
    """Gradients of the output's shape, summed over what each operand was broadcast along."""
    whole = step.shape(step.y)
    return {index: step.within(g, whole, index) for index, g in gradients.items()}


def add(step: Step) -> Mapping[int, str]:
    """Add, and Sum of any number of operands."""
    return _summed(step, dict.fromkeys(sorted(step.wanted), step.dy))


def subtract(step: Step) -> Mapping[int, str]:
    """Y = A - B: dA = dY, dB = -dY."""
    found = {0: step.dy} if 0 in step.wanted else {}
    if 1 in step.wanted:
        found[1] = step.op("Neg", step.dy)
    return _summed(step, found)


def multiply(step: Step) -> Mapping[int, str]:
    """Y = A B: dA = dY B, dB = dY A."""
    a, b = step.node.input[:2]
    operands = {0: b, 1: a}
    return _summed(step, {i: step.op("Mul", step.dy, operands[i]) for i in sorted(step.wanted)})


def divide(step: Step) -> Mapping[int, str]:
    """Y = A / B: dA = dY / B, dB = -dY Y / B."""
    b = step.node.input[1]
    quotient = step.op("Div", step.dy, b)
    found = {0: quotient} if 0 in step.wanted else {}
    if 1 in step.wanted:
        found[1] = step.op("Neg", step.op("Mul", quotient, step.y))
    return _summed(step, found)


def power(step: Step) -> Mapping[int, str]:
    """Y = X^p: dX = dY p X^(p - 1) for a constant exponent."""
    step.only(0)
    exponent = np.asarray(step.value(1), dtype=np.float64)
    # x^0 does not depend on x, not even at zero, where x^-1 is no number.
    below = np.where(exponent == 0.0, 0.0, exponent - 1.0)
    lower = step.op("Pow", step.x, step.array(below))
    slope = step.op("Mul", lower, step.array(exponent))
    return _summed(step, {0: step.op("Mul", step.dy, slope)})


def mean(step: Step) -> Mapping[int, str]:
    """Every operand gets an equal share."""
    share = step.op("Mul", step.dy, 1.0 / len(step.node.input))
    return _summed(step, dict.fromkeys(sorted(step.wanted), share))


def extreme(step: Step) -> Mapping[int, str]:
    """Max and Min: those that equal the result share its gradient."""
    kind = step.known.types[step.y]
    hits = [
        step.emit.op("Cast", step.op("Equal", name, step.y), to=kind) for name in step.node.input
    ]
    count = hits[0] if len(hits) == 1 else step.emit.op("Sum", *hits)
    share = step.op("Div", step.dy, count)
    return _summed(step, {i: step.op("Mul", share, hits[i]) for i in sorted(step.wanted)})


def prelu(step: Step) -> Mapping[int, str]:
    """The slope below zero is a tensor."""
    step.only(0)
    below = step.op("Mul", step.dy, step.node.input[1])
    positive = step.op("Greater", step.x, 0.0)
    return {0: step.emit.op("Where", positive, step.dy, below)}


def where(step: Step) -> Mapping[int, str]:
    """Each branch gets the gradient where it was taken."""
    condition, zero = step.node.input[0], step.number(0.0)
    branches = {1: (step.dy, zero), 2: (zero, step.dy)}
    taken = {i: step.emit.op("Where", condition, *branches[i]) for i in sorted(step.wanted)}
    return _summed(step, taken)


ARITHMETIC: Mapping[str, Adjoint] = {
    "Add": add,
    "Div": divide,
    "Max": extreme,
    "Mean": mean,
    "Min": extreme,
    "Mul": multiply,
    "PRelu": prelu,
    "Pow": power,
    "Sub": subtract,
    "Sum": add,
    "Where": where,
}
