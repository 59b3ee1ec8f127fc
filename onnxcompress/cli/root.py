"""The command group; commands are imported when they are called, so that --help is quick."""

from __future__ import annotations

from importlib import import_module

import click

_COMMANDS = {
    "bench": "Time models against each other.",
    "compress": "Compress a model and prove the result: the main job.",
    "demo": "Run the main job on the embedded model and data.",
    "evaluate": "Measure a model's task metric, or its agreement with a reference.",
    "finetune": "Train a compressed model towards its original's answers.",
    "inspect": "List layers, cost, and what each pass could do, or why not.",
    "passes": "List every installed pass and its options.",
    "saliency": "Score channels by every criterion, and compare with the oracle.",
    "search": "Derive a family of networks: one table, one Pareto front.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(
            import_module(f"onnxcompress.cli.{cmd_name}"), f"{cmd_name}_command"
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done; 1 a bound could not be met, or nothing could be gained; 2 wrong "
    "usage; 3 model; 4 data; 5 provider; 6 output cannot be written; 130 interrupted.",
)
@click.version_option(package_name="onnxcompress", message="%(prog)s %(version)s")
def cli() -> None:
    """Compress an exported ONNX CNN and prove the result.

    Same interface, accuracy within the bound, latency measured in ONNX Runtime.
    """
