"""`onnxcompress passes`: every installed pass and its options."""

from __future__ import annotations

import json
from typing import Any

import click

from onnxcompress.cli import options as shared
from onnxcompress.cli.console import output


@click.command("passes")
@shared.json_option
def passes_command(as_json: bool) -> None:
    """List every installed pass, third parties' too, with its options."""
    from rich.text import Text

    from onnxcompress.plan.registry import options, pass_class, registered

    rows: list[dict[str, Any]] = []
    for name, entry in registered().items():
        cls = pass_class(name)
        rows.append(
            {
                "name": name,
                "summary": (cls.__doc__ or "").strip().splitlines()[0],
                "from": entry.value,
                "options": [
                    {"name": o.name, "default": o.default, "help": o.help} for o in options(cls)
                ],
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        output.print(Text(f"{row['name']}: {row['summary']} ({row['from']})", style="bold"))
        for option in row["options"]:
            output.print(Text(f"    {option['name']}={option['default']}  {option['help']}"))
