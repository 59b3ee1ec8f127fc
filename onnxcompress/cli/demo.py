"""`onnxcompress demo`: the main job on the embedded model and data."""

from __future__ import annotations

from pathlib import Path

import click

from onnxcompress.cli import options as shared
from onnxcompress.cli.compress import show
from onnxcompress.cli.console import output, progress_for


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(),
    default="digits_cnn.compressed.onnx",
    show_default=True,
    help="Where the compressed model goes.",
)
@shared.execution_options
@shared.json_option
@shared.quiet_option
def demo_command(out: str, providers: str, threads: int | None, as_json: bool, quiet: bool) -> None:
    """Compress the embedded digits network: smaller and faster, at most one point lost."""
    from onnxcompress.config import Config
    from onnxcompress.embedded import embedded
    from onnxcompress.pipeline import run
    from onnxcompress.plan.recipes import BALANCED, recipe
    from onnxcompress.report import write

    path = Path(out)
    write.check_writable(path)
    model, train, test = (
        embedded(name) for name in ("digits_cnn.onnx", "digits_train.npz", "digits_test.npz")
    )
    if not as_json:
        output.print(
            f"onnxcompress compress {model.name} {path.name} "
            f"--data {train.name} --eval {test.name}",
            style="bold",
            markup=False,
        )
    config = Config(
        passes=recipe(BALANCED),
        data=str(train),
        eval_data=str(test),
        execution=shared.make_execution(providers, threads),
    )
    with progress_for(quiet=quiet) as progress:
        result = run(model, config, progress)
    write.write_model(result.model, path)
    report = path.with_name(path.name + ".report.json")
    write.write_json(result.report, report)
    show(result.report, as_json=as_json, piped=False)
    if not as_json:
        output.print(f"written: {path} and {report}", markup=False)
