"""Jobs in stages: every stage goes a part of the way, and trains what it left, before the next.

Multi-stage compression (Gusak et al. 2019, MUSCO, arXiv 1903.09973) and iterative pruning
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
from onnxcompress.progress import Progress, Silent


def run_in_stages(source: ModelSource, config: Config, progress: Progress | None = None) -> Result:
    """The main job, in as many stages as are asked for.

    Targets of the stages fall by equal factors; the effort of training is shared equally. Bounds,
    the targets that were asked for and a change of precision count for the last stage alone: what
    an earlier one misses, the next has to make up for. The result's plan is that of the last
    stage, and so is the report, but for `seconds` and for how often held-out inputs were
    consulted; reports of the other stages are listed in it under `stages`.

    Raises:
        BoundError: as in `run`.
        OnnxCompressError: whatever else is wrong, with its exit code.
    """
    count = config.stages
    if count == 1:
        return run(source, config, progress)
    told = progress or Silent()
    given = read_source(source)
    model: onnx.ModelProto | None = None
    earlier: list[dict[str, Any]] = []
    for number in range(1, count):
        stage = part(config, number)
        words = ", ".join(f"{kind} {left:.3f}" for kind, left in stage.targets.items())
        told.note(f"stage {number} of {count}: {words}")
        try:
            result = run(given, stage, progress, start=model, final=False)
        except BoundError as error:
            told.note(f"stage {number} is left out: {error}")
            continue
        for failure in result.verdict.failures:
            told.note(f"stage {number}: {failure}")
        if model is not None:
            result.report["plan"]["stage"] = number
        model = result.model
        earlier.append(result.report)
    told.note(f"stage {count} of {count}")
    try:
        result = run(given, part(config, count), progress, start=model)
    except BoundError as error:
        if error.report is not None:
            _complete(error.report, earlier, count)
        raise
    if model is None:
        return result
    _complete(result.report, earlier, count)
    return replace(result, plan=replace(result.plan, stage=count))


def _complete(report: dict[str, Any], earlier: list[dict[str, Any]], count: int) -> None:
    """Add what the stages before came to."""
    report["stages"] = earlier
    if earlier:
        report["plan"]["stage"] = count
    for one in earlier:
        report["accuracy"]["consulted"] += one["accuracy"]["consulted"]
        for name, seconds in one["seconds"].items():
            report["seconds"][name] = report["seconds"].get(name, 0.0) + seconds


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
        finetune=parse_effort(effort).share(number, count) if effort is not None else None,
        run=config.run / f"stage-{number}" if config.run is not None else None,
        timed=config.latency_table,
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
