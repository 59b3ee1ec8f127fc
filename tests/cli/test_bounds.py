"""Bounds that cannot be met, and models with nothing to gain: exit code 1, described, no OUT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcompress.embedded import embedded


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """The embedded model and data, of the calibration inputs the first 160."""
    folder = tmp_path_factory.mktemp("digits")
    with np.load(embedded("digits_train.npz")) as train:
        np.savez(folder / "train.npz", x=train["x"][:160])
    data, held_out = folder / "train.npz", embedded("digits_test.npz")
    return ["--gate", "off", "--data", data, "--eval", held_out]


def test_target_met(cli: Callable[..., Any], digits: list[str | Path], tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    outcome = cli("compress", embedded("digits_cnn.onnx"), out, "--target", "macs=0.6", *digits)
    assert outcome.code == 0, outcome.err
    # Counted here anew: every convolution of this model has stride 1 and fixed sizes.
    counted = [macs(onnx.load(path)) for path in (embedded("digits_cnn.onnx"), out)]
    assert counted[0] == 25_990_400
    assert counted[1] <= 0.6 * counted[0]
    report = json.loads(out.with_name("out.onnx.report.json").read_text())
    assert [report[when]["macs"] for when in ("before", "after")] == counted
    assert report["after"]["file_bytes"] == out.stat().st_size
    assert report["before"]["file_bytes"] == embedded("digits_cnn.onnx").stat().st_size
    assert report["drop"]["points"] <= 1.0
    assert report["after"]["metric"]["n"] == 797


def macs(model: onnx.ModelProto) -> int:
    """Weights times positions, for Conv and Gemm at batch 1; positions from shape inference."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    return sum(
        sizes[node.input[1]] * int(np.prod(shapes[node.output[0]][2:]))
        for node in model.graph.node
        if node.op_type in {"Conv", "Gemm", "MatMul"}
    )


def test_no_drop_and_a_tenth_of_the_macs(
    cli: Callable[..., Any], digits: list[str | Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    options = ["--max-drop", "0", "--target", "macs=0.1", *digits]
    outcome = cli("compress", embedded("digits_cnn.onnx"), out, *options)
    outcome.refused(1, "bounds not met", "best attempt", "top1", "points", "macs 0.0")
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx.report.json"]
    report = json.loads((tmp_path / "out.onnx.report.json").read_text())
    assert report["ok"] is False
    assert report["failures"]
    assert report["drop"]["points"] > 0
    assert report["remaining"]["macs"] <= 0.1
    assert report["plan"]["chosen"]


@pytest.mark.parametrize("target", ["macs=0.001", "params=0.001", "size=0.001"])
def test_target_out_of_reach(cli: Callable[..., Any], model: Path, target: str) -> None:
    out = model.with_name("out.onnx")
    outcome = cli("compress", model, out, "--target", target, "-q")
    outcome.refused(1, "bounds not met", target.partition("=")[0], "best attempt")
    assert not out.exists()
    report = json.loads(model.with_name("out.onnx.report.json").read_text())
    assert report["failures"]
    assert report["remaining"][target.partition("=")[0]] < 1.0


@pytest.mark.parametrize("target", ["macs=0.4", "params=0.4", "size=0.45"])
def test_every_kind_of_target(cli: Callable[..., Any], model: Path, target: str) -> None:
    out = model.with_name("out.onnx")
    outcome = cli("compress", model, out, "--target", target)
    assert outcome.code == 0, outcome.err
    kind, _, fraction = target.partition("=")
    report = json.loads(out.with_name("out.onnx.report.json").read_text())
    key = {"size": "file_bytes"}.get(kind, kind)
    assert report["after"][key] <= float(fraction) * report["before"][key]
    assert out.stat().st_size == report["after"]["file_bytes"]


def test_several_targets_hold_together(cli: Callable[..., Any], model: Path) -> None:
    out = model.with_name("out.onnx")
    outcome = cli("compress", model, out, "--target", "macs=0.5", "--target", "params=0.3")
    assert outcome.code == 0, outcome.err
    report = json.loads(out.with_name("out.onnx.report.json").read_text())
    assert report["remaining"]["macs"] <= 0.5
    assert report["remaining"]["params"] <= 0.3


def test_an_old_out_survives_a_missed_bound(cli: Callable[..., Any], model: Path) -> None:
    out = model.with_name("out.onnx")
    out.write_bytes(b"precious")
    cli("compress", model, out, "--force", "--target", "macs=0.001").refused(1)
    assert out.read_bytes() == b"precious"


def test_confidence_is_stricter(
    cli: Callable[..., Any], digits: list[str | Path], tmp_path: Path
) -> None:
    """Without a single disagreement among 797 images the interval still reaches 0.48 points.

    With nothing lost in n samples, Tango's interval at level c ends at z² / (n + z²).
    """
    form = ["--pass", "svd:rank=full", "--max-drop", "0.3", *digits]
    source = embedded("digits_cnn.onnx")
    for name, confidence, code in (("a", [], 0), ("b", ["0.5"], 0), ("c", ["0.95"], 1)):
        options = [word for level in confidence for word in ("--confidence", level)]
        outcome = cli("compress", source, tmp_path / f"{name}.onnx", *form, *options)
        assert outcome.code == code, outcome.err
        assert (tmp_path / f"{name}.onnx").exists() == (code == 0)
        report = json.loads((tmp_path / f"{name}.onnx.report.json").read_text())
        assert report["drop"]["points"] == 0
        assert report["drop"]["ci95"][1] == pytest.approx(100 * 1.959964**2 / (797 + 1.959964**2))


def integers(model: onnx.ModelProto) -> None:
    """x of whole numbers, doubled."""
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.append(onnx.helper.make_node("Add", ["x", "x"], ["y"], name="double"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.INT64
    model.graph.output[0].type.CopyFrom(model.graph.input[0].type)


def layerless(model: onnx.ModelProto) -> None:
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.append(onnx.helper.make_node("Relu", ["x"], ["y"], name="relu"))
    model.graph.output[0].type.CopyFrom(model.graph.input[0].type)


def quantised(model: onnx.ModelProto) -> None:
    """The last layer alone, as integers."""
    del model.graph.node[:], model.graph.initializer[:]
    weights = np.random.default_rng(0).integers(-127, 128, (32, 3, 3, 3)).astype(np.int8)
    for name, values in {
        "scale": np.float32(0.1), "zero": np.int8(0), "w": weights,
    }.items():  # fmt: skip
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    make = onnx.helper.make_node
    model.graph.node.extend(
        [
            make("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantise"),
            make("QLinearConv", ["q", "scale", "zero", "w", "scale", "zero", "scale", "zero"],
                 ["r"], name="qconv", pads=[1, 1, 1, 1]),
            make("DequantizeLinear", ["r", "scale", "zero"], ["y"], name="dequantise"),
        ]
    )  # fmt: skip
    model.graph.output[0].type.CopyFrom(model.graph.input[0].type)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (integers, ["no layer"]),
        (layerless, ["no layer"]),
        (quantised, ["quantised already"]),
    ],
)
@pytest.mark.parametrize("gate", ["on", "off"])
def test_nothing_to_gain(
    refuse: Callable[..., Any],
    damaged: Callable[..., Path],
    change: Callable[[onnx.ModelProto], None],
    words: list[str],
    gate: str,
) -> None:
    source = damaged(change)
    out = source.with_name("out.onnx")
    words = ["nothing could be gained", *words]
    refuse(1, "compress", source, out, "--gate", gate, words=words)


def test_reasons_are_whole_sentences(refuse: Callable[..., Any], model: Path) -> None:
    """conv1 holds noise only, so no rank is recommended there."""
    out = model.with_name("out.onnx")
    options = ["--pass", "tucker2", "--exclude", "conv2", "--gate", "off"]
    words = ["the pass's own rule recommends nothing cheaper here"]
    refuse(1, "compress", model, out, *options, words=words)


def test_lossless_form_of_a_small_layer_is_no_gain_with_data(
    refuse: Callable[..., Any], model: Path, samples: Path
) -> None:
    out = model.with_name("out.onnx")
    options = ["--pass", "svd", "--exclude", "point", "--gate", "off", "--data", samples]
    refuse(1, "compress", model, out, *options, words=["too small"])
