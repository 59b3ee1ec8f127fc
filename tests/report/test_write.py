"""Files appear whole or not at all, and what was there before stays until then."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import pytest

from onnxcompress.errors import OutputError
from onnxcompress.report.write import (
    check_writable,
    commit,
    model_bytes,
    write_json,
    write_model,
    write_stream,
)


@pytest.fixture
def model() -> onnx.ModelProto:
    """Weights of 4 kB and of 8 bytes, and metadata in an order of its own."""
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17], metadata_props: ["b": "2", "a": "1"]>\n'
        "one (float[1, 32] x) => (float[1, 32] y) { p = MatMul (x, w)  y = Add (p, s) }"
    )
    generator = np.random.default_rng(0)
    for name, shape in {"w": (32, 32), "s": (1,)}.items():
        values = generator.standard_normal(shape).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return made


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_in_one_file(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    before = model.SerializeToString()
    write_model(model, path)
    assert path.read_bytes() == model_bytes(model)
    assert onnx.load(path) == model
    assert listing(tmp_path) == ["out.onnx"]
    assert model.SerializeToString() == before


def test_a_model_in_two_files(model: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    before = model.SerializeToString()
    write_model(model, path, external_data=True)
    assert listing(tmp_path) == ["out.onnx", "out.onnx.data"]
    assert (tmp_path / "out.onnx.data").stat().st_size == 32 * 32 * 4
    again = onnx.load(path)
    for one, other in zip(again.graph.initializer, model.graph.initializer, strict=True):
        assert one.name == other.name
        assert np.array_equal(onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other))
    assert list(again.graph.node) == list(model.graph.node)
    assert list(again.metadata_props) == list(model.metadata_props)
    assert model.SerializeToString() == before


def test_small_weights_need_no_second_file(model: onnx.ModelProto, tmp_path: Path) -> None:
    del model.graph.initializer[0], model.graph.node[0]
    model.graph.node[0].input[0] = "x"
    write_model(model, tmp_path / "out.onnx", external_data=True)
    assert listing(tmp_path) == ["out.onnx"]
    assert onnx.load(tmp_path / "out.onnx") == model


def test_bytes_are_the_same_every_time(model: onnx.ModelProto) -> None:
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    assert model_bytes(copy) == model_bytes(model)


def test_too_large_for_one_file(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcompress.report.write._PROTOBUF_LIMIT", 1000)
    with pytest.raises(OutputError, match="--save-as-external-data"):
        model_bytes(model)


def test_streams(model: onnx.ModelProto) -> None:
    stream = io.BytesIO()
    write_stream(model, stream)
    assert stream.getvalue() == model_bytes(model)

    class Closed(io.BytesIO):
        def write(self, _data: Any) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(OutputError, match="standard output"):
        write_stream(model, Closed())


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    values = {
        "inf": float("inf"), "nan": float("nan"), "deep": [{"low": (-np.inf, np.float32(0.5))}],
        "count": np.int64(3), "flag": np.bool_(True), "none": None, "text": "é",
    }  # fmt: skip
    write_json(values, path)

    def reject(text: str) -> None:
        pytest.fail(f"{text} is not JSON")

    read = json.loads(path.read_text(), parse_constant=reject)
    assert read["nan"] is None
    assert isinstance(read["inf"], str)
    assert read["deep"] == [{"low": ["-" + read["inf"], 0.5]}]
    assert (read["count"], read["flag"], read["none"], read["text"]) == (3, True, None, "é")
    assert path.read_text().endswith("}\n")
    assert listing(tmp_path) == ["report.json"]


def full(*_arguments: Any, **_options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def partly(file: BinaryIO) -> None:
    file.write(b"half of ")
    full()


def interrupted(file: BinaryIO) -> None:
    file.write(b"half of ")
    raise KeyboardInterrupt


@pytest.mark.parametrize("old", [None, b"precious"], ids=["new", "old"])
@pytest.mark.parametrize(
    ("fill", "expected"),
    [(partly, OutputError), (interrupted, KeyboardInterrupt), (lambda _: 1 / 0, ZeroDivisionError)],
    ids=["full", "interrupted", "fault"],
)
def test_nothing_is_left_behind(
    tmp_path: Path,
    old: bytes | None,
    fill: Callable[[BinaryIO], object],
    expected: type[BaseException],
) -> None:
    path = tmp_path / "out.onnx"
    if old is not None:
        path.write_bytes(old)
    before = listing(tmp_path)
    with pytest.raises(expected):
        commit([(path, fill)])
    assert listing(tmp_path) == before
    assert old is None or path.read_bytes() == old


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace", "pathlib.Path.chmod"])
def test_late_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"precious")
    monkeypatch.setattr(failing, full)
    with pytest.raises(OutputError, match=r"out\.onnx.*No space left"):
        commit([(path, lambda file: file.write(b"new"))])
    assert listing(tmp_path) == ["out.onnx"]
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("when", ["save", "weights", "model"])
def test_two_files_or_none(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A model never points at weights of another one."""
    path, data = tmp_path / "out.onnx", tmp_path / "out.onnx.data"
    write_model(model, path, external_data=True)
    before = path.read_bytes(), data.read_bytes()
    for tensor in model.graph.initializer:
        values = -onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    if when == "save":
        monkeypatch.setattr("os.fsync", full)
    else:
        genuine, count = Path.replace, [0]

        def replace(self: Path, target: Any) -> Any:
            count[0] += 1
            return (
                full()
                if count[0] == ["weights", "model"].index(when) + 1
                else genuine(self, target)
            )

        monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OutputError, match="No space left"):
        write_model(model, path, external_data=True)
    assert listing(tmp_path) == ["out.onnx", "out.onnx.data"]
    assert (path.read_bytes(), data.read_bytes()) == before


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions(tmp_path: Path, mask: int) -> None:
    previous = os.umask(mask)
    try:
        commit([(tmp_path / "out", lambda file: file.write(b"x"))])
        assert os.umask(mask) == mask
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o666 & ~mask


def test_checked_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    before = listing(tmp_path)
    check_writable(tmp_path / "new")
    check_writable(tmp_path / "file")
    assert listing(tmp_path) == before
    for path, word in {
        tmp_path: "folder",
        tmp_path / "nowhere" / "out": "does not exist",
        tmp_path / "file" / "out": "file",
    }.items():
        with pytest.raises(OutputError, match=word):
            check_writable(path)
    assert listing(tmp_path) == before
    assert (tmp_path / "file").read_bytes() == b"precious"
