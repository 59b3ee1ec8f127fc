"""`distil`: a network trained towards its original's answers, in Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxcompress.api import execution_of, spec_of
from onnxcompress.calibrate.inputs import open_inputs
from onnxcompress.errors import ModelError, UsageError
from onnxcompress.finetune.settings import Settings, parse_effort, parse_losses
from onnxcompress.load.checks import check_structure, check_values
from onnxcompress.load.source import ModelSource, Source, read_source
from onnxcompress.preparation import chosen_metric
from onnxcompress.progress import Progress, Silent, Timekeeper
from onnxcompress.report.build import data_summary, environment
from onnxcompress.retraining import require_torch
from onnxcompress.runtime import Execution, open_session
from onnxcompress.verify.compare import compare


@dataclass(frozen=True)
class Finetuned:
    """What fine-tuning came to.

    Attributes:
        model: the same graph with new weights; as it was where none were better.
        improved: whether the weights are new ones.
        report: everything that was measured, as plain values.
    """

    model: onnx.ModelProto
    improved: bool
    report: dict[str, Any]


def distil(
    model: ModelSource,
    teacher: ModelSource,
    *,
    data: Any,
    eval_data: Any = None,
    effort: str = "10e",
    preprocess: str | None = None,
    metric: str | None = None,
    batch: int | None = None,
    rate: float | None = None,
    labels: float = Settings.labels,
    features: float = Settings.features,
    temperature: float = Settings.temperature,
    loss: str = "auto",
    augment: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    run_dir: str | Path | None = None,
    recompute: bool | None = None,
    precision: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Finetuned:
    """Train a model towards the answers of another, without labels unless a share is asked for.

    A tenth of `data` is kept apart. Of the running averages of the weights after every epoch those
    are kept that come closest to the teacher there, if they come closer than the model did before.

    Args:
        model: the student: path, bytes, binary stream, ModelProto or gs.Graph; never changed.
        teacher: a network with the same inputs and outputs, usually the original.
        data: inputs to train on, as for `compress`.
        eval_data: held-out inputs for the verdict; without it a tenth of `data` is held out.
        effort: epochs like `10e`, or minutes like `20m`.
        preprocess: how uint8 images become inputs, as text.
        metric: of the verdict: top1, top5, agreement or MODULE:FUNCTION.
        batch: samples of a step; by default 64, or where nothing is normalised by it a hundredth
            of those that are trained on (from 4).
        rate: the highest learning rate, as a share of the size of a tensor's numbers; by default
            4e-3 for batches of 64, and as the fourth root of their size for others.
        labels: share of the cross entropy to the labels of `data`, 0 to 1.
        features: weight of the differences between what the networks compute on the way.
        temperature: that class scores are softened by.
        loss: of the outputs; auto: the divergence of class scores, else relative squared errors.
            cosine or error for all, or by name like `boxes=error,embedding=cosine`.
        augment: auto, none, or some of flip, crop, zoom and mixup.
        device: cpu or cuda.
        threads: on the CPU; default: all processors this process may use.
        run_dir: folder that keeps a checkpoint after every epoch; a killed run goes on from there.
        recompute: compute again on the way back what the way there made, in place of keeping it;
            by default where memory is short.
        precision: float32, bfloat16 (mixed), or auto: the latter on GPUs that have it.
        seed: for every random choice.
        progress: told what every epoch came to.

    Raises:
        ModelError: an operator is not known in training; or the two networks do not fit.
        UsageError: PyTorch is not installed, or an option makes no sense.
        OnnxCompressError: the data or the device is at fault.
    """
    require_torch()
    from onnxcompress.finetune import job
    from onnxcompress.finetune.augmentation import parse_augmentation

    clock = Timekeeper(progress or Silent())
    execution = execution_of("cpu", threads)
    settings = Settings(
        effort=parse_effort(effort),
        batch=batch,
        rate=rate,
        labels=labels,
        features=features,
        temperature=temperature,
        losses=parse_losses(loss),
        augment=parse_augmentation(augment),
        device=device,
        threads=execution.threads,
        run=Path(run_dir) if run_dir is not None else None,
        recompute=recompute,
        precision=precision,
        seed=seed,
    )
    clock.stage("load")
    student, master = _checked(model, execution), _checked(teacher, execution)
    _fit(student, master)
    inputs = open_inputs(
        student.model, spec_of(data), spec_of(eval_data), preprocess=preprocess, seed=seed
    )
    if inputs.calibration is None or inputs.verdict is None:
        raise UsageError("fine-tuning needs real inputs: give --data")
    judged = chosen_metric(student.model, inputs, metric)
    clock.stage("finetune")
    result = job.distil(student.model, master.model, inputs.calibration, settings, clock)
    clock.stage("verify accuracy")
    sides = [
        compare(master.model, one, inputs.verdict, judged, execution, seed=seed)
        for one in ((student.model, result.model) if result.improved else (student.model,))
    ]
    drop = sides[-1].drop
    report = {
        "version": 1,
        "model": student.label,
        "teacher": master.label,
        "data": data_summary(inputs.calibration),
        "eval": data_summary(inputs.verdict),
        "environment": environment(execution, seed),
        "finetune": result.to_dict(),
        "before": {"metric": sides[0].after.to_dict()},
        "after": {"metric": sides[-1].after.to_dict()},
        "reference_metric": sides[0].before.to_dict(),
        "drop": drop.to_dict() if drop else None,
        "fidelity": [one.to_dict() for one in sides[-1].fidelity],
        "seconds": clock.seconds(),
    }
    return Finetuned(result.model, result.improved, report)


def _checked(source: ModelSource, execution: Execution) -> Source:
    given = read_source(source)
    check_structure(given.model)
    check_values(given.model)
    with open_session(given.model, execution):
        pass
    return given


def _fit(student: Source, teacher: Source) -> None:
    """Refuse a teacher that takes or gives something else.

    Raises:
        ModelError: says what differs.
    """
    for kind in ("input", "output"):
        own, other = (_signature(source.model, kind) for source in (student, teacher))
        if list(own) != list(other):
            raise ModelError(f"the teacher's {kind}s are {list(other)}, the model's {list(own)}")
        for name, (element, shape) in own.items():
            theirs = other[name][1]
            alike = len(shape) == len(theirs) and all(
                a == b or a is None or b is None for a, b in zip(shape, theirs, strict=True)
            )
            if element != other[name][0] or not alike:
                raise ModelError(
                    f"the teacher's {kind} '{name}' is {theirs}, the model's {shape}, or of "
                    "another type"
                )


def _signature(model: onnx.ModelProto, kind: str) -> dict[str, tuple[int, list[int | None]]]:
    """Element type and fixed extents of every input or output, by name."""
    held = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input if kind == "input" else model.graph.output:
        tensor = value.type.tensor_type
        extents = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        if value.name not in held:
            found[value.name] = (tensor.elem_type, extents)
    return found
