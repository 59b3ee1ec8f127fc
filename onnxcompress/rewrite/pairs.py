"""What a layer of the result reads and answers now, beside what it should answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxcompress.calibrate.walk import Shelf, Walk
from onnxcompress.graph.view import GraphView
from onnxcompress.rewrite.aims import Aim
from onnxcompress.runtime import Array, Execution

Array64 = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """One batch.

    Attributes:
        now: the tensor of the result that was asked for.
        target: what the layer should answer, in the shape of its output.
    """

    now: Array
    target: Array64


class Walks:
    """The original and the result, walked over side by side.

    Args:
        original: the graph as it was.
        result: the rewritten graph.
        feeds: the samples, batch by batch.
        execution: provider and threads.
    """

    def __init__(
        self,
        original: GraphView,
        result: GraphView,
        feeds: Sequence[Mapping[str, Array]],
        execution: Execution,
    ) -> None:
        shelf = Shelf()
        self.feeds = feeds
        self._original = Walk(original.model, feeds, execution, shelf)
        self._result = Walk(result.model, feeds, execution, shelf)

    def set_constant(self, node: str, index: int, values: Array) -> None:
        """Let a node of the result that was not executed yet read another constant."""
        self._result.set_constant(node, index, values)

    def pairs(self, tensor: str, aim: Aim) -> Iterator[Pair]:
        """A tensor of the result beside the aim, batch by batch.

        Raises:
            ModelError: one of the graphs fails on the data.
        """
        both = zip(
            self._original.batches([aim.tensor]),
            self._result.batches([tensor, *aim.less]),
            strict=True,
        )
        for originals, values in both:
            whole = originals[aim.tensor]
            if aim.kept is not None:
                whole = whole.take(aim.kept[1], aim.kept[0])
            target = whole.astype(np.float64)
            for name in aim.less:
                target -= values[name].astype(np.float64)
            yield Pair(values[tensor], target)


def held_out(samples: int, share: float, chance: np.random.Generator) -> NDArray[np.bool_]:
    """Which samples of a batch are not fitted on, but judged by."""
    return chance.random(samples) < share
