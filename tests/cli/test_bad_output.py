"""OUT that cannot be written: exit code 6, said before the work where it can be known then."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnxcompress.errors import OutputError
from onnxcompress.report.write import write_json

FORM = ("--pass", "svd:rank=full", "--gate", "off")


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_arguments: Any) -> None:
        pytest.fail("the work began although OUT cannot be written")

    monkeypatch.setattr("onnxcompress.preparation.read_source", load)


@pytest.mark.usefixtures("no_work")
def test_out_exists(refuse: Callable[..., Any], model: Path) -> None:
    out = model.with_name("out.onnx")
    out.write_bytes(b"precious")
    refuse(6, "compress", model, out, words=["out.onnx", "--force"])


@pytest.mark.usefixtures("no_work")
def test_folder_is_missing(refuse: Callable[..., Any], model: Path) -> None:
    out = model.parent / "nowhere" / "out.onnx"
    refuse(6, "compress", model, out, words=["nowhere", "does not exist"])


@pytest.mark.usefixtures("no_work")
def test_folder_is_a_file(refuse: Callable[..., Any], model: Path) -> None:
    refuse(6, "compress", model, model / "out.onnx", words=["in.onnx"])


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "forced"])
def test_out_is_a_folder(
    refuse: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch, force: list[str]
) -> None:
    model.with_name("out").mkdir()
    monkeypatch.chdir(model.parent)
    for out in ("out", ".", ".."):
        refuse(6, "compress", model, out, *force)


@pytest.mark.usefixtures("no_work")
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody can write to")
def test_folder_is_not_writable(refuse: Callable[..., Any], model: Path) -> None:
    refuse(6, "compress", model, "/proc/out.onnx", words=["/proc/out.onnx"])


@pytest.mark.usefixtures("no_work")
def test_name_is_too_long(refuse: Callable[..., Any], model: Path) -> None:
    refuse(6, "compress", model, model.with_name("n" * 300))


@pytest.mark.usefixtures("no_work")
def test_report_cannot_be_written(refuse: Callable[..., Any], model: Path) -> None:
    out, report = model.with_name("out.onnx"), model.parent / "nowhere" / "report.json"
    refuse(6, "compress", model, out, "--report", report, words=["report.json"])


@pytest.mark.usefixtures("no_work")
def test_plan_of_a_dry_run_needs_a_name(
    cli: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    outcome = cli("compress", model, "-", "--dry-run", *FORM)
    assert outcome.code in {2, 6}
    outcome.refused(outcome.code, "--dry-run")


def test_special_files_are_not_replaced(cli: Callable[..., Any], model: Path) -> None:
    """Neither a pipe by name nor, for an administrator, /dev/null may become a model file."""
    out = model.with_name("out.onnx")
    os.mkfifo(out)
    # With an open end, a program that writes into it does not wait for ever.
    end = os.open(out, os.O_RDWR | os.O_NONBLOCK)
    outcome = cli("compress", model, out, "--force", *FORM)
    os.close(end)
    assert stat.S_ISFIFO(out.lstat().st_mode)
    outcome.refused(6, "out.onnx")


@pytest.mark.parametrize("role", ["model", "out"])
def test_the_report_does_not_replace_a_model(
    cli: Callable[..., Any], model: Path, role: str
) -> None:
    before = model.read_bytes()
    out = model.with_name("out.onnx")
    outcome = cli("compress", model, out, "--report", {"model": model, "out": out}[role], *FORM)
    assert model.read_bytes() == before
    assert outcome.code in {2, 6}
    assert not out.exists()


def test_weights_of_in_are_not_replaced(
    cli: Callable[..., Any], tiny: onnx.ModelProto, tmp_path: Path
) -> None:
    """IN is a renamed result: its weights still lie where those of OUT would go."""
    copy = onnx.ModelProto()
    copy.CopyFrom(tiny)
    source = tmp_path / "in.onnx"
    onnx.save_model(copy, source, save_as_external_data=True, location="out.onnx.data")
    weights = tmp_path / "out.onnx.data"
    before = weights.read_bytes()
    outcome = cli("compress", source, tmp_path / "out.onnx", "--save-as-external-data", *FORM)
    assert weights.read_bytes() == before
    assert outcome.code in {2, 6}
    assert not (tmp_path / "out.onnx").exists()


def test_weights_that_exist_need_force(refuse: Callable[..., Any], model: Path) -> None:
    model.with_name("out.onnx.data").write_bytes(b"precious")
    out = model.with_name("out.onnx")
    refuse(6, "compress", model, out, "--save-as-external-data", *FORM, words=["out.onnx.data"])


def test_run_folder_need_not_exist(cli: Callable[..., Any], model: Path) -> None:
    """Nothing is timed here, so the plan is the first file that goes there."""
    out, run_folder = model.with_name("out.onnx"), model.with_name("run")
    outcome = cli("compress", model, out, "--run", run_folder, *FORM)
    assert outcome.code == 0, outcome.err
    assert (run_folder / "plan.json").is_file()


def test_run_folder_is_a_file(refuse: Callable[..., Any], model: Path) -> None:
    model.with_name("run").write_bytes(b"precious")
    refuse(
        6, "compress", model, model.with_name("out.onnx"), "--run", model.with_name("run"), *FORM
    )


@pytest.mark.parametrize("existing", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("moment", ["write", "fsync", "rename"])
def test_disk_full(
    refuse: Callable[..., Any],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    existing: bool,
) -> None:
    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    name = {
        "write": "onnxcompress.report.write.model_bytes",
        "fsync": "os.fsync",
        "rename": "pathlib.Path.replace",
    }[moment]
    monkeypatch.setattr(name, full)
    out = model.with_name("out.onnx")
    if existing:
        out.write_bytes(b"precious")
    words = ["out.onnx", "No space left"]
    refuse(6, "compress", model, out, "--force", *FORM, words=words)


def test_disk_full_with_external_data(
    refuse: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    out = model.with_name("out.onnx")
    refuse(6, "compress", model, out, "--save-as-external-data", *FORM, words=["No space left"])


def test_files_limited_by_the_system(
    start: Callable[..., subprocess.Popen[bytes]],
    model: Path,
    listing: Callable[[], dict[str, bytes]],
) -> None:
    """No file may grow beyond 8 kB, which the report and temporary checks stay below."""
    before = listing()

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    process = start("compress", model, "out.onnx", *FORM, memory=True, preexec_fn=limited)
    _, errors = process.communicate(timeout=60)
    lines = [line for line in errors.decode().splitlines() if line]
    assert process.returncode == 6, errors.decode()
    assert len(lines) == 1
    assert lines[0].startswith("onnxcompress: error: ")
    assert listing() == before


def test_the_report_goes_first(
    cli: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exit code 6 there is no OUT, even if it is the report that has no room."""

    def full(_values: Any, path: Path) -> Any:
        def fill(_file: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        return path, fill

    out = model.with_name("out.onnx")
    monkeypatch.setattr("onnxcompress.report.write.json_job", full)
    cli("compress", model, out, *FORM).refused(6, "report.json")
    assert not out.exists()


def test_a_reason_is_given_once(cli: Callable[..., Any], model: Path) -> None:
    outcome = cli("compress", model, model.parent / "nowhere" / "out.onnx")
    assert outcome.err.count("cannot be written") == 1
    with pytest.raises(OutputError) as caught:
        write_json({}, model.parent / "nowhere" / "plan.json")
    assert str(caught.value).count("cannot be written") == 1
