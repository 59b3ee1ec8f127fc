"""Help: every command, and every option that users were promised."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import click
import pytest

from onnxcompress.cli.root import cli as root

COMMANDS = (
    "bench",
    "compress",
    "demo",
    "evaluate",
    "finetune",
    "inspect",
    "passes",
    "saliency",
    "search",
)

PROMISED = {
    "compress": {
        "--pass", "--recipe", "--target", "--max-drop", "--data", "--eval", "--metric",
        "--providers", "--shape", "--gate", "--min-snr", "--confidence", "--batch", "--threads",
        "--exclude", "--plan", "--dry-run", "--run", "--seed", "--force",
        "--save-as-external-data", "--preprocess", "--report", "--json", "--then", "--finetune",
    },
    "finetune": {
        "--teacher", "--data", "--eval", "--for", "--labels", "--augment", "--device", "--run",
        "--report", "--force", "--preprocess", "--threads", "--json",
    },
    "evaluate": {"--data", "--reference", "--metric", "--preprocess", "--providers", "--json"},
    "inspect": {"--shape", "--batch", "--json"},
    "bench": {"--providers", "--threads", "--shape", "--batch", "--json"},
    "passes": {"--json"},
    "demo": {"--providers", "--threads", "--json"},
    "search": {
        "--segments", "--ratios", "--constraint", "--candidates", "--data", "--eval",
        "--executor", "--address", "--round-to", "--seed", "--force", "--json",
    },
    "saliency": {
        "--data", "--criterion", "--reference", "--samples", "--oracle-samples", "--exclude",
        "--per-layer", "--preprocess", "--providers", "--threads", "--seed", "--json", "--quiet",
    },
}  # fmt: skip
"""What DESIGN section 4 names, without --then and --finetune of `compress`, which do not exist; and
what the docs of `saliency` name."""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_commands(cli: Callable[..., Any], command: str, flag: str) -> None:
    outcome = cli(command, flag)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith(f"Usage: onnxcompress {command} ")
    offered = set(re.findall(r"^ +(?:-\w, )?(--[a-z-]+)", outcome.out, flags=re.MULTILINE))
    assert PROMISED[command] <= offered


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is_for(command: str) -> None:
    found = root.get_command(click.Context(root), command)
    assert found is not None
    options = [p for p in found.params if isinstance(p, click.Option)]
    assert [o.opts for o in options if not o.help or o.help.startswith("[default")] == []


def test_the_program(cli: Callable[..., Any]) -> None:
    outcome = cli("--help")
    assert (outcome.code, outcome.err) == (0, "")
    listed = re.findall(r"^  ([a-z]+)  +\S", outcome.out, flags=re.MULTILINE)
    assert tuple(listed) == COMMANDS
    words = " ".join(outcome.out.split())
    for code in ("0 done", "1 a bound", "2 wrong usage", "3 model", "4 data", "5 provider"):
        assert code in words
    assert "6 output" in words
    assert "130 interrupted" in words


def test_version(cli: Callable[..., Any]) -> None:
    outcome = cli("--version")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"onnxcompress {version('onnxcompress')}\n"


def test_options_to_come_are_not_ignored(refuse: Callable[..., Any]) -> None:
    refuse(2, "compress", "in.onnx", "out.onnx", "--finetune", "3e", words=["--finetune"])


def test_a_conversion_that_needs_inputs(refuse: Callable[..., Any]) -> None:
    refuse(2, "compress", "in.onnx", "out.onnx", "--then", "int8", words=["--then int8", "--data"])
    refuse(2, "compress", "in.onnx", "out.onnx", "--then", "int4", words=["--then", "int4"])


def test_help_and_usage_errors_do_not_wait_for_the_engine() -> None:
    source = """
import sys
from onnxcompress.cli import run
assert run(['--help']) == 0
assert run(['squeeze']) == 2
late = {'onnxruntime', 'onnx', 'onnx_graphsurgeon', 'scipy'} & set(sys.modules)
assert not late, late
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
