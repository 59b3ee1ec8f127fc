"""`onnxcompress bench`: models timed against each other."""

from __future__ import annotations

import json
from pathlib import Path

import click

from onnxcompress.cli import options as shared
from onnxcompress.cli.console import output, progress_for


@click.command("bench")
@click.argument("sources", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--rounds",
    type=click.IntRange(min=2),
    default=10,
    show_default=True,
    help="Visits to each model.",
)
@click.option("--seconds", type=float, default=0.3, show_default=True, help="Per model and round.")
@shared.execution_options
@shared.size_options
@shared.seed_option
@shared.json_option
@shared.quiet_option
def bench_command(
    sources: tuple[str, ...],
    rounds: int,
    seconds: float,
    providers: str,
    threads: int | None,
    shapes: tuple[str, ...],
    batch: int | None,
    seed: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Time one model, or several against the first, in alternating rounds.

    One session lives at a time; p50, p95 and the 95 % interval of p50 over rounds are given.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from onnxcompress.analyse.sizes import parse_shape, random_feeds, representative_sizes
    from onnxcompress.latency.interleave import Budget
    from onnxcompress.load.source import read_source
    from onnxcompress.report.build import environment
    from onnxcompress.verify.speed import race

    execution = shared.make_execution(providers, threads)
    models = [read_source(shared.model_source(source)).model for source in sources]
    given = dict(parse_shape(text) for text in shapes)
    feeds = [
        random_feeds(m, representative_sizes(m, given, batch=batch), seed=seed) for m in models
    ]
    with progress_for(quiet=quiet) as progress:
        progress.stage("bench")
        result = race(
            models,
            feeds,
            execution,
            seed=seed,
            budget=Budget(rounds=rounds, seconds=seconds),
            progress=progress.step,
        )
    rows = [
        {
            "model": source,
            **entry.to_dict(),
            "ratio": ratio.value,
            "ratio_ci95": ratio.interval.bounds(),
        }
        for source, entry, ratio in zip(sources, result.entries, result.ratios, strict=True)
    ]
    if as_json:
        report = {"models": rows, "environment": environment(execution, seed)}
        click.echo(json.dumps(report, indent=2))
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("model", "p50 ms", "95 % interval", "p95 ms", "runs", "ratio to the first"):
        name = heading == "model"
        table.add_column(
            heading, justify="left" if name else "right", overflow="fold", no_wrap=not name
        )
    for row, entry, ratio in zip(rows, result.entries, result.ratios, strict=True):
        values = entry.to_dict()
        low, high = values["ci95"]
        table.add_row(
            Text(Path(str(row["model"])).name),
            f"{values['p50']:.4g}",
            f"[{low:.4g}, {high:.4g}]",
            f"{values['p95']:.4g}",
            str(values["runs"]),
            f"{ratio.value:.3f} [{ratio.interval.low:.3f}, {ratio.interval.high:.3f}]",
        )
    output.print(table, soft_wrap=False)
