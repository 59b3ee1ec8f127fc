"""IN and OUT as pipes: standard output carries the model and nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

FORM = ("--pass", "svd:rank=full", "--gate", "off")
Start = Callable[..., subprocess.Popen[bytes]]


def finished(process: subprocess.Popen[bytes], sent: bytes | None = None) -> tuple[int, Any, Any]:
    out, errors = process.communicate(sent, timeout=60)
    return process.returncode, out, errors.decode() if errors is not None else None


def test_in_and_out(start: Start, model: Path, listing: Callable[[], dict[str, bytes]]) -> None:
    before = listing()
    process = start("compress", "-", "-", *FORM, stdin=subprocess.PIPE)
    code, out, errors = finished(process, model.read_bytes())
    assert code == 0, errors
    result = onnx.load_from_string(out)
    onnx.checker.check_model(result, full_check=True)
    # Protobuf forgives what follows a message; a result written again shows every byte.
    assert len(result.SerializeToString()) == len(out)
    assert "point_svd_in" in {node.name for node in result.graph.node}
    onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"]).run(
        None, {"x": np.ones((1, 3, 6, 7), np.float32)}
    )
    assert "layers rewritten" in errors
    assert listing() == before


def test_a_folded_model_with_json(start: Start, damaged: Callable[..., Path]) -> None:
    """Constant folding brings in a third party, which might print; the report might, too."""

    def change(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        del model.graph.node[:]
        size = onnx.helper.make_tensor("size", onnx.TensorProto.INT64, [2], [2, 3])
        model.graph.initializer.append(size)
        model.graph.node.extend(
            [
                onnx.helper.make_node("ConstantOfShape", ["size"], ["grid"], name="grid"),
                onnx.helper.make_node("ReduceSum", ["grid"], ["zero"], name="zero", keepdims=0),
                *nodes[:-1],
                onnx.helper.make_node("Add", ["g", "zero"], ["h"], name="plus"),
                nodes[-1],
            ]
        )
        nodes[-1].input[0] = "h"
        model.graph.node[-1].input[0] = "h"

    code, out, errors = finished(start("compress", damaged(change), "-", *FORM, "--json"))
    assert code == 0, errors
    result = onnx.load_from_string(out)
    assert len(result.SerializeToString()) == len(out)
    assert not {"grid", "zero"} & {node.name for node in result.graph.node}


def test_named_files_in_the_device_folder(start: Start, model: Path) -> None:
    """A shell's process substitution hands over a path that can be read once."""
    reader, writer = os.pipe()
    process = start("compress", f"/dev/fd/{reader}", "out.onnx", *FORM, pass_fds=[reader])
    os.close(reader)
    with os.fdopen(writer, "wb") as stream:
        stream.write(model.read_bytes())
    code, _, errors = finished(process)
    assert code == 0, errors
    onnx.load(model.with_name("out.onnx"))


def test_nothing_is_piped_in(start: Start, listing: Callable[[], dict[str, bytes]]) -> None:
    process = start("compress", "-", "out.onnx", *FORM, stdin=subprocess.DEVNULL)
    code, out, errors = finished(process)
    assert (code, out) == (3, b"")
    assert errors.strip().startswith("onnxcompress: error: ")
    assert errors.strip().count("\n") == 0
    assert "standard input" in errors
    assert listing() == {}


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [
        (["compress", "in.onnx", "-", *FORM, "-q"], "stdout"),
        (["inspect", "in.onnx"], "stdout"),
        (["compress", "-", "out.onnx", *FORM, "-q"], "stdin"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_descriptors_that_are_not_open(
    start: Start, model: Path, arguments: list[str], closed: str
) -> None:
    """Started as in `onnxcompress ... >&-`."""
    number = {"stdin": 0, "stdout": 1}[closed]
    process = start(*arguments, preexec_fn=lambda: os.close(number), **{closed: None})
    code, _, errors = finished(process)
    assert "Traceback" not in errors
    if arguments[0] == "compress":
        assert code in {2, 3, 6}
        assert errors.startswith("onnxcompress: error: ")
        assert errors.count("\n") == 1
        assert not model.with_name("out.onnx").exists()


@pytest.mark.parametrize(
    "arguments",
    [["compress", "in.onnx", "-", *FORM, "-q"], ["inspect", "in.onnx", "--json"]],
    ids=" ".join,
)
@pytest.mark.usefixtures("model")
def test_a_reader_that_has_gone(start: Start, arguments: list[str]) -> None:
    """Nobody reads the pipe: 6 (no bound was missed, and the interpreter adds no words)."""
    reader, writer = os.pipe()
    os.close(reader)
    process = start(*arguments, stdout=writer)
    os.close(writer)
    code, _, errors = finished(process)
    assert code == 6, errors
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert errors.count("\n") <= 1


def test_nothing_on_standard_output_after_an_error(start: Start, model: Path) -> None:
    code, out, errors = finished(start("compress", model, "-", "--pass", "svd:rank=4", "--gate",
                                       "off", "--target", "macs=0.01", "-q"))  # fmt: skip
    assert (code, out) == (1, b"")
    assert errors.startswith("onnxcompress: error: bounds not met")
    assert errors.count("\n") == 1


def test_missing_cuda_as_a_program(start: Start, model: Path) -> None:
    """ONNX Runtime's own words about the missing provider reach neither stream."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and any(
        "CUDA" in device.ep_name for device in onnxruntime.get_ep_devices()
    ):
        pytest.skip("there is a CUDA device")
    code, out, errors = finished(start("compress", model, "-", "--providers", "cuda", "-q"))
    assert (code, out) == (5, b"")
    assert errors.startswith("onnxcompress: error: ")
    assert errors.count("\n") == 1
