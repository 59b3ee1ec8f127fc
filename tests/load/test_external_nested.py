"""External data of tensors that are no initializers: it is contained just as well."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcompress.errors import ModelError
from onnxcompress.load.canonical import canonicalise
from onnxcompress.load.source import read_source

VALUES = (np.arange(6, dtype=np.float32).reshape(2, 3) % 4) - 1
DATA = VALUES.tobytes()


@pytest.fixture
def folder(tmp_path):
    """A folder for the model, beside a file that is none of its business."""
    (tmp_path / "secret.bin").write_bytes(DATA)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "k.bin").write_bytes(DATA)
    return tmp_path / "net"


def _external(location):
    tensor = onnx.TensorProto(name="k", data_type=onnx.TensorProto.FLOAT, dims=[2, 3])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def _write(folder, model):
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _read(kit, path, feeds, *, contained):
    """Refused outside the folder; inside, the values arrive."""
    if not contained:
        with pytest.raises(ModelError, match="outside"):
            read_source(path)
        return
    (found,) = kit.run(canonicalise(read_source(path).model).model, feeds)
    np.testing.assert_array_equal(found, VALUES)


LOCATIONS = pytest.mark.parametrize(
    ("location", "contained"), [("k.bin", True), ("../secret.bin", False)]
)


@LOCATIONS
def test_constant_node(kit, folder, location, contained):
    nodes = [
        helper.make_node("Constant", [], ["k"], value=_external(location)),
        helper.make_node("Add", ["x", "k"], ["y"], name="add"),
    ]
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))])
    feeds = {"x": np.zeros((2, 3), np.float32)}
    _read(kit, _write(folder, model), feeds, contained=contained)


@LOCATIONS
def test_constant_in_a_subgraph(kit, folder, location, contained):
    branches = {}
    for name, op in (("then", "Add"), ("else", "Sub")):
        inner = [
            helper.make_node("Constant", [], ["k"], value=_external(location)),
            helper.make_node(op, ["x", "k"], [name]),
        ]
        graph = helper.make_graph(inner, name, [], [kit.value(name, (2, 3))])
        branches[f"{name}_branch"] = graph
    inputs = [kit.value("x", (2, 3)), kit.value("which", (), 9)]
    node = helper.make_node("If", ["which"], ["y"], name="if", **branches)
    path = _write(folder, kit.model([node], inputs, [kit.value("y", (2, 3))]))
    feeds = {"x": np.zeros((2, 3), np.float32), "which": np.array(True)}
    _read(kit, path, feeds, contained=contained)


@LOCATIONS
def test_constant_in_a_local_function(kit, folder, location, contained):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "l": 1]> g (float[2,3] x) => (float[2,3] y)'
        ' { y = l.f(x) } <domain: "l", opset_import: ["": 17]>'
        " f (a) => (b) { k = Constant <value_float = 1.0> () b = Add(a, k) }"
    )
    attribute = model.functions[0].node[0].attribute[0]
    attribute.CopyFrom(helper.make_attribute("value", _external(location)))
    feeds = {"x": np.zeros((2, 3), np.float32)}
    _read(kit, _write(folder, model), feeds, contained=contained)


@LOCATIONS
@pytest.mark.parametrize("part", ["values", "indices"])
def test_sparse_constant(kit, folder, part, location, contained):
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(VALUES.reshape(-1), "values"),
        numpy_helper.from_array(np.arange(6), "indices"),
        [2, 3],
    )
    if part == "indices":
        indices = np.arange(6).tobytes()
        for name in ("k.bin", "../secret.bin"):
            (folder / name).write_bytes(indices)
    tensor = getattr(sparse, part)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    nodes = [
        helper.make_node("Constant", [], ["k"], sparse_value=sparse),
        helper.make_node("Add", ["x", "k"], ["y"], name="add"),
    ]
    model = kit.model(nodes, [kit.value("x", (2, 3))], [kit.value("y", (2, 3))])
    feeds = {"x": np.zeros((2, 3), np.float32)}
    _read(kit, _write(folder, model), feeds, contained=contained)
