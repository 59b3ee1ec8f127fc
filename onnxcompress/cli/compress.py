"""`onnxcompress compress`: the main job."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from onnxcompress.cli import options as shared
from onnxcompress.cli.console import errors, progress_for
from onnxcompress.config import DEFAULT_MAX_DROP, DEFAULT_MIN_SNR


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
@click.option("--recipe", "recipe_name", metavar="NAME|FILE.yaml", help="[default: balanced]")
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
@click.option("--data", metavar="SPEC", help="Calibration inputs (.npz, .npy, folder, mod:func).")
@click.option("--eval", "eval_data", metavar="SPEC", help="Held-out inputs, labels optional.")
@click.option("--metric", metavar="NAME", help="top1, top5, agreement or MODULE:FUNCTION.")
@shared.preprocess_option
@shared.execution_options
@shared.size_options
@click.option(
    "--gate",
    type=click.Choice(["on", "off"]),
    help="Time every rewrite and keep the faster ones [default: on, unless the only targets are "
    "macs, params or size].",
)
@click.option("--exclude", multiple=True, metavar="REGEX", help="Node names to leave alone.")
@click.option("--plan", "plan_file", type=click.Path(), metavar="FILE", help="Replay this plan.")
@click.option("--dry-run", is_flag=True, help="Write the plan only, to OUT with .plan.json.")
@click.option("--run", "run_dir", type=click.Path(), metavar="DIR", help="Folder for the journal.")
@click.option(
    "--report",
    "report_file",
    type=click.Path(),
    metavar="FILE",
    help="Where the report goes [default: OUT with .report.json].",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--force", is_flag=True, help="Overwrite OUT.")
@click.option("--save-as-external-data", "external_data", is_flag=True, help="Weights in OUT.data.")
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
    from onnxcompress.errors import BoundError, OutputError
    from onnxcompress.pipeline import plan_only, run
    from onnxcompress.report import write

    source, out = values["source"], values["target_file"]
    out_path = None if out == "-" else Path(out)
    _check_output(source, out_path, force=values["force"], dry_run=values["dry_run"])
    config = make_config(values)
    model = shared.model_source(source)
    report_path = _report_path(values["report_file"], out_path)
    for path in (out_path, report_path):
        if path is not None:
            write.check_writable(path)
    if config.run is not None:
        write.make_folder(config.run)
    with progress_for(quiet=values["quiet"]) as progress:
        if values["dry_run"]:
            plan, _ = plan_only(model, config, progress)
            path = out_path.with_name(out_path.name + ".plan.json") if out_path else None
            if path is None:
                raise OutputError("--dry-run writes OUT.plan.json: give OUT a name, not '-'")
            write.write_json(plan.to_dict(), path)
            errors.print(f"plan with {len(plan.chosen)} rewrites written to {path}", markup=False)
            return
        try:
            result = run(model, config, progress)
        except BoundError as error:
            if error.report is not None and report_path is not None:
                write.write_json(error.report, report_path)
            raise
    if out_path is None:
        write.write_stream(result.model, sys.stdout.buffer)
    else:
        write.write_model(result.model, out_path, external_data=values["external_data"])
    if report_path is not None:
        write.write_json(result.report, report_path)
    if config.run is not None:
        write.write_json(result.plan.to_dict(), config.run / "plan.json")
    show(result.report, as_json=values["as_json"], piped=out_path is None)


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
        passes = recipe(values["recipe_name"] or BALANCED)
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
        exclude=tuple(values["exclude"]),
        plan=Path(values["plan_file"]) if values["plan_file"] else None,
        run=Path(values["run_dir"]) if values["run_dir"] else None,
        seed=values["seed"],
    )


def show(report: dict[str, Any], *, as_json: bool, piped: bool) -> None:
    """Print the report; on standard error when standard output carries the model."""
    from onnxcompress.cli.console import output
    from onnxcompress.cli.tables import before_after
    from onnxcompress.report.build import json_safe

    if as_json and not piped:
        click.echo(json.dumps(json_safe(report), indent=2))
    else:
        before_after(report, errors if piped else output)


def _report_path(given: str | None, out: Path | None) -> Path | None:
    if given is not None:
        return Path(given)
    return out.with_name(out.name + ".report.json") if out is not None else None


def _check_output(source: str, out: Path | None, *, force: bool, dry_run: bool) -> None:
    from onnxcompress.errors import OutputError, UsageError

    if out is None:
        if sys.stdout.isatty():
            raise UsageError("OUT is '-', but standard output is a terminal: pipe it somewhere")
        return
    if source != "-" and Path(source).exists() and out.exists() and out.samefile(source):
        raise UsageError("IN and OUT are the same file: IN is never changed")
    if out.exists() and not force and not dry_run:
        raise OutputError(f"'{out}' exists: use --force to overwrite it")
