"""The command line: one module per command; the only code that prints.

Results go to standard output, everything else to standard error, so that OUT may be a pipe.
"""

from __future__ import annotations

import sys

from onnxcompress.cli.errors import exit_code_of
from onnxcompress.cli.root import cli


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the documented code."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return exit_code_of(
        lambda: cli.main(arguments, prog_name="onnxcompress", standalone_mode=False)
    )
