"""Jobs in stages: every stage goes a part of the way, and trains what it left, before the next.

Multi-stage compression (Gusev et al. 2019, MUSCO, arXiv 1903.09973) and iterative pruning
(Molchanov et al. 2017, arXiv 1611.06440): what a stage plans by are the ranks, the scores and the
sensitivities of the network that the stages before have left. Repair of a stage fits to that
network, training to the original, and every stage is judged against the original.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import onnx

from onnxcompress.config import Config
from onnxcompress.errors import BoundError
from onnxcompress.finetune.settings import parse_effort
from onnxcompress.load.source import ModelSource, read_source
from onnxcompress.pipeline import Result, run
from onnxcompress.progress import Progress


def run_in_stages(source: ModelSource, config: Config, progress: Progress | None = None) -> Result:
    """The main job, in as many stages as are asked for.

    Targets of the stages fall by equal factors; the effort of training is shared equally. Bounds of
    accuracy, and a change of precision, count for the last stage only. The report of the last stage
    is the job's; those of the others are listed in it under `stages`.

    Raises:
        BoundError: as in `run`; where it is not the last stage that has nothing to gain, it says
            which one it is.
        OnnxCompressError: whatever else is wrong, with its exit code.
    """
    count = config.stages
    if count == 1:
        return run(source, config, progress)
    given = read_source(source)
    model: onnx.ModelProto | None = None
    earlier: list[dict[str, Any]] = []
    for number in range(1, count):
        stage = part(config, number)
        if progress is not None:
            told = ", ".join(f"{kind} {left:.3f}" for kind, left in stage.targets.items())
            progress.note(f"stage {number} of {count}: {told}")
        try:
            result = run(given, stage, progress, start=model)
        except BoundError as error:
            raise BoundError(f"stage {number} of {count}: {error}", error.report) from error
        model = result.model
        earlier.append(result.report)
    if progress is not None:
        progress.note(f"stage {count} of {count}")
    try:
        result = run(given, part(config, count), progress, start=model)
    except BoundError as error:
        if error.report is not None:
            error.report["stages"] = earlier
        raise
    result.report["stages"] = earlier
    return result


def part(config: Config, number: int) -> Config:
    """What one stage of a job is asked.

    Args:
        config: of the job.
        number: of the stage, from 1.
    """
    count = config.stages
    effort = config.finetune
    own = replace(
        config,
        stages=1,
        finetune=parse_effort(effort).share(count) if effort is not None else None,
        run=config.run / f"stage-{number}" if config.run is not None else None,
    )
    if number == count:
        return own
    return replace(
        own,
        targets={kind: left ** (number / count) for kind, left in config.targets.items()},
        max_drop=math.inf,
        min_snr=-math.inf,
        confidence=None,
        then=None,
    )
