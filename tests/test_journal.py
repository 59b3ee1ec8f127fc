"""Findings on disk: a run that was killed goes on, and comes to the same end."""

from __future__ import annotations

import json
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
from onnxcompress.progress import Silent
from onnxcompress.runtime import Execution
from onnxcompress.trial import CalibrationTrial

TEXT = """net (float[N, 3, 8, 8] x) => (float[N, 6] y) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    [r0] b = Relu (a)
    [c1] c = Conv <pads = [1, 1, 1, 1]> (b, w1, b1)
    [r1] d = Relu (c)
    [c2] e = Conv <pads = [1, 1, 1, 1]> (d, w2, b2)
    [sum] f = Add (b, e)
    [r2] g = Relu (f)
    [c3] h = Conv <pads = [1, 1, 1, 1]> (g, w3, b3)
    [r3] i = Relu (h)
    [c4] j = Conv <pads = [1, 1, 1, 1]> (i, w4, b4)
    [sum2] k = Add (g, j)
    [r4] l = Relu (k)
    [pool] m = GlobalAveragePool (l)
    [flat] n = Flatten (m)
    [fc] y = Gemm <transB = 1> (n, w5, b5) }"""


@pytest.fixture
def model(nets: Any) -> onnx.ModelProto:
    wide = {f"w{at}": (16, 16, 3, 3) for at in range(1, 5)}
    biases = {f"b{at}": (16,) for at in range(5)}
    made: onnx.ModelProto = nets.build(
        TEXT, w0=(16, 3, 3, 3), **wide, w5=(6, 16), **biases, b5=(6,)
    )
    return made


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


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 8])
def test_killed_and_started_again(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None, count: int
) -> None:
    """The same bytes as without a pause; nothing that was written down is found again."""
    whole = run(model, config(None)).model.SerializeToString()
    tried: list[str] = []
    genuine = CalibrationTrial._outcome

    def outcome(self: CalibrationTrial, chosen: Any, *, probe: bool) -> Any:
        tried.append(f"{probe} {choice_name(chosen)}")
        return genuine(self, chosen, probe=probe)

    with monkeypatch.context() as patched:
        patched.setattr(CalibrationTrial, "_outcome", outcome)
        killed_at(count, patched, cut=count % 2 == 0)
        with pytest.raises(Killed):
            run(model, config(tmp_path))
    before, tried[:] = list(tried), []
    entries = [json.loads(n) for n in whole_lines(tmp_path)][1:]
    monkeypatch.setattr(CalibrationTrial, "_outcome", outcome)
    again = run(model, config(tmp_path))
    assert again.model.SerializeToString() == whole
    known = {entry["name"] for entry in entries}
    assert not {f"trial {t.split()[1]}" for t in tried if t.startswith("False")} & known
    if "probes" in known:
        assert not any(t.startswith("True") for t in tried)
        assert any(t.startswith("True") for t in before)


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
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    first = run(model, config(tmp_path))
    size = (tmp_path / "journal.jsonl").stat().st_size

    def refuse(*_arguments: Any, **_options: Any) -> None:
        pytest.fail("worked out again")

    monkeypatch.setattr(CalibrationTrial, "_outcome", refuse)
    monkeypatch.setattr(CalibrationTrial, "step", refuse)
    monkeypatch.setattr("onnxcompress.planning.collect", refuse)
    monkeypatch.setattr("onnxcompress.rewrite.repair.Repair.__call__", refuse)
    second = run(model, config(tmp_path))
    assert second.model.SerializeToString() == first.model.SerializeToString()
    assert second.report["repair"] == first.report["repair"]
    assert (tmp_path / "journal.jsonl").stat().st_size == size


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"targets": {"macs": 0.5}}, {"repair": "off"}, {"samples": 100}]
)
def test_findings_of_another_job_are_not_believed(
    model: onnx.ModelProto, tmp_path: Path, quick: None, change: dict[str, Any]
) -> None:
    run(model, config(tmp_path))
    alone = run(model, config(None, **change)).model.SerializeToString()
    assert run(model, config(tmp_path, **change)).model.SerializeToString() == alone


class Log(Silent):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, words: str) -> None:
        self.notes.append(words)


def test_it_says_so(model: onnx.ModelProto, tmp_path: Path, quick: None) -> None:
    log = Log()
    run(model, config(tmp_path), log)
    assert not any("there already" in note for note in log.notes)
    run(model, config(tmp_path), log)
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
