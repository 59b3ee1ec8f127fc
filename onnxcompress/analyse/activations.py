"""Statistics of activations, channel by channel, as passes see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray


@dataclass(frozen=True)
class ChannelStatistics:
    """Moments of one tensor along one axis, over all samples and positions; float64, [channels].

    Attributes:
        mean: average.
        square: average of the square.
        positive: share of values above zero.
        count: values per channel that were seen.
    """

    mean: NDArray[np.float64]
    square: NDArray[np.float64]
    positive: NDArray[np.float64]
    count: int

    @property
    def deviation(self) -> NDArray[np.float64]:
        """Standard deviation (of the population)."""
        variance: NDArray[np.float64] = np.maximum(self.square - self.mean**2, 0.0)
        return np.sqrt(variance)


class Activations(Protocol):
    """Runs a model on the calibration inputs and collects statistics."""

    def __call__(
        self, axes: Mapping[str, int], model: onnx.ModelProto | None = None
    ) -> dict[str, ChannelStatistics]:
        """Statistics of tensors.

        Args:
            axes: the channel axis of every tensor that is wanted.
            model: a variant of the model with the same tensors; by default the model itself.
        """

    def values(self, tensors: Sequence[str], samples: int) -> dict[str, NDArray[np.generic]]:
        """Tensors as they are, [samples, ...], of a random few of the calibration inputs.

        Args:
            tensors: names of tensors whose first axis is the batch.
            samples: of how many inputs, at most; fewer where that would take gigabytes.
        """
