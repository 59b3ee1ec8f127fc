"""What inspect, evaluate, bench, passes and demo tell a person, and in JSON a program."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcompress.config import Config
from onnxcompress.pipeline import run
from onnxcompress.plan.registry import parse_pass


def reject(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def parsed(outcome: Any) -> Any:
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out, parse_constant=reject)


def test_inspect(cli: Callable[..., Any], model: Path) -> None:
    """Figures counted by hand: 24, 32 channels at 6 x 7; x has 3 channels."""
    report = parsed(cli("inspect", model, "--json"))
    rows = {row["node"]: row for row in report["layers"]}
    assert list(rows) == ["conv1", "conv2", "point", "fc"]
    weights = {"conv1": 24 * 3 * 9, "conv2": 32 * 24 * 9, "point": 32 * 32, "fc": 5 * 32}
    biases = {"conv1": 24, "conv2": 32, "point": 0, "fc": 5}
    positions = {"conv1": 42, "conv2": 42, "point": 42, "fc": 1}
    for name, row in rows.items():
        assert row["macs"] == weights[name] * positions[name]
        assert row["params"] == weights[name] + biases[name]
    assert rows["conv2"]["output"] == [1, 32, 6, 7]
    assert report["macs"] == sum(row["macs"] for row in rows.values())
    assert report["params"] == sum(row["params"] for row in rows.values())
    assert report["file_bytes"] == model.stat().st_size
    assert report["sizes"] == {"x": [1, 3, 6, 7]}
    offers = {name: " ".join(row["passes"]) for name, row in rows.items()}
    assert "its rule takes 8x8 (MACs x0.15" in offers["conv2"]
    assert "svd: MACs x0.50" in offers["point"]


def test_inspect_shows_what_is_no_layer(cli: Callable[..., Any], tmp_path: Path, nets: Any) -> None:
    """A shortcut of Slice and Pad has no weights, and can be written as a layer all the same."""
    shortcut = nets.build(
        """net (float[N, 3, 8, 8] x) => (float[N, 6, 4, 4] y)
        <int64[2] at = {0, 0}, int64[2] to = {8, 8}, int64[2] axes = {2, 3}, int64[2] by = {2, 2},
         int64[8] pads = {0,1,0,0,0,2,0,0}> {
        [bend] a = Relu (x)
        [slice] b = Slice (a, at, to, axes, by)
        [pad] y = Pad (b, pads) }"""
    )
    path = tmp_path / "shortcut.onnx"
    onnx.save(shortcut, path)
    outcome = cli("inspect", path, "--json")
    assert outcome.code == 0, outcome.err
    (row,) = json.loads(outcome.out)["layers"]
    assert (row["node"], row["op"], row["shape"], row["macs"]) == ("pad", "Pad", "", 0)
    assert row["passes"] == ["exact: one strided layer"]


def test_inspect_at_another_batch(cli: Callable[..., Any], model: Path) -> None:
    once = parsed(cli("inspect", model, "--json"))
    often = parsed(cli("inspect", model, "--json", "--batch", "5"))
    shaped = parsed(cli("inspect", model, "--json", "--shape", "x:5,3,6,7"))
    assert often["macs"] == shaped["macs"] == 5 * once["macs"]
    assert often["params"] == once["params"]


def test_inspect_as_a_table(cli: Callable[..., Any], model: Path) -> None:
    outcome = cli("inspect", model)
    assert (outcome.code, outcome.err) == (0, "")
    for word in ("conv1", "conv2", "point", "fc", "MACs", "x [1, 3, 6, 7]"):
        assert word in outcome.out


@pytest.fixture
def labelled(model: Path) -> tuple[Path, float]:
    """30 samples whose labels are right for some, and the share that is right."""
    generator = np.random.default_rng(8)
    x = generator.standard_normal((30, 3, 6, 7)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    answers = session.run(None, {"x": x})[0].argmax(axis=1)
    y = np.where(np.arange(30) % 3 == 0, (answers + 1) % 5, answers)
    path = model.with_name("labelled.npz")
    np.savez(path, x=x, y=y)
    return path, float((y == answers).mean())


def test_evaluate(cli: Callable[..., Any], model: Path, labelled: tuple[Path, float]) -> None:
    path, share = labelled
    report = parsed(cli("evaluate", model, "--data", path, "--json"))
    assert report["metric"]["name"] == "top1"
    assert report["metric"]["value"] == pytest.approx(share, abs=1e-12)
    assert report["metric"]["n"] == 30
    low, high = report["metric"]["ci95"]
    assert 0 < low < share < high < 1
    assert report["data"]["samples"] == 30
    table = cli("evaluate", model, "--data", path)
    assert f"{100 * share:.2f} %" in table.out
    assert "30 samples" in table.out


def test_evaluate_against_itself(cli: Callable[..., Any], model: Path, samples: Path) -> None:
    """Infinite signal-to-noise ratio, in strict JSON."""
    report = parsed(cli("evaluate", model, "--data", samples, "--reference", model, "--json"))
    assert report["metric"]["value"] == report["reference_metric"]["value"] == 1.0
    assert report["drop"]["points"] == 0
    (fidelity,) = report["fidelity"]
    assert fidelity["name"] == "y"
    assert fidelity["max_abs"] == 0
    assert "output y" in cli("evaluate", model, "--data", samples, "--reference", model).out


def test_evaluate_against_another(
    cli: Callable[..., Any], model: Path, damaged: Callable[..., Path], samples: Path
) -> None:
    def change(other: onnx.ModelProto) -> None:
        for tensor in other.graph.initializer:
            if tensor.name == "b4":
                biased = onnx.numpy_helper.to_array(tensor) + np.float32([0, 0, 1e6, 0, 0])
                tensor.CopyFrom(onnx.numpy_helper.from_array(biased.astype(np.float32), "b4"))

    other = damaged(change, "biased.onnx")
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with np.load(samples) as arrays:
        same = float((session.run(None, {"x": arrays["x"]})[0].argmax(axis=1) == 2).mean())
    report = parsed(cli("evaluate", other, "--data", samples, "--reference", model, "--json"))
    assert report["metric"]["value"] == pytest.approx(same, abs=1e-12)
    assert report["drop"]["points"] == pytest.approx(100 * (1 - same), abs=1e-9)
    assert report["fidelity"][0]["max_abs"] == pytest.approx(1e6, rel=1e-5)


def test_bench(cli: Callable[..., Any], model: Path) -> None:
    options = ["--rounds", "3", "--seconds", "0.001"]
    report = parsed(cli("bench", model, model, *options, "--json"))
    assert [row["model"] for row in report["models"]] == [str(model)] * 2
    for row in report["models"]:
        assert 0 < row["p50"] <= row["p95"]
        assert row["ci95"][0] <= row["ci95"][1]
        assert row["runs"] >= 3
    assert report["models"][0]["ratio"] == 1.0
    assert report["environment"]["providers"] == ["cpu"]
    assert "ratio to the first" in cli("bench", model, *options).out


def test_passes(cli: Callable[..., Any]) -> None:
    report = {row["name"]: row for row in parsed(cli("passes", "--json"))}
    assert {"svd", "tucker2"} <= set(report)
    options = {option["name"]: option for option in report["tucker2"]["options"]}
    assert options["rank"]["default"] == "auto"
    assert all(option["help"] for row in report.values() for option in row["options"])
    table = cli("passes").out
    for row in report.values():
        assert row["summary"] in table


def test_demo(cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed to the pipeline and what becomes of it; the job is cut short."""
    seen: list[tuple[Path, Config]] = []

    def brief(source: Path, config: Config, progress: Any) -> Any:
        seen.append((source, config))
        lossless = (parse_pass("svd:rank=full"),)
        return run(
            source,
            dataclasses.replace(config, passes=lossless, gate=False, data=None, eval_data=None),
            progress,
        )

    monkeypatch.setattr("onnxcompress.pipeline.run", brief)
    monkeypatch.chdir(tmp_path)
    outcome = cli("demo", "--threads", "1")
    assert outcome.code == 0, outcome.err
    ((source, config),) = seen
    assert source.name == "digits_cnn.onnx"
    assert config.data.endswith("digits_train.npz")
    assert config.eval_data.endswith("digits_test.npz")
    names = ["digits_cnn.compressed.onnx", "digits_cnn.compressed.onnx.report.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    onnx.checker.check_model(onnx.load(names[0]), full_check=True)
    assert "onnxcompress compress digits_cnn.onnx" in outcome.out
    assert "MACs" in outcome.out
