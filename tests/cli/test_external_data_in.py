"""A model whose weights lie in other files: only files of its own folder, whole and in range."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

Entries = dict[str, str]


@pytest.fixture
def pointing(tiny: onnx.ModelProto, tmp_path: Path) -> Callable[..., Path]:
    """IN in a folder of its own, with the weight w2 in a file named by `entries`."""

    def make(entries: Entries, *, secret: bytes | None = None) -> Path:
        folder = tmp_path / "home"
        folder.mkdir()
        copy = onnx.ModelProto()
        copy.CopyFrom(tiny)
        tensor = next(t for t in copy.graph.initializer if t.name == "w2")
        (folder / "weights.bin").write_bytes(tensor.raw_data)
        (tmp_path / "outside.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
        path = folder / "in.onnx"
        path.write_bytes(copy.SerializeToString())
        return path

    return make


def test_beside_the_model(
    cli: Callable[..., Any], pointing: Callable[..., Path], tmp_path: Path
) -> None:
    """The control: the same model is accepted when its data is where it may be."""
    source = pointing({"location": "weights.bin"})
    outcome = cli("compress", source, tmp_path / "out.onnx", "--pass", "svd", "--gate", "off")
    assert outcome.code == 0, outcome.err
    onnx.load(tmp_path / "out.onnx", load_external_data=False)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "nowhere.bin"}, ["'nowhere.bin'", "missing"]),
        ({"location": "../outside.bin"}, ["'../outside.bin'", "outside"]),
        ({"location": "sub/../../outside.bin"}, ["outside"]),
        ({"location": "/etc/hostname"}, ["'/etc/hostname'", "outside"]),
        ({"location": "weights.bin", "offset": "8"}, ["'w2'"]),
        ({"location": "weights.bin", "length": "999999999"}, ["'w2'"]),
        ({"location": "weights.bin", "length": "8"}, ["'w2'"]),
        ({"location": "weights.bin", "offset": "-4"}, ["'w2'"]),
        ({"location": "weights.bin", "offset": "soon"}, ["'w2'"]),
        ({"location": "weights\0.bin"}, ["'w2'"]),
        ({"location": "."}, []),
        ({"location": ""}, ["'w2'"]),
        ({}, ["'w2'"]),
    ],
    ids=lambda value: (
        " ".join(f"{k}={v!r}" for k, v in value.items()) or "nothing"
        if isinstance(value, dict)
        else ""
    ),
)
def test_refused(
    refuse: Callable[..., Any],
    pointing: Callable[..., Path],
    tmp_path: Path,
    entries: Entries,
    words: list[str],
) -> None:
    source = pointing(entries)
    refuse(3, "compress", source, tmp_path / "out.onnx", "--gate", "off", words=words)


def test_a_link_that_leads_outside(
    refuse: Callable[..., Any], pointing: Callable[..., Path], tmp_path: Path
) -> None:
    source = pointing({"location": "link.bin"})
    (tmp_path / "home" / "link.bin").symlink_to(tmp_path / "outside.bin")
    refuse(3, "compress", source, tmp_path / "out.onnx", "--gate", "off", words=["outside"])
