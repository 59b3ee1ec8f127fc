"""`onnxcompress compress`: the main job."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from onnxcompress.cli import options as shared
from onnxcompress.cli.console import errors, output, progress_for
from onnxcompress.config import DEFAULT_MAX_DROP, DEFAULT_MIN_SNR
from onnxcompress.plan.targets import PRECISIONS


@click.command("compress")
@click.argument("source", metavar="IN")
@click.argument("target_file", metavar="OUT")
@click.option(
    "--pass",
    "passes",
    multiple=True,
    metavar="NAME[:KEY=VALUE,...]",
    help="A pass to apply; repeat for several, in order [default: the recipe].",
)
@click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME|FILE.yaml",
    help="A named list of passes [default: balanced, the passes that need no asking].",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="KIND=FRACTION",
    help="Fraction of the original that may remain: latency, macs, params or size.",
)
@click.option(
    "--max-drop",
    type=float,
    default=DEFAULT_MAX_DROP,
    show_default=True,
    metavar="POINTS",
    help="Points of the metric that may be lost.",
)
@click.option(
    "--min-snr",
    type=float,
    default=DEFAULT_MIN_SNR,
    show_default=True,
    metavar="DB",
    help="Signal-to-noise ratio demanded of networks that make no class decision.",
)
@click.option(
    "--confidence",
    type=float,
    metavar="LEVEL",
    help="Judge the bad end of the paired interval at this level, like 0.95, not the estimate.",
)
@click.option(
    "--data",
    metavar="SPEC",
    help="Calibration inputs (.npz, .npy, folder, mod:func), or random: synthetic ones.",
)
@shared.eval_option
@shared.metric_option
@shared.preprocess_option
@shared.execution_options
@shared.size_options
@click.option(
    "--gate",
    type=click.Choice(["on", "off"]),
    help="Time every rewrite and keep the faster ones [default: on, unless the only targets are "
    "macs, params or size].",
)
@shared.repair_options
@click.option(
    "--finetune",
    metavar="EPOCHS|MINUTES",
    help="Train the result towards the original's answers on --data, like 3e or 20m; no labels "
    "needed. With targets, accuracy is judged after it only.",
)
@click.option(
    "--stages",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Reach the targets in so many steps, each planned, repaired and trained on what the one "
    "before left; --finetune is shared.",
)
@click.option(
    "--then",
    type=click.Choice(PRECISIONS),
    help="Convert the result by ONNX Runtime's own converters; targets and bounds hold for what "
    "comes out. int8 takes ranges from --data.",
)
@shared.exclude_option
@click.option("--plan", "plan_file", type=click.Path(), metavar="FILE", help="Replay this plan.")
@click.option("--dry-run", is_flag=True, help="Write the plan only, to OUT with .plan.json.")
@click.option("--run", "run_dir", type=click.Path(), metavar="DIR", help="Folder for the journal.")
@shared.report_option
@shared.seed_option
@shared.output_options
@shared.json_option
@shared.quiet_option
def compress_command(**values: Any) -> None:
    """Compress the model IN and write OUT if every bound holds.

    IN and OUT may be '-' for a pipe. With no --target, everything is taken that the accuracy bound
    allows. Nothing is written unless interface, checker, accuracy and targets all hold.

    SPEC is a .npz (keys are input names, or x; y for labels), a .npy, a folder of images or of one
    folder per class, or module:function that yields dicts of arrays.
    """
    # Imported here so that --help and usage errors do not wait for the engine.
    from onnxcompress.cli.destinations import Destinations
    from onnxcompress.errors import BoundError, UsageError
    from onnxcompress.pipeline import plan_only
    from onnxcompress.report import write
    from onnxcompress.stages import run_in_stages

    places = Destinations.of(
        values["source"],
        values["target_file"],
        report=values["report_file"],
        dry_run=values["dry_run"],
        external_data=values["external_data"],
    )
    places.check(force=values["force"])
    config = make_config(values)
    if places.plan is not None and config.stages > 1:
        raise UsageError("--stages makes no single plan: leave out --dry-run")
    model = shared.model_source(values["source"])
    if config.run is not None:
        write.make_folder(config.run)
    with progress_for(quiet=values["quiet"]) as progress:
        if places.plan is not None:
            plan, _ = plan_only(model, config, progress)
            write.write_json(plan.to_dict(), places.plan)
            count = len(plan.chosen)
            errors.print(f"plan with {count} rewrites written to {places.plan}", markup=False)
            return
        try:
            result = run_in_stages(model, config, progress)
        except BoundError as error:
            if error.report is not None and places.report is not None:
                write.write_json(error.report, places.report)
            raise
    jobs = []
    if places.report is not None:
        jobs.append(write.json_job(result.report, places.report))
    if config.run is not None and config.stages == 1:
        jobs.append(write.json_job(result.plan.to_dict(), config.run / "plan.json"))
    if places.model is not None:
        jobs += write.model_jobs(result.model, places.model, external_data=values["external_data"])
    write.commit(jobs)
    if places.model is None:
        write.write_stream(result.model, sys.stdout.buffer)
    show(result.report, as_json=values["as_json"], piped=places.model is None)
    if places.model is not None and not values["as_json"]:
        output.print(f"written: {places.model} and {places.report}", markup=False)


def make_config(values: dict[str, Any]) -> Any:
    """A Config from the texts of the command line.

    Raises:
        UsageError: an option makes no sense.
    """
    from onnxcompress.analyse.sizes import parse_shape
    from onnxcompress.config import Config
    from onnxcompress.errors import UsageError
    from onnxcompress.plan.recipes import BALANCED, recipe
    from onnxcompress.plan.registry import parse_pass
    from onnxcompress.plan.targets import check_targets, parse_target

    if values["passes"] and values["recipe_name"]:
        raise UsageError("--pass and --recipe exclude each other: put the passes into the recipe")
    if values["plan_file"] and (values["passes"] or values["recipe_name"]):
        raise UsageError("--plan says which passes to use: leave out --pass and --recipe")
    if values["plan_file"]:
        passes: tuple[Any, ...] = ()
    elif values["passes"]:
        passes = tuple(parse_pass(text) for text in values["passes"])
    else:
        passes = recipe(values["recipe_name"] or BALANCED, targeted=bool(values["targets"]))
    return Config(
        passes=passes,
        targets=check_targets(parse_target(text) for text in values["targets"]),
        max_drop=values["max_drop"],
        min_snr=values["min_snr"],
        confidence=values["confidence"],
        data=values["data"],
        eval_data=values["eval_data"],
        preprocess=values["preprocess"],
        metric=values["metric"],
        execution=shared.make_execution(values["providers"], values["threads"]),
        shapes=dict(parse_shape(text) for text in values["shapes"]),
        batch=values["batch"],
        gate=None if values["gate"] is None else values["gate"] == "on",
        repair=values["repair"],
        samples=values["samples"],
        exclude=tuple(values["exclude"]),
        finetune=values["finetune"],
        stages=values["stages"],
        then=values["then"],
        plan=Path(values["plan_file"]) if values["plan_file"] else None,
        run=Path(values["run_dir"]) if values["run_dir"] else None,
        seed=values["seed"],
    )


def show(report: dict[str, Any], *, as_json: bool, piped: bool) -> None:
    """Print the report; on standard error when standard output carries the model."""
    from onnxcompress.cli.tables import before_after
    from onnxcompress.report.build import json_safe

    if as_json and not piped:
        click.echo(json.dumps(json_safe(report), indent=2))
    else:
        before_after(report, errors if piped else output)
