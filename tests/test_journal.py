"""Findings on disk: a run that was killed goes on, and comes to the same end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress import journal as module
from onnxcompress.config import Config
from onnxcompress.journal import Journal, choice_name
from onnxcompress.pipeline import run
from onnxcompress.plan.registry import parse_pass
from onnxcompress.runtime import Execution
from onnxcompress.trial import CalibrationTrial


def config(folder: Path | None, **options: Any) -> Config:
    x = np.random.default_rng(1).standard_normal((200, 3, 8, 8)).astype(np.float32)
    values: dict[str, Any] = {
        "passes": tuple(map(parse_pass, ("exact", "lnr:round_to=2", "tucker2:round_to=2"))),
        "execution": Execution(threads=1),
        "targets": {"macs": 0.6},
        "max_drop": 100.0,
        "data": {"x": x},
        "run": folder,
    }
    return Config(**(values | options))


class Killed(BaseException):
    """Nothing that the program could catch and make good."""


def killed_at(count: int, monkeypatch: pytest.MonkeyPatch, *, cut: bool) -> None:
    """The process ends while it writes its finding number `count`."""
    genuine, written = module._write, []

    def write(path: Path, text: str, mode: str) -> None:
        written.append(mode)
        if written.count("a") == count:
            genuine(path, text[: len(text) // 2] if cut else text, mode)
            raise Killed
        genuine(path, text, mode)

    monkeypatch.setattr(module, "_write", write)


@pytest.fixture(scope="module")
def names() -> list[str]:
    return []


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_killed_and_started_again(
    two_blocks: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    quick: None,
    count: int,
) -> None:
    """The same bytes as without a pause; nothing that was written down is found again."""
    whole = run(two_blocks, config(None)).model.SerializeToString()
    tried: list[str] = []
    genuine, probing = CalibrationTrial._outcome, CalibrationTrial.probing

    def outcome(self: CalibrationTrial, chosen: Any) -> Any:
        tried.append(f"trial {choice_name(chosen)}")
        return genuine(self, chosen)

    def probes(self: CalibrationTrial) -> Any:
        tried.append("probes")
        return probing(self)

    def watched(patched: pytest.MonkeyPatch) -> None:
        patched.setattr(CalibrationTrial, "_outcome", outcome)
        patched.setattr(CalibrationTrial, "probing", probes)

    with monkeypatch.context() as patched:
        watched(patched)
        killed_at(count, patched, cut=count % 2 == 0)
        with pytest.raises(Killed):
            run(two_blocks, config(tmp_path))
    before, tried[:] = list(tried), []
    entries = [json.loads(n) for n in whole_lines(tmp_path)][1:]
    watched(monkeypatch)
    again = run(two_blocks, config(tmp_path))
    assert again.model.SerializeToString() == whole
    known = {entry["name"] for entry in entries}
    assert not set(tried) & known
    if "probes" in known:
        assert "probes" in before


def whole_lines(folder: Path) -> list[str]:
    found = []
    for line in (folder / "journal.jsonl").read_text().splitlines():
        try:
            json.loads(line)
        except ValueError:
            break
        found.append(line)
    return found


def test_a_finished_run_is_not_worked_out_again(
    two_blocks: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    first = run(two_blocks, config(tmp_path))
    size = (tmp_path / "journal.jsonl").stat().st_size

    def refuse(*_arguments: Any, **_options: Any) -> None:
        pytest.fail("worked out again")

    monkeypatch.setattr(CalibrationTrial, "_outcome", refuse)
    monkeypatch.setattr(CalibrationTrial, "step", refuse)
    monkeypatch.setattr("onnxcompress.planning.collect", refuse)
    monkeypatch.setattr("onnxcompress.rewrite.repair.Repair.__call__", refuse)
    second = run(two_blocks, config(tmp_path))
    assert second.model.SerializeToString() == first.model.SerializeToString()
    assert second.report["repair"] == first.report["repair"]
    assert second.report["latency_ratio"] == first.report["latency_ratio"]
    assert (tmp_path / "journal.jsonl").stat().st_size == size


@pytest.mark.parametrize("lost", ["journal.jsonl", "models"])
def test_half_of_what_was_kept_is_lost(
    two_blocks: onnx.ModelProto, tmp_path: Path, quick: None, lost: str
) -> None:
    """A model without its findings, or findings without their model, are made again."""
    first = run(two_blocks, config(tmp_path))
    assert first.report["repair"] is not None
    if lost == "models":
        shutil.rmtree(tmp_path / lost)
    else:
        (tmp_path / lost).unlink()
    second = run(two_blocks, config(tmp_path))
    assert second.model.SerializeToString() == first.model.SerializeToString()
    assert second.report["repair"] == first.report["repair"]


def test_a_line_without_its_end(tmp_path: Path) -> None:
    """The process ended between a finding and the end of its line."""
    Journal(tmp_path, "job").recall("one", lambda: 1)
    path = tmp_path / "journal.jsonl"
    path.write_text(path.read_text().removesuffix("\n"))
    Journal(tmp_path, "job").recall("two", lambda: 2)
    assert Journal(tmp_path, "job").known == 2


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"targets": {"macs": 0.5}}, {"repair": "off"}, {"samples": 100}]
)
def test_findings_of_another_job_are_not_believed(
    two_blocks: onnx.ModelProto, tmp_path: Path, quick: None, change: dict[str, Any]
) -> None:
    run(two_blocks, config(tmp_path))
    alone = run(two_blocks, config(None, **change)).model.SerializeToString()
    assert run(two_blocks, config(tmp_path, **change)).model.SerializeToString() == alone


def test_it_says_so(two_blocks: onnx.ModelProto, tmp_path: Path, quick: None, log: Any) -> None:
    run(two_blocks, config(tmp_path), log)
    assert not any("there already" in note for note in log.notes)
    run(two_blocks, config(tmp_path), log)
    assert any("going on in" in note and "there already" in note for note in log.notes)


@pytest.mark.parametrize("content", [b"", b"[]\n", b"\xff\xfe", b'{"context": "other"}\n{"a"'])
def test_files_that_are_no_journal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.jsonl").write_bytes(content)
    journal = Journal(tmp_path, "job")
    assert journal.known == 0
    assert journal.recall("one", lambda: [1.5, float("inf")]) == [1.5, float("inf")]
    again = Journal(tmp_path, "job")
    assert again.known == 1
    assert again.recall("one", lambda: pytest.fail("known")) == [1.5, float("inf")]
