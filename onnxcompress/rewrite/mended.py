"""What repair did to a layer, and how closely it looks."""

from __future__ import annotations

from dataclasses import dataclass

from onnxcompress.calibrate.moments import ROWS
from onnxcompress.numerics.refit import FEW_SHRINKAGES, SHRINKAGES
from onnxcompress.runtime import Array

HELD_OUT = 0.2
"""Share of the samples that decide how far new weights are believed."""

EXACT = 1e-12
"""Relative squared error that rounding explains: there is nothing to repair."""

FEW = 5
"""Rows per unknown below which a fit is called poorly determined."""

Constants = dict[str, dict[int, Array]]
"""New operands, by node and index."""


@dataclass(frozen=True)
class Mended:
    """What repair did to one layer.

    Attributes:
        node: the layer.
        method: "refit" (least squares), "scale" (scale and bias per channel), or "kept".
        before: relative squared error of its answers on held-out samples, as it came.
        after: the same with the new weights.
        shrinkage: how strongly new weights were drawn to the old ones.
        rows: positions that were looked at.
        unknowns: per answer.
    """

    node: str
    method: str
    before: float
    after: float
    shrinkage: float
    rows: int
    unknowns: int

    @property
    def poorly_determined(self) -> bool:
        """Whether there were few rows for so many unknowns."""
        return self.before > EXACT and self.rows < FEW * self.unknowns


@dataclass(frozen=True)
class Effort:
    """How closely a layer is looked at.

    Attributes:
        rows: positions to look at, at least; wide layers see more.
        shrinkages: strengths of the pull towards the old weights to choose from.
    """

    rows: int = ROWS
    shrinkages: tuple[float, ...] = SHRINKAGES


THOROUGH = Effort()
BRIEF = Effort(ROWS // 8, FEW_SHRINKAGES)
"""For trials."""
