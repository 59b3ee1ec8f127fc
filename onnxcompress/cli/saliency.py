"""`onnxcompress saliency`: how important every channel is, and which criterion to believe."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from onnxcompress.cli import options as shared
from onnxcompress.cli.console import errors, output, progress_for

if TYPE_CHECKING:
    from onnxcompress.study import Study


@click.command("saliency")
@click.argument("source", metavar="MODEL")
@click.option("--data", required=True, metavar="SPEC", help="Inputs; labels under y, if any.")
@click.option(
    "--criterion",
    "criteria",
    multiple=True,
    metavar="NAME",
    help="A criterion to compute; repeat for several [default: all that work here].",
)
@click.option(
    "--reference",
    default="oracle-abs",
    show_default=True,
    metavar="NAME",
    help="The criterion that the others are compared with.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Samples that gradients are taken of, at most.",
)
@click.option(
    "--oracle-samples",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Samples that the oracle ablates channels on, at most.",
)
@click.option("--exclude", multiple=True, metavar="REGEX", help="Layers to leave out (node names).")
@click.option("--per-layer", is_flag=True, help="Show the correlation in every layer as well.")
@shared.preprocess_option
@shared.execution_options
@shared.seed_option
@shared.json_option
@shared.quiet_option
def saliency_command(source: str, exclude: tuple[str, ...], **values: Any) -> None:
    """Score every channel of MODEL by every criterion, and compare each with the oracle.

    The oracle sets one channel after the other to zero and measures the loss. Without labels the
    loss is held to MODEL's own answers. --json gives every score.
    """
    from onnxcompress.analyse.sizes import input_specs
    from onnxcompress.calibrate.inputs import open_data
    from onnxcompress.load.source import read_source
    from onnxcompress.report.build import data_summary, environment, json_safe
    from onnxcompress.study import study

    execution = shared.make_execution(values["providers"], values["threads"])
    given = read_source(shared.model_source(source))
    data = open_data(values["data"], input_specs(given.model), values["preprocess"], "--data")
    with progress_for(quiet=values["quiet"]) as progress:
        found = study(
            given.model,
            data,
            criteria=values["criteria"],
            reference=values["reference"],
            samples=values["samples"],
            ablated=values["oracle_samples"],
            exclude=exclude,
            fisher=values["as_json"],
            execution=execution,
            seed=values["seed"],
            progress=progress,
        )
    if values["as_json"]:
        head = {"model": given.label, "data": data_summary(data)}
        tail = {"environment": environment(execution, values["seed"])}
        click.echo(json.dumps(json_safe(head | summary(found) | tail), indent=2))
        return
    _show(given.label, found, per_layer=values["per_layer"])


def summary(found: Study) -> dict[str, Any]:
    """A study as plain values."""
    layers = list(found.scores[found.reference])
    return {
        "reference": found.reference,
        "samples": found.measured.samples if found.measured else None,
        "oracle_samples": found.measured.ablated if found.measured else None,
        "loss": found.measured.loss if found.measured else None,
        "criteria": {
            name: {
                "per_layer": each.mean,
                "worst_layer": each.worst,
                "all_layers": each.all_layers,
                "all_layers_l2": each.all_normalised,
                "layers": dict(each.layers),
            }
            for name, each in found.correlations.items()
        },
        "refused": dict(found.refused),
        "layers": [
            {
                "node": layer,
                "fisher_trace": found.fisher[layer] if found.fisher is not None else None,
                "scores": {name: list(each[layer]) for name, each in found.scores.items()},
            }
            for layer in layers
        ],
    }


def _show(label: str, found: Study, *, per_layer: bool) -> None:
    from rich import box
    from rich.table import Table

    for name, reason in found.refused.items():
        errors.print(f"note: {name}: {reason}", style="dim", markup=False)
    widths = [len(scores) for scores in found.scores[found.reference].values()]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{label}: rank correlation with {found.reference}",
        title_justify="left",
    )
    table.add_column("criterion")
    for heading in ("per layer", "worst layer", "all layers", "all layers, l2"):
        table.add_column(heading, justify="right")
    for name, each in found.correlations.items():
        row = (each.mean, each.worst, each.all_layers, each.all_normalised)
        table.add_row(name, *map(_figure, row))
    output.print(table)
    text = f"{sum(widths)} channels of {len(widths)} layers"
    if found.measured:
        on = found.measured
        oracle = f", oracle on {on.ablated}" if on.ablated else ""
        text += f"; {on.samples} samples{oracle}; loss against {on.loss}"
    output.print(text, markup=False)
    if not found.correlations:
        output.print("nothing to compare the reference with; --json gives its scores")
    if not per_layer:
        return
    for layer, scores in found.scores[found.reference].items():
        said = [f"{name} {_figure(c.layers[layer])}" for name, c in found.correlations.items()]
        output.print(f"{layer} ({len(scores)} channels): {', '.join(said)}", markup=False)


def _figure(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"
