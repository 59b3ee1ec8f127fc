"""External data: read from the model's own folder, refused from anywhere else."""

from __future__ import annotations

import io
import os
import signal

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcompress.errors import ModelError
from onnxcompress.load.canonical import canonicalise
from onnxcompress.load.source import read_source

WEIGHT = (np.arange(48, dtype=np.float32).reshape(4, 3, 2, 2) % 7) - 3
DATA = WEIGHT.tobytes()


@pytest.fixture
def model(kit):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    outputs = [kit.value("y", (2, 4, 5, 4))]
    return kit.model(nodes, [kit.value("x", (2, 3, 6, 5))], outputs, {"w": WEIGHT})


@pytest.fixture
def folder(tmp_path):
    """A folder for the model, beside a file that is none of its business."""
    (tmp_path / "secret.bin").write_bytes(DATA)
    (tmp_path / "net").mkdir()
    return tmp_path / "net"


def _point(tensor, location, offset=None, length=None):
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))


def _external(model, location, offset=None, length=None):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _point(copy.graph.initializer[0], location, offset, length)
    return copy


def _write(folder, model):
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _assert_refused(folder, model, naming):
    with pytest.raises(ModelError, match=naming) as caught:
        read_source(_write(folder, model))
    assert "'w'" in str(caught.value) or "external data" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["weights.bin", "sub/deeper/weights.bin"])
@pytest.mark.parametrize("offset", [None, 0, 64])
@pytest.mark.parametrize("bounded", [True, False])
def test_equals_the_embedded_model(model, folder, place, offset, bounded):
    file = folder / place
    file.parent.mkdir(parents=True, exist_ok=True)
    tail = b"tail" if bounded else b""
    file.write_bytes(b"\1" * (offset or 0) + DATA + tail)
    given = _external(model, place, offset, len(DATA) if bounded else None)
    path = _write(folder, given)
    source = read_source(path)
    (tensor,) = source.model.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), WEIGHT)
    assert not onnx.external_data_helper.uses_external_data(tensor)
    assert source.file_bytes == path.stat().st_size + len(DATA)
    expected = canonicalise(model).model
    (found,) = canonicalise(source.model).model.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(found), WEIGHT)
    assert len(canonicalise(source.model).model.graph.node) == len(expected.graph.node)
    assert file.read_bytes() == b"\1" * (offset or 0) + DATA + tail


def test_written_by_onnx_itself(kit, folder, monkeypatch):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")]
    weights = {"w": kit.whole((40, 50), seed=1)}
    model = kit.model(nodes, [kit.value("x", (2, 40))], [kit.value("y", (2, 50))], weights)
    saved = onnx.ModelProto()
    saved.CopyFrom(model)
    path = folder / "net.onnx"
    onnx.save_model(saved, path, save_as_external_data=True, location="net.data", size_threshold=0)
    # The folder of the model counts, not the one the process happens to stand in.
    monkeypatch.chdir(folder.parent)
    source = read_source(path)
    kit.assert_same(model, source.model, {"x": kit.whole((2, 40), seed=2)})
    assert source.file_bytes == path.stat().st_size + (folder / "net.data").stat().st_size


OUTSIDE = ["../secret.bin", "sub/../../secret.bin", "..", "", "/etc/hostname"]


@pytest.mark.parametrize("location", OUTSIDE)
def test_outside_the_folder(model, folder, location):
    _assert_refused(folder, _external(model, location, length=len(DATA)), "outside|refused")


def test_absolute_path_to_the_right_file(model, folder):
    (folder / "weights.bin").write_bytes(DATA)
    _assert_refused(folder, _external(model, folder / "weights.bin"), "outside")


def test_link_out_of_the_folder(model, folder):
    (folder / "weights.bin").symlink_to(folder.parent / "secret.bin")
    _assert_refused(folder, _external(model, "weights.bin"), "outside")


def test_folder_that_is_a_link_out(model, folder):
    (folder / "sub").symlink_to(folder.parent)
    _assert_refused(folder, _external(model, "sub/secret.bin"), "outside")


def test_link_within_the_folder(model, folder):
    (folder / "real.bin").write_bytes(DATA)
    (folder / "weights.bin").symlink_to(folder / "real.bin")
    source = read_source(_write(folder, _external(model, "weights.bin")))
    np.testing.assert_array_equal(numpy_helper.to_array(source.model.graph.initializer[0]), WEIGHT)


def test_link_to_itself(model, folder):
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    _assert_refused(folder, _external(model, "a"), "'a'")


def test_a_folder_with_a_similar_name_is_outside(model, folder):
    """`net-more` starts with `net`, and is another folder all the same."""
    more = folder.parent / "net-more"
    more.mkdir()
    (more / "weights.bin").write_bytes(DATA)
    _assert_refused(folder, _external(model, "../net-more/weights.bin"), "outside")


def test_missing_file(model, folder):
    _assert_refused(folder, _external(model, "weights.bin"), "weights.bin.* is missing")


def test_folder_in_place_of_the_file(model, folder):
    (folder / "sub").mkdir()
    _assert_refused(folder, _external(model, "sub", length=8), "cannot be read")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_name_that_no_file_can_have(model, folder, name):
    _assert_refused(folder, _external(model, name), "external data")


def test_name_that_is_no_text(model, folder):
    """Protobuf checks its strings when they are read, not when they are parsed."""
    data = _external(model, "weights.bin").SerializeToString()
    assert data.count(b"weights.bin") == 1
    path = folder / "net.onnx"
    path.write_bytes(data.replace(b"weights.bin", b"\xffeights.bin"))
    with pytest.raises(ModelError):
        read_source(path)


class Hung(BaseException):
    """Raised by the alarm; no handler of the engine catches it."""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_in_place_of_the_file(model, folder):
    """Opening a pipe that nobody writes to would wait for ever."""
    os.mkfifo(folder / "weights.bin")
    path = _write(folder, _external(model, "weights.bin", 0, 0))

    def stop(*_):
        raise Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(ModelError):
            read_source(path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (None, len(DATA) + 1),
        (1, len(DATA)),
        (len(DATA), 1),
        (len(DATA) + 1, None),
        (-1, None),
        (-4, 4),
        (None, -1),
        (0, -len(DATA)),
        (2**70, None),
        (None, 2**70),
        (2**63, 2**63),
    ],
)
def test_range_outside_the_file(model, folder, offset, length):
    (folder / "weights.bin").write_bytes(DATA)
    _assert_refused(folder, _external(model, "weights.bin", offset, length), "external data")


@pytest.mark.parametrize(("offset", "length"), [("many", None), (None, "1e3"), ("", None)])
def test_range_that_is_no_number(model, folder, offset, length):
    (folder / "weights.bin").write_bytes(DATA)
    _assert_refused(folder, _external(model, "weights.bin", offset, length), "external data")


@pytest.mark.parametrize("length", [len(DATA) - 4, 4, 0])
def test_too_few_bytes_for_the_shape(model, folder, length):
    (folder / "weights.bin").write_bytes(DATA)
    source = _write(folder, _external(model, "weights.bin", 0, length))
    with pytest.raises(ModelError, match="'w'"):
        canonicalise(read_source(source).model)


@pytest.mark.parametrize("wrap", [bytes, io.BytesIO], ids=["bytes", "stream"])
def test_refused_from_bytes(model, folder, monkeypatch, wrap):
    """Bytes have no folder; the one the process stands in is not it."""
    (folder / "weights.bin").write_bytes(DATA)
    monkeypatch.chdir(folder)
    data = _external(model, "weights.bin").SerializeToString()
    with pytest.raises(ModelError, match=r"'w'.*give the path"):
        read_source(wrap(data))


def test_refused_from_a_model_in_memory(model, folder, monkeypatch):
    (folder / "weights.bin").write_bytes(DATA)
    monkeypatch.chdir(folder)
    with pytest.raises(ModelError, match="'w'"):
        read_source(_external(model, "weights.bin"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(model, folder):
    (folder / "weights.bin").write_bytes(DATA)
    (folder / "weights.bin").chmod(0)
    _assert_refused(folder, _external(model, "weights.bin"), "cannot be read")
