"""Everything a compression job is told, in one frozen value."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxcompress.errors import UsageError
from onnxcompress.finetune.settings import parse_effort
from onnxcompress.latency.table import default_table_path
from onnxcompress.plan.contract import Pass
from onnxcompress.plan.targets import NEEDS_INPUTS, PRECISIONS
from onnxcompress.runtime import Execution

DEFAULT_MAX_DROP = 1.0
DEFAULT_MIN_SNR = 30.0
REPAIRS = ("refit", "fisher", "scale", "off")
SAMPLES = 1024


@dataclass(frozen=True, kw_only=True)
class Config:
    """Options of `compress`; the command line and `onnxcompress.compress` both fill this in.

    Attributes:
        passes: passes in order; sites that several could rewrite go to the first.
        targets: fraction of the original that may remain, per kind.
        max_drop: points of the metric that may be lost.
        min_snr: dB demanded of networks without a class decision.
        confidence: judge the bad end of the interval at this level.
        data: calibration inputs (SPEC, arrays or Dataset), or None.
        eval_data: held-out inputs for the verdict, or None.
        preprocess: for uint8 images, as text; applies to both.
        metric: top1, top5, agreement or MODULE:FUNCTION; None chooses.
        execution: provider, threads.
        shapes: representative sizes by input name.
        batch: batch size at which a dynamic batch is measured.
        gate: time every rewrite and keep the faster ones; None decides by the targets.
        repair: how layers behind lossy rewrites are fitted again on calibration inputs: refit,
            fisher (refit, low-rank layers by what the network's answer sees of their errors), scale
            (a scale and a bias per channel), or off.
        samples: calibration inputs that moments and repair look at, at most.
        exclude: regular expressions of node names to leave alone.
        finetune: train the result towards the original's answers for so many epochs (`3e`) or
            minutes (`20m`); None trains nothing.
        stages: reach the targets in so many steps, each planned, repaired and trained on what the
            one before left.
        then: convert the result to fp16 or int8; None leaves its precision as it is.
        plan: replay this plan file instead of planning.
        run: folder for the journal (plan, latency table).
        timed: the file in which layer timings are kept; None: in `run`, else the user's own.
        seed: for every random choice.
    """

    passes: tuple[Pass[Any], ...]
    targets: Mapping[str, float] = field(default_factory=dict)
    max_drop: float = DEFAULT_MAX_DROP
    min_snr: float = DEFAULT_MIN_SNR
    confidence: float | None = None
    data: Any = None
    eval_data: Any = None
    preprocess: str | None = None
    metric: str | None = None
    execution: Execution = field(default_factory=Execution)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    batch: int | None = None
    gate: bool | None = None
    repair: str = "refit"
    samples: int = SAMPLES
    exclude: tuple[str, ...] = ()
    finetune: str | None = None
    stages: int = 1
    then: str | None = None
    plan: Path | None = None
    run: Path | None = None
    timed: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.max_drop >= 0:
            raise UsageError(f"--max-drop must be 0 or more points, not {self.max_drop:g}")
        if math.isnan(self.min_snr):
            raise UsageError("--min-snr must be a number of decibels, not nan")
        if self.seed < 0:
            raise UsageError(f"--seed must be 0 or more, not {self.seed}")
        if self.confidence is not None and not 0.0 < self.confidence < 1.0:
            raise UsageError(f"--confidence lies between 0 and 1, not {self.confidence:g}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"--batch must be at least 1, not {self.batch}")
        if self.gate is False and "latency" in self.targets:
            raise UsageError("a latency target needs the latency gate: leave out --gate off")
        if self.repair not in REPAIRS:
            raise UsageError(f"--repair '{self.repair}' is none of {', '.join(REPAIRS)}")
        if self.then is not None and self.then not in PRECISIONS:
            raise UsageError(f"--then '{self.then}' is none of {', '.join(PRECISIONS)}")
        if self.finetune is not None:
            parse_effort(self.finetune)
            if self.data is None:
                raise UsageError("--finetune trains on the inputs of --data: give some")
        if self.stages < 1:
            raise UsageError(f"--stages must be at least 1, not {self.stages}")
        if self.stages > 1:
            self._check_stages()
        if self.then == "int8" and self.data is None:
            raise UsageError(NEEDS_INPUTS)
        if self.samples < 1:
            raise UsageError(f"--samples must be at least 1, not {self.samples}")
        if not self.passes and self.plan is None:
            raise UsageError("no pass to apply: give --pass NAME, or leave it out for all of them")
        names = [p.name for p in self.passes]
        if len(set(names)) != len(names):
            raise UsageError(f"pass '{max(names, key=names.count)}' is given twice")
        check_patterns(self.exclude)

    def _check_stages(self) -> None:
        if not self.targets:
            raise UsageError("--stages divides the way to a target: give --target")
        if self.plan is not None:
            raise UsageError("--stages plans every stage on what the one before left: no --plan")
        if self.then is not None and {"latency", "size"} & set(self.targets):
            raise UsageError(
                "--stages with --then: targets of latency and size hold for the converted file, "
                "which stages are not; give macs or params"
            )
        if self.finetune is not None:
            parse_effort(self.finetune).share(1, self.stages)

    @property
    def gated(self) -> bool:
        """Whether rewrites are timed: yes, unless only size, MACs or parameters are asked for."""
        if self.gate is not None:
            return self.gate
        return not self.targets or "latency" in self.targets

    @property
    def latency_table(self) -> Path:
        """The file in which layer timings are kept."""
        if self.timed is not None:
            return self.timed
        return self.run / "latency.json" if self.run is not None else default_table_path()

    def excluded(self, names: list[str]) -> frozenset[str]:
        """The node names that an exclusion matches (anywhere in the name).

        Raises:
            UsageError: a pattern matches no node; a typing error would compress what it names.
        """
        return matching(self.exclude, names)


def check_patterns(patterns: Sequence[str]) -> None:
    """Refuse what is no regular expression.

    Raises:
        UsageError: a pattern is none.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"--exclude '{pattern}' is no regular expression: {error}") from error


def matching(patterns: Sequence[str], names: Sequence[str], what: str = "node") -> frozenset[str]:
    """The names in which a pattern is found.

    Args:
        patterns: regular expressions.
        names: names of nodes.
        what: what these nodes are, for the message.

    Raises:
        UsageError: a pattern matches none; a typing error would miss what it names.
    """
    check_patterns(patterns)
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise UsageError(f"--exclude '{pattern}' matches no {what}: `inspect` lists them")
    return frozenset(n for n in names if any(re.search(p, n) for p in patterns))
