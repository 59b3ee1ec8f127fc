"""First and second moments of what a layer reads and answers, as passes see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Averages over samples and positions, per group of a layer; float64.

    x is what one answer reads (an input patch with its zero padding, or a row of features), y what
    it is held to.

    Attributes:
        gram: E[x x'], [groups, d, d].
        mean: E[x], [groups, d].
        cross: E[y x'], [groups, h, d].
        answer: E[y], [groups, h].
        energy: E[y^2], [groups, h].
        rows: how many pairs (x, y) were seen.
    """

    gram: Array
    mean: Array
    cross: Array
    answer: Array
    energy: Array
    rows: int

    def centred(self) -> Moments:
        """Covariances in place of the averages of products; the means stay as they are."""
        mean, answer = self.mean, self.answer
        return Moments(
            self.gram - mean[:, :, np.newaxis] * mean[:, np.newaxis],
            mean,
            self.cross - answer[:, :, np.newaxis] * mean[:, np.newaxis],
            answer,
            self.energy - answer**2,
            self.rows,
        )

    def error(self, matrices: Array, bias: Array) -> float:
        """E|y - A x - b|^2, summed over groups and answers.

        Args:
            matrices: A [groups, h, d].
            bias: b [groups, h].
        """
        products = matrices @ self.gram
        quadratic = float(np.sum(products * matrices)) - 2.0 * float(np.sum(matrices * self.cross))
        reached = np.einsum("ghd,gd->gh", matrices, self.mean)
        offset = bias**2 + 2.0 * bias * (reached - self.answer)
        # Rounding can leave a little less than nothing.
        return max(0.0, float(self.energy.sum() + quadratic + offset.sum()))

    @property
    def variance(self) -> float:
        """E|y - E[y]|^2, summed over groups and answers: what relative errors are relative to."""
        return float(np.sum(self.energy - self.answer**2))


class MomentsCollector(Protocol):
    """Runs a model on the calibration inputs and collects moments of layers."""

    def __call__(
        self, layers: Sequence[str], model: onnx.ModelProto | None = None
    ) -> Mapping[str, Moments]:
        """Moments of layers, y being what they answer in the model itself.

        Args:
            layers: names of Conv, Gemm and MatMul nodes with constant weights.
            model: a variant of the model with the same layers, in which x is looked at; by default
                the model itself.

        Raises:
            ModelError: one of them is no such layer, or its moments would not fit into memory.
        """
