"""Ctrl-C and termination requests at every stage: 130, no OUT, nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

FORM = ("--pass", "svd:rank=full", "--gate", "off")
Start = Callable[..., subprocess.Popen[bytes]]

PAUSE = """
def pause(*arguments, **options):
    import pathlib, time
    pathlib.Path("reached").touch()
    time.sleep(60)
"""
# What is replaced by a pause, and the options that lead there.
STAGES = {
    "load": ("import onnxcompress.preparation as m; m.canonicalise = pause", FORM),
    "measure layers": ("import onnxcompress.planning as m; m.gate = pause", ("--pass", "svd")),
    "verify": ("import onnxcompress.pipeline as m; m.verify = pause", FORM),
    "write": ("import os; os.fsync = pause", FORM),
    "write weights": (
        "import onnxcompress.report.write as m; m._rename_all = pause",
        (*FORM, "--save-as-external-data"),
    ),
}


def interrupted(process: subprocess.Popen[bytes], folder: Path, number: int) -> tuple[int, str]:
    """Send the signal as soon as the program says that it got there."""
    for _ in range(600):
        if (folder / "reached").exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    assert (folder / "reached").exists(), process.communicate()[1]
    (folder / "reached").unlink()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors.decode()


def check(code: int, errors: str) -> None:
    assert code == 130, errors
    lines = [line for line in errors.splitlines() if line]
    assert len(lines) == 1, errors
    assert lines[0].startswith("onnxcompress: error: interrupted")


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted(
    start: Start, model: Path, listing: Callable[[], dict[str, bytes]], stage: str
) -> None:
    before = listing()
    patch, options = STAGES[stage]
    process = start("compress", model, "out.onnx", *options, before=PAUSE + patch)
    check(*interrupted(process, model.parent, signal.SIGINT))
    assert listing() == before


def test_terminated(start: Start, model: Path, listing: Callable[[], dict[str, bytes]]) -> None:
    before = listing()
    patch, options = STAGES["write"]
    process = start("compress", model, "out.onnx", *options, before=PAUSE + patch)
    check(*interrupted(process, model.parent, signal.SIGTERM))
    assert listing() == before


def test_an_existing_out_survives(
    start: Start, model: Path, listing: Callable[[], dict[str, bytes]]
) -> None:
    model.with_name("out.onnx").write_bytes(b"precious")
    before = listing()
    patch, options = STAGES["write"]
    process = start("compress", model, "out.onnx", "--force", *options, before=PAUSE + patch)
    check(*interrupted(process, model.parent, signal.SIGINT))
    assert listing() == before


def test_in_the_users_own_code(
    start: Start, model: Path, listing: Callable[[], dict[str, bytes]]
) -> None:
    """A loader that is waiting for data is interrupted like everything else."""
    loader = f"{PAUSE}\ndef batches():\n    pause()\n    yield {{}}\n"
    model.with_name("slow_loader.py").write_text(loader)
    before = listing()
    options = ("--data", "slow_loader:batches", *FORM)
    quiet = "import sys; sys.dont_write_bytecode = True"
    process = start("compress", model, "out.onnx", *options, before=quiet)
    check(*interrupted(process, model.parent, signal.SIGINT))
    assert listing() == before


def test_what_is_said_is_true(start: Start, model: Path) -> None:
    """Between OUT and its report: either nothing was written, or nobody says so."""
    patch = """
import onnxcompress.report.write as m
first = m.commit
def then_pause(*a, **o): first(*a, **o); pause()
m.commit = then_pause
"""
    process = start("compress", model, "out.onnx", *FORM, before=PAUSE + patch)
    code, errors = interrupted(process, model.parent, signal.SIGINT)
    assert code == 130
    out = model.with_name("out.onnx")
    if out.exists():
        onnx.load(out)
        assert "nothing was written" not in errors


@pytest.mark.parametrize("arguments", [["passes"], ["compress"]], ids=["good", "bad"])
def test_the_previous_handler_comes_back(cli: Callable[..., object], arguments: list[str]) -> None:
    def mine(_number: int, _frame: object) -> None: ...

    previous = signal.signal(signal.SIGTERM, mine)
    try:
        cli(*arguments)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, previous)
