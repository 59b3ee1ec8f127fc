"""Reading a model from every kind of source, and refusing what is none."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper

from onnxcompress.errors import ModelError
from onnxcompress.load.canonical import canonicalise
from onnxcompress.load.source import read_source


@pytest.fixture
def model(kit):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv", strides=[2, 1]),
        helper.make_node("Relu", ["a"], ["y"], name="relu"),
    ]
    outputs = [kit.value("y", (2, 4, 3, 4))]
    weights = {"w": kit.whole((4, 3, 2, 2), seed=1)}
    return kit.model(nodes, [kit.value("x", (2, 3, 6, 5))], outputs, weights)


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("kind", [str, lambda p: p], ids=["str", "Path"])
def test_path(model, path, kind):
    source = read_source(kind(path))
    assert source.model == model
    assert (source.label, source.file_bytes) == ("net.onnx", path.stat().st_size)


def test_relative_path(model, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    assert read_source("net.onnx").model == model


def test_bytes(model):
    data = model.SerializeToString()
    source = read_source(data)
    assert source.model == model
    assert (source.label, source.file_bytes) == ("bytes", len(data))


def test_stream(model, path):
    with path.open("rb") as stream:
        source = read_source(stream)
    assert source.model == model
    assert source.file_bytes == path.stat().st_size
    assert read_source(io.BytesIO(model.SerializeToString())).model == model


def test_model_proto_is_not_copied_or_changed(model):
    before = model.SerializeToString()
    source = read_source(model)
    assert source.model is model
    assert source.file_bytes == len(before)
    assert model.SerializeToString() == before


def test_graphsurgeon_graph(kit, model):
    source = read_source(gs.import_onnx(model))
    assert kit.operators(source.model) == ["Conv", "Relu"]
    assert source.file_bytes == source.model.ByteSize()
    kit.assert_same(model, source.model, {"x": kit.whole((2, 3, 6, 5), seed=2)})


def _assert_refused(source, *, naming):
    with pytest.raises(ModelError, match=naming) as caught:
        read_source(source)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    _assert_refused(tmp_path / "none.onnx", naming=r"none\.onnx' does not exist")
    _assert_refused(tmp_path / "no folder" / "none.onnx", naming="does not exist")


def test_folder(tmp_path):
    _assert_refused(tmp_path, naming="is a folder")


def test_path_below_a_file(path):
    _assert_refused(path / "net.onnx", naming="cannot be read")


def test_name_that_is_too_long(tmp_path):
    _assert_refused(tmp_path / ("x" * 300), naming="cannot be read")


def test_name_that_no_file_can_have():
    _assert_refused("a\0b", naming="cannot be read|does not exist")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_unreadable_file(path):
    path.chmod(0)
    _assert_refused(path, naming="cannot be read: Permission denied")


@pytest.mark.parametrize("wrap", [bytes, io.BytesIO], ids=["bytes", "stream"])
def test_empty(wrap):
    _assert_refused(wrap(b""), naming="is empty")


def test_empty_file(tmp_path):
    (tmp_path / "empty.onnx").touch()
    _assert_refused(tmp_path / "empty.onnx", naming="empty.onnx is empty")


def test_every_truncation_is_refused(model):
    """No prefix may pass for the whole model: opset_import, which is last, is always cut."""
    data = model.SerializeToString()
    for length in [*range(0, len(data), 7), *range(len(data) - 12, len(data))]:
        with pytest.raises(ModelError, match=r"truncated|no graph|opset_import|is empty"):
            canonicalise(read_source(data[:length]).model)


def test_truncated_file(path):
    path.write_bytes(path.read_bytes()[:200])
    _assert_refused(path, naming=r"net\.onnx is not an ONNX model, or it is truncated")


def test_random_bytes():
    generator = np.random.default_rng(0)
    for length in (1, 2, 3, 7, 50, 1000, 20000):
        _assert_refused(generator.bytes(length), naming="is not an ONNX model|opset_import")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"ir_version": 8, "graph": {"node": []}}),
        "<html>Git LFS</html>",
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "\n\n\n",
    ],
)
def test_text(text):
    _assert_refused(text.encode(), naming="is not an ONNX model")


def test_flipped_bytes_never_escape_the_error_tree(model):
    """Whatever one wrong byte makes of the model: it loads, or a ModelError says why not."""
    data = bytearray(model.SerializeToString())
    accepted = 0
    for position in range(0, len(data), 5):
        spoiled = bytearray(data)
        spoiled[position] ^= 0xA5
        try:
            canonicalise(read_source(bytes(spoiled)).model)
        except ModelError:
            continue
        else:
            accepted += 1
    # A flipped weight or name is still a model; a flipped structure is not.
    assert 0 < accepted < len(data) // 5


def test_protobuf_without_graph():
    model = onnx.ModelProto(ir_version=8)
    model.opset_import.append(helper.make_opsetid("", 17))
    _assert_refused(model.SerializeToString(), naming="no graph")


def test_protobuf_without_ir_version(model):
    model.ClearField("ir_version")
    _assert_refused(model.SerializeToString(), naming="no IR version")


def test_protobuf_without_opset(model):
    del model.opset_import[:]
    _assert_refused(model.SerializeToString(), naming="opset_import is empty")


def test_another_protobuf(model):
    _assert_refused(model.graph.SerializeToString(), naming="is not an ONNX model|opset_import")


def test_nesting_beyond_reason():
    """A graph in a graph in a graph ...: refused by the parser's limit, not by a crash."""
    inner = b""
    for _ in range(300):
        # AttributeProto.g = 6, NodeProto.attribute = 5, GraphProto.node = 1, lengths by hand.
        for field in (6, 5, 1):
            inner = bytes([field << 3 | 2]) + _varint(len(inner)) + inner
    data = b"\x08\x08" + b"\x3a" + _varint(len(inner)) + inner
    _assert_refused(data, naming="is not an ONNX model")


def _varint(value):
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
