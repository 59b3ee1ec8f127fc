"""`onnxcompress search`: a family of derived networks, one table, one Pareto front."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcompress.cli import options as shared
from onnxcompress.cli.console import output, progress_for

if TYPE_CHECKING:
    from onnxcompress.search.results import Family


_HANDED_ON = (
    *("data", "eval_data", "constraint", "candidates", "ranking", "within", "round_to"),
    *("executor", "workers", "address", "metric", "preprocess", "providers", "threads"),
    *("shapes", "batch", "repair", "finetune", "samples", "exclude", "seed", "force"),
)
"""Options that are arguments of `onnxcompress.derive` as they stand."""


@click.command("search")
@click.argument("source", metavar="IN")
@click.argument("folder", metavar="OUTDIR", type=click.Path())
@click.option(
    "--segments",
    default="auto",
    show_default=True,
    metavar="auto|N|FILE",
    help="Superblocks: widths (residual stages; runs of one width), resolutions, N bins of equal "
    "MACs, or FILE.yaml (names, and regular expressions of layers); auto takes what fits.",
)
@click.option(
    "--ratios",
    default="1,.75,.5,.25",
    show_default=True,
    metavar="LIST",
    help="Width modifiers of every superblock.",
)
@click.option(
    "--constraint",
    default="none",
    show_default=True,
    metavar="EXPR|FILE",
    help="non-increasing, an expression like 'c1 >= c2 and c3 + c4 <= 1.5', or FILE.yaml with a "
    "list of them.",
)
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    default=12,
    show_default=True,
    metavar="K",
    help="Networks that are built and measured, at most.",
)
@click.option(
    "--also",
    multiple=True,
    metavar="LIST",
    help="Ratios of a network that is built in any case, one per superblock, like 1,.5,.5.",
)
@click.option(
    "--ranking",
    default="lnr",
    show_default=True,
    metavar="NAME",
    help="Which channels stay: lnr, or a criterion of pass prune.",
)
@click.option(
    "--within",
    type=click.Choice(["inner", "even"]),
    default="inner",
    show_default=True,
    help="What of a superblock is narrowed: what is inside of residual branches, or everything.",
)
@click.option(
    "--round-to",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Widths are multiples of this; 1 is off.",
)
@click.option("--data", required=True, metavar="SPEC", help="Calibration inputs.")
@shared.eval_option
@shared.metric_option
@shared.preprocess_option
@click.option(
    "--executor",
    type=click.Choice(["serial", "processes", "ray"]),
    default="processes",
    show_default=True,
    help="Where networks are built: one after the other, in processes of this machine, or on a "
    "Ray cluster. The models are the same.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="How many at a time [default: one per processor].",
)
@click.option("--address", metavar="HOST:PORT", help="Of a running Ray cluster, or auto.")
@shared.execution_options
@shared.size_options
@shared.repair_options
@click.option(
    "--finetune",
    metavar="EPOCHS|MINUTES",
    help="Train every network that is built towards IN's answers on --data, like 3e or 20m.",
)
@shared.exclude_option
@shared.seed_option
@click.option("--force", is_flag=True, help="Begin again where OUTDIR holds another search.")
@shared.json_option
@shared.quiet_option
def search_command(**values: Any) -> None:
    """Derive networks of several widths from the model IN, and write them to OUTDIR.

    Layers are binned into superblocks, and every superblock has a set of width modifiers. All
    combinations are estimated; a few that no other one beats are built, repaired (and trained, with
    --finetune), judged and timed. OUTDIR gets the models with their plans, search.csv, search.json
    and a plot. A search that was killed goes on where it was when it is started again.
    """
    from onnxcompress.derivation import derive

    segments, folder = values["segments"], Path(values["folder"])
    with progress_for(quiet=values["quiet"]) as progress:
        family = derive(
            shared.model_source(values["source"]),
            folder,
            segments=int(segments) if segments.isdecimal() else segments,
            ratios=numbers(values["ratios"], "--ratios"),
            also=[numbers(text, "--also") for text in values["also"]],
            progress=progress,
            **{name: values[name] for name in _HANDED_ON},
        )
    if values["as_json"]:
        from onnxcompress.report.build import json_safe

        click.echo(json.dumps(json_safe(family.to_dict()), indent=2))
    else:
        show(family, folder)


def numbers(text: str, option: str) -> tuple[float, ...]:
    """A list of ratios.

    Raises:
        UsageError: one of them is no number.
    """
    from onnxcompress.errors import UsageError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} '{text}' is not of the form 1,.75,.5") from error


def show(family: Family, folder: Path) -> None:
    """Print the table of derived models."""
    from rich.table import Table

    from onnxcompress.search.space import labelled

    best, chosen, whole = family.front, family.recommended, family.original
    metric = family.rows[0].figures["metric"]["name"]
    table = Table(title=f"{len(family.rows)} of {family.allowed['combinations']:,} combinations")
    for name in ("ratios", metric, "loss", "params", "MACs", "file", "latency", "front"):
        side: Any = "left" if name in {"ratios", "front"} else "right"
        table.add_column(name, justify=side, no_wrap=True)
    for number, row in enumerate(family.rows):
        table.add_row(
            labelled(row.ratios),
            f"{row.figures['metric']['value']:.4g}",
            f"{row.loss:.3g}",
            *(f"{row.figures[k] / whole[k]:.3f}" for k in ("params", "macs", "file_bytes")),
            f"{row.ratio:.3f}",
            "*" if number in best else "",
        )
    output.print(table)
    output.print(f"recommended, at the knee of the front: {family.rows[chosen].name}", markup=False)
    output.print(f"written to {folder}: models, plans, search.csv, search.json", markup=False)
