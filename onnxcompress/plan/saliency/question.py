"""What is asked of a criterion, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.coupling.result import Coupling, Lane
from onnxcompress.analyse.facts import Facts
from onnxcompress.analyse.sensitivity import Sensitivity
from onnxcompress.errors import UsageError
from onnxcompress.plan.channels.remove import zero_channels
from onnxcompress.plan.saliency.taps import activation_of, gate_of

Array = NDArray[np.float64]
T = TypeVar("T")
Removed = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Question:
    """What is asked of a criterion.

    Attributes:
        facts: the model and what is known about it.
        coupling: which channels go together.
        removed: channels that are gone already (iterative pruning), by group.
        norm: how filters are measured.
        seed: for criteria that draw numbers.
        skipped: layers that are not scored.
    """

    facts: Facts
    coupling: Coupling
    removed: Removed
    norm: str
    seed: int
    skipped: frozenset[str] = frozenset()

    @property
    def layers(self) -> list[str]:
        """The layers to score, in order of execution."""
        lanes = self.coupling.lanes
        made = [name for name, tensor in self.coupling.producers.items() if tensor in lanes]
        return [name for name in made if name not in self.skipped]

    def lane(self, layer: str) -> Lane:
        """Where the channels of a layer's output lie."""
        return self.coupling.lanes[self.coupling.producers[layer]]

    @cached_property
    def taps(self) -> dict[str, str]:
        """By layer, the tensor in which its activations are looked at."""
        view = self.facts.view
        return {layer: activation_of(view, self.coupling, layer) for layer in self.layers}

    @cached_property
    def gates(self) -> dict[str, str]:
        """By layer, the tensor in which its channels are scaled, or set to zero."""
        view = self.facts.view
        return {layer: gate_of(view, self.coupling, layer) for layer in self.layers}

    def axes(self, tensors: Mapping[str, str]) -> dict[str, int]:
        """The channel axis of every one of some tensors, by layer."""
        return {tensor: self.coupling.lanes[tensor].axis for tensor in tensors.values()}

    def recall(self, key: Hashable, find: Callable[[onnx.ModelProto | None], T]) -> T:
        """What `find` finds in the model; or in a variant, with what is gone already at zero.

        Args:
            key: what is sought; remembered with the layers, unless channels are gone.
            find: is given the variant, or None for the model itself.
        """
        if self.removed:
            return find(zero_channels(self.facts.model, self.coupling, self.removed))
        return self.facts.recall((key, tuple(self.layers)), lambda: find(None))


Criterion = Callable[[Question], dict[str, Array]]
"""Scores [channels] of every layer in `Question.layers`: the higher, the more important."""


def sensitivity_of(question: Question) -> Sensitivity:
    """What runs the model and its backward graph.

    Raises:
        UsageError: there is no calibration data.
    """
    found = question.facts.sensitivity()
    if found is None:
        raise without_data()
    return found


def without_data() -> UsageError:
    """The error of a criterion that has nothing to look at."""
    return UsageError(
        "criteria that look at activations or gradients need calibration inputs: give --data, or "
        "use criterion=weight (inspect always, which takes no data)"
    )
