"""The scripts in models/ share one manifest: each must leave the entries of the others alone."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.embedded import embedded


@pytest.fixture(scope="module")
def manifest() -> ModuleType:
    path = embedded("vgg_tiny.onnx").with_name("manifest.py")
    spec = importlib.util.spec_from_file_location("models_manifest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entries(folder: Path) -> dict[str, Any]:
    files: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert list(files) == ["files"]
    return dict(files["files"])


def test_entering_replaces_what_is_named_and_keeps_the_rest(
    manifest: ModuleType, tmp_path: Path
) -> None:
    contents = {"b.onnx": b"\x00weights\r\n", "c.npz": b"PK", "a.onnx": b"other"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    manifest.enter(tmp_path, {"b.onnx": "bee", "c.npz": "sea"}, {"b.onnx": (7, 9)})
    first = entries(tmp_path)
    manifest.enter(tmp_path, {"a.onnx": "ay"}, {"a.onnx": (3, 5)})
    second = entries(tmp_path)
    assert list(second) == ["a.onnx", "b.onnx", "c.npz"]
    assert {name: second[name] for name in first} == first
    for name, description, result in (
        ("a.onnx", "ay", {"test_correct": 3, "test_total": 5}),
        ("b.onnx", "bee", {"test_correct": 7, "test_total": 9}),
        ("c.npz", "sea", {}),
    ):
        assert second[name] == {
            "sha256": hashlib.sha256(contents[name]).hexdigest(),
            "bytes": len(contents[name]),
            "description": description,
            **result,
        }
    # Entered again, a file loses the figures of its predecessor.
    (tmp_path / "b.onnx").write_bytes(b"new")
    manifest.enter(tmp_path, {"b.onnx": "bee two"}, {})
    third = entries(tmp_path)
    assert third["b.onnx"] == {
        "sha256": hashlib.sha256(b"new").hexdigest(),
        "bytes": 3,
        "description": "bee two",
    }
    assert {**third, "b.onnx": None} == {**second, "b.onnx": None}


def test_a_card_keeps_its_prose_and_gets_the_figures(manifest: ModuleType, tmp_path: Path) -> None:
    weights = {"w": np.zeros((2, 3, 5, 7), np.float32), "shape": np.array([-1, 11])}
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 5, 7])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "graph", [], [output], tensors
    )
    onnx.save_model(helper.make_model(graph), tmp_path / "net.onnx")
    size = (tmp_path / "net.onnx").stat().st_size
    digest = hashlib.sha256((tmp_path / "net.onnx").read_bytes()).hexdigest()
    manifest.enter(tmp_path, {"net.onnx": "a net"}, {"net.onnx": (1500, 2000)})
    marks = ("<!-- measured: written by me.py -->", "<!-- end of measured -->")
    card = tmp_path / "net.md"
    card.write_text(f"before\n\n{marks[0]}\nold\n{marks[1]}\n\nafter\n", encoding="utf-8")
    options = {"test_set": "these", "parameters_are": "weights", "script": "me.py"}
    manifest.write_card(tmp_path / "net.onnx", further=["| more | 1 |"], **options)
    # Wilson's interval of 1500 in 2000, worked out by hand from its closed form.
    expected = f"""before

{marks[0]}

| what | value |
| --- | --- |
| right answers on these, ONNX Runtime CPU | 1,500 of 2,000 |
| test accuracy | 75.00% |
| Wilson 95 % interval | 73.06% to 76.85% |
| more | 1 |
| weights | 210 |
| file size | {size:,} bytes |
| sha256 | `{digest}` |

{marks[1]}

after
"""
    assert card.read_text(encoding="utf-8") == expected
    manifest.write_card(tmp_path / "net.onnx", further=["| more | 1 |"], **options)
    assert card.read_text(encoding="utf-8") == expected
