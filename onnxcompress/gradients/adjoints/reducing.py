"""Reductions along axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx

from onnxcompress.gradients.adjoints.pooling import shared_by_equals
from onnxcompress.gradients.step import Adjoint, Step


@dataclass(frozen=True)
class _Reduced:
    """A reduction with its reduced axes kept at extent one.

    Attributes:
        step: the operator.
        dy: gradient of the result.
        y: the result.
        axes: what was reduced.
    """

    step: Step
    dy: str
    y: str
    axes: tuple[int, ...]

    def spread(self, gradient: str) -> str:
        """A gradient of the result for every element."""
        shape = self.step.emit.sizes(self.step.shape(self.step.x))
        return self.step.emit.op("Expand", gradient, shape)


Rule = Callable[[_Reduced], str]
"""Emits dX."""


def _axes_of(step: Step, index: int, rank: int) -> Sequence[int]:
    """The axes that an input or an attribute names; all of them where none does."""
    given = step.given(index, "axes", None)
    return range(rank) if given is None else [int(a) % rank for a in given]


def _adjoint(rule: Rule) -> Adjoint:
    def adjoint(step: Step) -> Mapping[int, str]:
        step.only(0)
        shape = step.shape(step.x)
        axes = tuple(_axes_of(step, 1, len(shape)))
        if not step.attributes.get("noop_with_empty_axes", 0):
            axes = axes or tuple(range(len(shape)))
        kept = [1 if a in axes else extent for a, extent in enumerate(shape)]
        dy, y = (step.reshape(name, kept) for name in (step.dy, step.y))
        return {0: rule(_Reduced(step, dy, y, axes))}

    return adjoint


def _sum(of: _Reduced) -> str:
    return of.spread(of.dy)


def _mean(of: _Reduced) -> str:
    count = prod(of.step.shape(of.step.x)[axis] for axis in of.axes)
    return of.spread(of.step.op("Mul", of.dy, 1.0 / count))


def _extreme(of: _Reduced) -> str:
    return shared_by_equals(of.step, of.dy, of.y, of.axes)


def _l1(of: _Reduced) -> str:
    return of.step.op("Mul", of.dy, of.step.op("Sign", of.step.x))


def _l2(of: _Reduced) -> str:
    # Where everything is zero the norm has a kink, and zero is one of its slopes.
    wide = of.step.known.types[of.step.x] in {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE}
    length = of.step.op("Max", of.y, 1e-30 if wide else 1e-4)
    return of.step.op("Mul", of.step.op("Div", of.dy, length), of.step.x)


def _sum_square(of: _Reduced) -> str:
    return of.step.op("Mul", of.step.op("Mul", of.dy, 2.0), of.step.x)


def _log_sum(of: _Reduced) -> str:
    return of.spread(of.step.op("Div", of.dy, of.step.op("Exp", of.y)))


def _log_sum_exp(of: _Reduced) -> str:
    return of.step.op("Mul", of.dy, of.step.op("Exp", of.step.op("Sub", of.step.x, of.y)))


REDUCING: Mapping[str, Adjoint] = {
    name: _adjoint(rule)
    for name, rule in {
        "ReduceL1": _l1,
        "ReduceL2": _l2,
        "ReduceLogSum": _log_sum,
        "ReduceLogSumExp": _log_sum_exp,
        "ReduceMax": _extreme,
        "ReduceMean": _mean,
        "ReduceMin": _extreme,
        "ReduceSum": _sum,
        "ReduceSumSquare": _sum_square,
    }.items()
}
