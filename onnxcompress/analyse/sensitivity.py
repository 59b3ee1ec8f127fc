"""What the loss does when channels change, as passes see it.

A *tap* is a tensor whose channels are looked at, by name with its channel axis. The loss is the
cross-entropy of a classifier against labels, or else against the network's own classes; for any
other network half the squared distance to its own outputs, relative to their energy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ablation = Mapping[str, tuple[int, ...]]
"""Channels that are set to zero together, by tap."""


@dataclass(frozen=True)
class Responses:
    """What taps say about classes.

    Attributes:
        means: by tap, the mean over positions of every sample and channel [samples, channels].
        classes: class of every sample [samples].
    """

    means: Mapping[str, Array]
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """What sensitivities were measured on.

    Attributes:
        samples: of gradients and responses.
        ablated: of the oracle; 0 where there was none.
        loss: what answers were held to, in words.
    """

    samples: int
    ablated: int
    loss: str


class Sensitivity(Protocol):
    """Runs a model and its backward graph on the calibration inputs.

    `model` is, everywhere, a variant of the model with the same tensors; by default the model
    itself. Labels and the network's own answers are those of the model itself.
    """

    def measured(self) -> Measured:
        """How many samples there are, and what the loss is held to."""

    def gate_gradients(
        self, taps: Mapping[str, int], model: onnx.ModelProto | None = None
    ) -> dict[str, Array]:
        """The gradient of every sample's loss in a gate behind every channel: sum of z dC/dz.

        Without classes it is that of the outputs along random signs, relative to their energy:
        its mean square is the squared relative change per gate.

        Returns:
            By tap, [samples, channels].

        Raises:
            GradientError: an operator has no adjoint.
        """

    def curvature(
        self, taps: Mapping[str, int], model: onnx.ModelProto | None = None
    ) -> dict[str, Array]:
        """The diagonal of the Hessian of the mean loss in the gates.

        Returns:
            By tap, [channels].

        Raises:
            GradientError: an operator has no adjoint.
        """

    def responses(self, taps: Mapping[str, int], model: onnx.ModelProto | None = None) -> Responses:
        """How channels respond to samples of every class.

        Raises:
            UsageError: the network's answer is not a class.
        """

    def ablate(
        self,
        taps: Mapping[str, int],
        ablations: Sequence[Ablation],
        model: onnx.ModelProto | None = None,
    ) -> Array:
        """How much the mean loss grows when channels are set to zero.

        Returns:
            One change, with its sign, per ablation.
        """

    def fisher(
        self, tensors: Mapping[str, int], model: onnx.ModelProto | None = None
    ) -> dict[str, Array]:
        """Fisher information in the channels of tensors: E[sum over positions of g g'].

        With g = dC/dy at one position, for classes drawn from the network's own probabilities
        (Martens 2014, arXiv 1412.1193), which needs no labels.

        Returns:
            By tensor, [channels, channels].

        Raises:
            GradientError: an operator has no adjoint.
        """
