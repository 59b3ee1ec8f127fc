"""Whatever IN is, a model at fault is refused in one line with exit code 3, and nothing is lost."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

ARRAY = np.arange(6, dtype=np.float32)


def zipped() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=ARRAY)
    return stream.getvalue()


NOT_ONNX = {
    "empty": b"",
    "text": b"Conv, Relu, Conv\n" * 20,
    "image": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "archive": zipped(),
    "noise": np.random.default_rng(0).bytes(4096),
    "zeros": bytes(4096),
    "a tensor": onnx.numpy_helper.from_array(ARRAY, "w").SerializeToString(),
    "a model without a graph": onnx.ModelProto(ir_version=8).SerializeToString(),
}


@pytest.mark.parametrize("content", NOT_ONNX.values(), ids=NOT_ONNX.keys())
def test_not_an_onnx_model(refuse: Callable[..., Any], tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "in.onnx"
    source.write_bytes(content)
    refuse(3, "compress", source, tmp_path / "out.onnx", words=["in.onnx"])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.999])
def test_truncated(
    refuse: Callable[..., Any], tiny: onnx.ModelProto, tmp_path: Path, share: float
) -> None:
    whole = tiny.SerializeToString()
    source = tmp_path / "in.onnx"
    source.write_bytes(whole[: int(share * len(whole))])
    refuse(3, "compress", source, tmp_path / "out.onnx", words=["in.onnx", "truncated"])


def test_missing(refuse: Callable[..., Any], tmp_path: Path) -> None:
    words = ["nowhere.onnx", "does not exist"]
    refuse(3, "compress", tmp_path / "nowhere.onnx", tmp_path / "out.onnx", words=words)


def test_folder(refuse: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    refuse(3, "compress", tmp_path / "in", tmp_path / "out.onnx", words=["folder"])


def test_name_too_long_for_the_file_system(refuse: Callable[..., Any], tmp_path: Path) -> None:
    refuse(3, "compress", tmp_path / ("n" * 300), tmp_path / "out.onnx")


@pytest.mark.parametrize("command", ["inspect", "bench"])
def test_other_commands_too(refuse: Callable[..., Any], tmp_path: Path, command: str) -> None:
    source = tmp_path / "in.onnx"
    source.write_bytes(b"no model")
    refuse(3, command, source, words=["in.onnx"])


def test_evaluate_too(refuse: Callable[..., Any], tmp_path: Path, samples: Path) -> None:
    source = tmp_path / "in.onnx"
    source.write_bytes(b"no model")
    refuse(3, "evaluate", source, "--data", samples, words=["in.onnx"])


def test_bad_reference(refuse: Callable[..., Any], model: Path, samples: Path) -> None:
    words = ["other.onnx"]
    reference = model.with_name("other.onnx")
    refuse(3, "evaluate", model, "--data", samples, "--reference", reference, words=words)


def weight(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def poison(name: str, value: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = weight(model, name)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values.reshape(-1)[-1] = value
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))

    return change


# w2 is large enough to leave the skeleton that the checker sees, w4 and b1 are not.
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "node"), [("w2", "conv2"), ("w4", "fc"), ("b1", "conv1")])
def test_weights_that_are_not_finite(
    refuse: Callable[..., Any],
    damaged: Callable[..., Path],
    tmp_path: Path,
    name: str,
    node: str,
    value: float,
) -> None:
    source = damaged(poison(name, value))
    words = [f"'{name}'", f"'{node}'", "NaN or infinite"]
    refuse(3, "compress", source, tmp_path / "out.onnx", "--gate", "off", words=words)


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "d"  # relu1 reads what relu2 writes


def backwards(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def dangling(model: onnx.ModelProto) -> None:
    model.graph.node[2].input[0] = "nobody makes this"


def twice(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "a"


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Relou"


def unknown_domain(model: onnx.ModelProto) -> None:
    model.graph.node[1].domain = "com.example.nobody"
    model.opset_import.append(onnx.helper.make_opsetid("com.example.nobody", 1))


def untyped(model: onnx.ModelProto) -> None:
    model.graph.input[0].ClearField("type")


def no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def future_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 1000


def negative_size(model: onnx.ModelProto) -> None:
    weight(model, "w2").dims[0] = -32


def short_weight(model: onnx.ModelProto) -> None:
    tensor = weight(model, "w2")
    tensor.raw_data = tensor.raw_data[:-4]


def enormous_weight(model: onnx.ModelProto) -> None:
    weight(model, "w2").dims[0] = 2**40


def contradicting_channels(model: onnx.ModelProto) -> None:
    weight(model, "w2").CopyFrom(
        onnx.numpy_helper.from_array(np.ones((32, 23, 3, 3), np.float32), "w2")
    )


def wrong_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[2].attribute.append(onnx.helper.make_attribute("padding", [1, 1]))


INVALID = [
    cycle, backwards, dangling, twice, unknown_operator, unknown_domain, untyped, no_opset,
    future_opset, negative_size, short_weight, enormous_weight, contradicting_channels,
    wrong_attribute,
]  # fmt: skip


@pytest.mark.parametrize("change", INVALID, ids=lambda change: change.__name__)
def test_invalid_graphs(
    refuse: Callable[..., Any],
    damaged: Callable[..., Path],
    tmp_path: Path,
    change: Callable[[onnx.ModelProto], None],
) -> None:
    source = damaged(change)
    refuse(3, "compress", source, tmp_path / "out.onnx", "--gate", "off")


def test_an_input_of_absurd_size_is_the_models_fault(
    refuse: Callable[..., Any], damaged: Callable[..., Path], tmp_path: Path
) -> None:
    def change(model: onnx.ModelProto) -> None:
        shape = model.graph.input[0].type.tensor_type.shape
        shape.dim[2].dim_value = shape.dim[3].dim_value = 2**20

    source = damaged(change)
    refuse(3, "compress", source, tmp_path / "out.onnx", "--gate", "off", words=["'x'"])


@pytest.mark.parametrize("command", ["compress", "bench"])
def test_a_node_that_fails_while_running(
    refuse: Callable[..., Any], damaged: Callable[..., Path], tmp_path: Path, command: str
) -> None:
    def change(model: onnx.ModelProto) -> None:
        # Valid for every checker: that 32 values are no multiple of 7 shows when it runs.
        model.graph.node[6].op_type = "Reshape"
        model.graph.node[6].input.append("shape")
        shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [7, -1])
        model.graph.initializer.append(shape)
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "M"

    source = damaged(change)
    rest = [tmp_path / "out.onnx", "--gate", "off"] if command == "compress" else []
    refuse(3, command, source, *rest, words=["Reshape"])
