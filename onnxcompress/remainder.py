"""What is left of a network after a choice: parameters, MACs and bytes counted, latency timed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from onnxcompress.analyse.shapes import shapes_for
from onnxcompress.analyse.sizes import random_feeds
from onnxcompress.graph.cost import model_cost
from onnxcompress.graph.memo import Memo
from onnxcompress.journal import choice_name
from onnxcompress.latency.interleave import Budget, QuietHours, Timing, interleaved
from onnxcompress.plan.contract import Pass
from onnxcompress.plan.search import Baseline, Chosen
from onnxcompress.preparation import Prepared
from onnxcompress.rewrite.manager import rewrite
from onnxcompress.rewrite.mender import Mender
from onnxcompress.rewrite.precision import Conversion

_BRIEF = Budget(rounds=5, seconds=0.1)
"""How long a plan's whole network is timed; the verdict takes longer."""

_PATIENCE = 2
"""How often that is done where the machine seems busy."""


class Remainder:
    """Carries choices out, and counts and times what comes of them, once each.

    Args:
        prepared: the job.
        passes: the passes by name.
        memo: results shared by the editors of the job.
        mender: knows what repair will undo, which is not to be timed.
        conversion: what becomes of a result's precision; figures are those of what comes out.
    """

    def __init__(
        self,
        prepared: Prepared,
        passes: Mapping[str, Pass[Any]],
        memo: Memo,
        mender: Mender,
        conversion: Conversion | None,
    ) -> None:
        self._prepared, self._passes, self._memo = prepared, passes, memo
        self._mender, self._conversion = mender, conversion
        self._timed_too = "latency" in prepared.config.targets
        self._measured: dict[Chosen, dict[str, float]] = {}
        self._epoch = 0
        self.quiet = QuietHours()

    def __call__(self, chosen: Chosen) -> dict[str, float]:
        """What remains: milliseconds (if latency is a target), MACs, parameters, bytes."""
        if chosen not in self._measured:
            self._measured[chosen] = self._prepared.journal.recall(
                f"figures {self._epoch} {choice_name(chosen)}", lambda: self._counted(chosen)
            )
        return self._measured[chosen]

    def believe(self, ratio: float, chosen: Chosen) -> None:
        """Forget times that were taken under other conditions than a verdict's.

        Args:
            ratio: latency over the original's, as the verdict found it.
            chosen: what it was found of.
        """
        if not self._timed_too:
            return
        figures = self._measured.get(chosen)
        self._measured.clear()
        self._epoch += 1
        self.__dict__.pop("head_start", None)
        if figures is not None:
            total = self.baseline.total("latency")
            self._measured[chosen] = figures | {"latency": ratio * total}

    @cached_property
    def baseline(self) -> Baseline:
        """What the original costs, before exact rewrites."""
        original, latency = self._prepared.source, None
        if self._timed_too:
            latency = self._prepared.journal.recall(
                "latency of the original",
                lambda: float(np.median(self._timed([original.model])[0])),
            )
        return Baseline(self._prepared.reference.total(), original.file_bytes, latency)

    @cached_property
    def head_start(self) -> dict[str, float]:
        """How much more than the original the network costs that candidates are weighed on."""
        prepared = self._prepared
        if not prepared.changed and self._conversion is None:
            return {}
        figures = self._prepared.journal.recall(
            f"figures {self._epoch} of the groundwork",
            lambda: self._figures(self._prepared.facts.model),
        )
        return {
            kind: figures[kind] - self.baseline.total(kind)
            for kind in self._prepared.config.targets
        }

    @cached_property
    def lossless_ratio(self) -> float | None:
        """Latency over the original's of the network that candidates are weighed on.

        None where that is the original itself, or nothing is timed.
        """
        prepared = self._prepared
        if not prepared.changed or prepared.begun or not prepared.config.gated:
            return None

        def measured() -> float:
            pair = self._timed([prepared.source.model, prepared.facts.model], _BRIEF)
            return float(np.median(pair[1] / pair[0]))

        ratio: float = prepared.journal.recall("latency of the groundwork", measured)
        return ratio

    def demands(self, limits: Mapping[str, float]) -> dict[str, float]:
        """How much has to be saved of the network that candidates are weighed on.

        Args:
            limits: fraction of the original that may remain, per kind.
        """
        total, start = self.baseline.total, self.head_start
        return {k: total(k) * (1.0 - limit) + start.get(k, 0.0) for k, limit in limits.items()}

    def _counted(self, chosen: Chosen) -> dict[str, float]:
        model = self._prepared.facts.model
        model = rewrite(model, chosen, self._passes, memo=self._memo).model
        return self._figures(self._mender.unfitted(model, chosen))

    def _figures(self, model: onnx.ModelProto) -> dict[str, float]:
        prepared = self._prepared
        if self._conversion is not None:
            model = self._conversion(model, briefly=True)
        cost = model_cost(model, shapes_for(model, prepared.facts.sizes))
        found = {"macs": float(cost.macs), "params": float(cost.params)}
        found["size"] = float(model.ByteSize())
        if self._timed_too:
            pair = self._timed([prepared.source.model, model], _BRIEF)
            ratio = float(np.median(pair[1] / pair[0]))
            found["latency"] = ratio * self.baseline.total("latency")
        return found

    def _timed(
        self, models: list[onnx.ModelProto], budget: Budget | None = None
    ) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
        """Milliseconds of every round, model by model."""
        prepared = self._prepared
        seed, sizes = prepared.config.seed, prepared.facts.sizes
        feeds = random_feeds(prepared.source.model, sizes, seed=seed)

        def take() -> list[Timing]:
            return interleaved(models, feeds, prepared.config.execution, budget=budget)

        return [timing.round_medians for timing in self.quiet.measure(take, patience=_PATIENCE)]
