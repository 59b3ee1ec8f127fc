"""`onnxcompress finetune`: distil the original into a compressed model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from onnxcompress.cli import options as shared
from onnxcompress.cli.console import errors, output, progress_for
from onnxcompress.finetune.settings import PRECISIONS, Settings

_HANDED_ON = (
    *("data", "eval_data", "effort", "preprocess", "metric", "batch", "rate", "labels"),
    *("features", "temperature", "loss", "augment", "device", "threads", "run_dir", "seed"),
    *("recompute", "precision"),
)
"""Options that are arguments of `onnxcompress.distil` as they stand."""


def _number(name: str, metavar: str, words: str) -> Callable[[shared.F], shared.F]:
    """An option whose default is that of the setting of its name."""
    default = getattr(Settings, name)
    return click.option(
        f"--{name}", type=float, default=default, show_default=True, metavar=metavar, help=words
    )


@click.command("finetune")
@click.argument("source", metavar="IN")
@click.argument("target_file", metavar="OUT")
@click.option("--teacher", required=True, metavar="MODEL", help="The network to learn from.")
@click.option("--data", required=True, metavar="SPEC", help="Inputs to train on; no labels needed.")
@shared.eval_option
@click.option(
    "--for",
    "effort",
    default="10e",
    show_default=True,
    metavar="EPOCHS|MINUTES",
    help="How long: epochs like 10e, minutes like 20m.",
)
@shared.metric_option
@shared.preprocess_option
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="Samples of a step [default: 64, or fewer where nothing is normalised by the batch and "
    "there is little data].",
)
@click.option(
    "--rate",
    type=float,
    metavar="RATE",
    help="The highest learning rate, as a share of the size of a tensor's numbers [default: 4e-3 "
    "for batches of 64, as the fourth root of their size for others].",
)
@_number("labels", "SHARE", "Share of the loss that true labels have, 0 to 1.")
@_number("features", "WEIGHT", "Weight of differences on the way.")
@_number("temperature", "T", "That class scores are softened by.")
@click.option(
    "--loss",
    default="auto",
    show_default=True,
    metavar="auto|cosine|error|OUTPUT=...",
    help="Of outputs. auto: divergence of class scores, else squared errors; embedding=cosine for "
    "one of them.",
)
@click.option(
    "--augment",
    default="auto",
    show_default=True,
    metavar="LIST",
    help="Variations of images: none, or some of flip, crop, zoom and mixup.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where PyTorch trains.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads on the CPU [default: all processors this process may use].",
)
@click.option(
    "--run",
    "run_dir",
    type=click.Path(),
    metavar="DIR",
    help="Folder for checkpoints; a killed run goes on from there.",
)
@click.option(
    "--recompute/--keep",
    default=None,
    help="Compute again on the way back what the way there made, or keep it in memory [default: "
    "keep it unless memory is short].",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="auto",
    show_default=True,
    help="auto: bfloat16 on GPUs that have it.",
)
@shared.report_option
@shared.seed_option
@shared.output_options
@shared.json_option
@shared.quiet_option
def finetune_command(**values: Any) -> None:
    """Train the model IN towards the answers of its teacher, and write OUT.

    The teacher is usually the original that IN was compressed from; labels are not needed. The
    graph stays as it is, only its weights change. If no epoch comes closer to the teacher than IN
    does, on inputs that are kept apart, nothing is written.
    """
    from onnxcompress.cli.destinations import Destinations
    from onnxcompress.distillation import distil
    from onnxcompress.errors import BoundError
    from onnxcompress.report import write
    from onnxcompress.report.build import json_safe

    places = Destinations.of(
        values["source"],
        values["target_file"],
        report=values["report_file"],
        dry_run=False,
        external_data=values["external_data"],
    )
    places.check(force=values["force"])
    with progress_for(quiet=values["quiet"]) as progress:
        result = distil(
            shared.model_source(values["source"]),
            shared.model_source(values["teacher"]),
            progress=progress,
            **{name: values[name] for name in _HANDED_ON},
        )
    report = result.report
    if not result.improved:
        if places.report is not None:
            write.write_json(report, places.report)
        raise BoundError(
            "nothing was gained: no epoch came closer to the teacher than IN does", report
        )
    jobs = [write.json_job(report, places.report)] if places.report is not None else []
    if places.model is not None:
        jobs += write.model_jobs(result.model, places.model, external_data=values["external_data"])
    write.commit(jobs)
    if places.model is None:
        write.write_stream(result.model, sys.stdout.buffer)
    if values["as_json"] and places.model is not None:
        click.echo(json.dumps(json_safe(report), indent=2))
        return
    _show(report, errors if places.model is None else output)
    if places.model is not None:
        output.print(f"written: {places.model} and {places.report}", markup=False)


def _show(report: dict[str, Any], console: Any) -> None:
    from onnxcompress.cli.tables import training_line

    console.print(training_line(report["finetune"]), markup=False)
    before, after = report["before"]["metric"], report["after"]["metric"]
    teacher = report["reference_metric"]
    if before["name"] == "snr":
        words = [f"{one['value']:.2f} dB" for one in (before, after)]
        console.print(f"SNR {words[0]} before, {words[1]} after", markup=False)
        return
    shares = [f"{100 * one['value']:.2f} %" for one in (before, after, teacher)]
    console.print(
        f"{after['name']} over {after['n']} samples: {shares[0]} before, {shares[1]} after, "
        f"teacher {shares[2]}",
        markup=False,
    )
