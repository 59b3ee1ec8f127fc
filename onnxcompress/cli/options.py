"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxcompress.config import REPAIRS, SAMPLES
from onnxcompress.errors import UsageError
from onnxcompress.load.source import ModelSource
from onnxcompress.runtime import Execution, default_threads

F = TypeVar("F", bound=Callable[..., Any])


def execution_options(command: F) -> F:
    """`--providers`, `--threads`."""
    command = click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="Threads of the CPU provider [default: all processors this process may use].",
    )(command)
    return click.option(
        "--providers",
        default="cpu",
        show_default=True,
        metavar="LIST",
        help="cpu, cuda (every compute node must run there) or cuda,cpu (node by node).",
    )(command)


def size_options(command: F) -> F:
    """`--shape`, `--batch`."""
    command = click.option(
        "--batch",
        type=click.IntRange(min=1),
        help="Batch size at which a dynamic batch is counted and timed [default: 1].",
    )(command)
    return click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME:D0,D1,...",
        help="Size of a dynamic input at which to count and time.",
    )(command)


def preprocess_option(command: F) -> F:
    """`--preprocess`."""
    return click.option(
        "--preprocess",
        metavar="FILE.yaml|KEY=VALUE,...",
        help="How uint8 images become inputs: layout, color, resize, crop, scale, mean, std, "
        "label_offset.",
    )(command)


eval_option = click.option(
    "--eval", "eval_data", metavar="SPEC", help="Held-out inputs, labels optional."
)

metric_option = click.option(
    "--metric", metavar="NAME", help="top1, top5, agreement or MODULE:FUNCTION."
)

exclude_option = click.option(
    "--exclude", multiple=True, metavar="REGEX", help="Node names to leave alone."
)


def repair_options(command: F) -> F:
    """`--repair`, `--samples`."""
    command = click.option(
        "--samples",
        type=click.IntRange(min=1),
        default=SAMPLES,
        show_default=True,
        help="Inputs of --data that moments and repair look at, at most.",
    )(command)
    return click.option(
        "--repair",
        type=click.Choice(REPAIRS),
        default="refit",
        show_default=True,
        help="Fit the layers behind lossy rewrites again on --data: their weights (refit), the "
        "same with low-rank layers by what the network's answer sees of their errors (fisher), "
        "only a scale and a bias per channel (scale), or not at all.",
    )(command)


report_option = click.option(
    "--report",
    "report_file",
    type=click.Path(),
    metavar="FILE",
    help="Where the report goes [default: OUT with .report.json].",
)


def output_options(command: F) -> F:
    """`--force`, `--save-as-external-data`."""
    command = click.option(
        "--save-as-external-data", "external_data", is_flag=True, help="Weights in OUT.data."
    )(command)
    return click.option("--force", is_flag=True, help="Overwrite OUT.")(command)


seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of every random choice.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, not a table.")

quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress on standard error.")


def make_execution(providers: str, threads: int | None) -> Execution:
    """Execution from its texts.

    Raises:
        UsageError: unknown provider.
    """
    names = tuple(name.strip().lower() for name in providers.split(",") if name.strip())
    return Execution(names, threads or default_threads())


def model_source(text: str) -> ModelSource:
    """A path, or standard input for `-`.

    Raises:
        UsageError: standard input is a terminal.
    """
    if text != "-":
        return Path(text)
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("IN is '-', but nothing is piped in")
    return sys.stdin.buffer
