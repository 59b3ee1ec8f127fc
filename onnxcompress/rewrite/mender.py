"""Repair as a job sees it: after every lossy rewrite, on that job's calibration inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxcompress.analyse.facts import Facts
from onnxcompress.calibrate.dataset import Dataset
from onnxcompress.calibrate.moments import SAMPLES, drawn_feeds
from onnxcompress.graph.branch_removal import restore_thresholds
from onnxcompress.graph.editor import Editor
from onnxcompress.graph.infer import with_value_info
from onnxcompress.graph.memo import Memo
from onnxcompress.plan.contract import Candidate, Pass
from onnxcompress.plan.correspondence import Kept
from onnxcompress.progress import Progress, Silent
from onnxcompress.rewrite.mended import BRIEF, THOROUGH
from onnxcompress.rewrite.repair import Repair, Repaired
from onnxcompress.rewrite.weighting import fishers
from onnxcompress.runtime import Array, Execution

_BRIEFLY = 4
"""A trial looks at a quarter of the samples,"""

_BRIEF_ELEMENTS = 2**24
"""and at no more numbers than this: large images have positions enough."""


@dataclass(frozen=True)
class Mender:
    """Repairs what one job rewrites.

    Attributes:
        facts: about the canonical model.
        data: the calibration inputs; None repairs nothing.
        passes: the passes by name.
        memo: results shared with other editors of the job.
        execution: provider and threads.
        seed: which samples and positions are looked at.
        method: refit, fisher, scale, or off.
        most: how many calibration inputs a repair looks at, at most.
        progress: told how far a repair is.
    """

    facts: Facts
    data: Dataset | None
    passes: Mapping[str, Pass[Any]]
    memo: Memo
    execution: Execution
    seed: int
    method: str
    most: int = SAMPLES
    progress: Progress = Silent()  # noqa: RUF009  (it has no state)

    def __call__(
        self, model: onnx.ModelProto, chosen: Sequence[Candidate[Any]], *, briefly: bool = False
    ) -> Repaired | None:
        """Repair a rewritten model.

        Args:
            model: the rewritten model; not changed.
            chosen: what it was rewritten by.
            briefly: look at fewer samples, for a trial.

        Returns:
            The repaired model; None where nothing was lossy, there is no data, or repair is off.

        Raises:
            ModelError: a model fails on the data.
        """
        if not self.repairs(chosen):
            return None
        feeds = _few(self._feeds) if briefly else self._feeds
        repair = Repair(
            self.facts.model,
            feeds,
            self.execution,
            self.seed,
            "scale" if self.method == "scale" else "refit",
            effort=BRIEF if briefly else THOROUGH,
            fisher=self._fisher if self.method == "fisher" else None,
            progress=None if briefly else self.progress.step,
        )
        return repair(model, self._kept(chosen))

    def unfitted(self, model: onnx.ModelProto, chosen: Sequence[Candidate[Any]]) -> onnx.ModelProto:
        """The rewritten model with the nodes that a repaired one has: as quick, and not fitted."""
        if not self.repairs(chosen):
            return model
        editor = Editor(model)
        restore_thresholds(editor, self.facts.view)
        return with_value_info(editor.finish())

    def repairs(self, chosen: Sequence[Candidate[Any]]) -> bool:
        """Whether there is anything to repair, and anything to do it by."""
        lossy = any(candidate.damage > 0 for candidate in chosen)
        return self.method != "off" and self.data is not None and lossy

    @property
    def samples(self) -> int:
        """How many calibration inputs a repair really looks at."""
        return sum(len(next(iter(feeds.values()))) for feeds in self._feeds)

    @cached_property
    def _fisher(self) -> dict[str, NDArray[np.float64]]:
        """Of the original; the same for every repair of the job."""
        return fishers(self.facts)

    @cached_property
    def _feeds(self) -> list[dict[str, Array]]:
        if self.data is None:
            return []
        facts = self.facts
        return drawn_feeds(facts.model, facts.shapes(), self.data, self.seed, self.most)

    def _kept(self, chosen: Sequence[Candidate[Any]]) -> Kept:
        """What is left of tensors that lost channels."""
        kept: dict[str, Any] = {}
        for name in dict.fromkeys(candidate.site.pass_name for candidate in chosen):
            mine = [candidate for candidate in chosen if candidate.site.pass_name == name]
            kept |= self.passes[name].kept_channels(mine, Editor(self.facts.model, memo=self.memo))
        return kept


def _few(feeds: Sequence[Mapping[str, Array]]) -> list[Mapping[str, Array]]:
    """The first batches, as many as a trial looks at; at least one."""
    found: list[Mapping[str, Array]] = []
    elements = 0
    for batch in feeds[: max(1, len(feeds) // _BRIEFLY)]:
        elements += sum(values.size for values in batch.values())
        if found and elements > _BRIEF_ELEMENTS:
            break
        found.append(batch)
    return found
